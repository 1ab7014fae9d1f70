//! `herald trigger`.

use super::*;

#[test]
fn trigger_posts_the_event_as_the_app() {
    let place = Place::seeded();
    let (url, served) = serve_once("200 OK", "{}");
    let payload = "{\"message\": \"hi\", \"n\": 1.0}";
    let args = ["trigger", "--app", "test-app", "--channel", "foo-topic", "--event", "msg"];
    let done = place.run(&[&args[..], &["--payload", payload, "--url", &url]].concat());

    assert_eq!(done.succeeded(), "sent msg to foo-topic of test-app\n");
    let (head, body) = served.join().expect("served");
    assert!(head.starts_with("post /api/apps/test-app/events http/1.1\r\n"), "{head}");
    // The base64 of `test-app-fake-key:test-app-fake-secret`, in lower case like the head.
    let credentials = "dGVzdC1hcHAtZmFrZS1rZXk6dGVzdC1hcHAtZmFrZS1zZWNyZXQ=".to_ascii_lowercase();
    assert!(head.contains(&format!("\r\nauthorization: basic {credentials}\r\n")), "{head}");
    assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
    let expected = r##"{"topic":"foo-topic","event":"msg","scope":"public","payload":{"message": "hi", "n": 1.0}}"##;
    assert_eq!(body, expected, "the payload's own text is kept");
}

#[test]
fn trigger_takes_credentials_from_the_environment_and_the_payload_from_standard_input() {
    let place = Place::new()
        .with("HERALD_APP_KEY", "k")
        .with("HERALD_APP_SECRET", "hush-hush")
        .with("PORT", "nonsense");
    let (url, served) = serve_once("200 OK", "{}");
    let args =
        ["trigger", "--app", "foo-app", "--channel", "#general", "--event", "msg", "--scope"];
    let args = [&args[..], &["private", "--payload", "-", "--json", "--url", &url]].concat();
    let done = place.run_with_input(&args, "{\"a\":1}\n");

    assert_eq!(done.succeeded(), "{}\n");
    done.never_says("hush-hush");
    let (head, body) = served.join().expect("served");
    assert!(head.contains("\r\nauthorization: basic azpodxnolwh1c2g=\r\n"), "{head}");
    assert_eq!(body, r##"{"topic":"#general","event":"msg","scope":"private","payload":{"a":1}}"##);
}

#[test]
fn trigger_sends_bytes_and_prints_the_number_of_skipped_subscribers() {
    let place = Place::seeded();
    let args = ["trigger", "--app", "test-app", "--channel", "foo-topic", "--event", "img"];
    for (given, input, answer, sent, said) in [
        ("AP8=", "", r#"{"skipped":0}"#, "AP8=", ""),
        (
            "AP8",
            "",
            r#"{"skipped":2}"#,
            "AP8",
            "; 2 subscriber(s) that cannot be sent bytes were skipped",
        ),
        ("", "", r#"{"skipped":null}"#, "", "; how many were skipped is not known"),
        // The lines are broken as the command `base64` breaks them.
        ("-", "AAEC\nAwQF\nBg==\n", r#"{"skipped":0}"#, "AAECAwQFBg==", ""),
    ] {
        let (url, served) = serve_once("200 OK", answer);
        let bytes = ["--payload-base64", given, "--url", &url];
        let done = place.run_with_input(&[&args[..], &bytes].concat(), input);
        assert_eq!(done.succeeded(), format!("sent img to foo-topic of test-app{said}\n"));
        let (_, body) = served.join().expect("served");
        let expected = format!(
            r#"{{"topic":"foo-topic","event":"img","scope":"public","payload_base64":"{sent}"}}"#
        );
        assert_eq!(body, expected, "{given:?}");
    }
    let (url, served) = serve_once("200 OK", r#"{"skipped":1}"#);
    let bytes = ["--payload-base64", "eA", "--json", "--url", &url];
    assert_eq!(place.run(&[&args[..], &bytes].concat()).succeeded(), "{\"skipped\":1}\n");
    served.join().expect("served");
}

#[test]
fn trigger_sends_an_idempotency_key_and_prints_the_position() {
    let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
    let event = r#"{"topic":"c","event":"e","scope":"public","payload":{}"#;
    let answer = r#"{"position":"epoch:7"}"#;
    for (args, answer, sent, said) in [
        (&["--idempotency-key", "job 1"][..], "{}", r#","idempotency_key":"job 1"}"#, "\n"),
        (&["--position"], answer, r#","position":true}"#, " at epoch:7\n"),
        (
            &["--position", "--idempotency-key=k"],
            r#"{"position":"epoch:7","skipped":1}"#,
            r#","idempotency_key":"k","position":true}"#,
            " at epoch:7; 1 subscriber(s) that cannot be sent bytes were skipped\n",
        ),
    ] {
        let (url, served) = serve_once("200 OK", answer);
        let trigger = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e"];
        let done = place.run(&[&trigger[..], &["--url", &url], args].concat());
        assert_eq!(done.succeeded(), format!("sent e to c of foo-app{said}"), "{args:?}");
        let (_, body) = served.join().expect("served");
        assert_eq!(body, format!("{event}{sent}"), "{args:?}");
    }
}

#[test]
fn trigger_prints_why_the_server_refused_it() {
    let faulty = r#"{"errors":{"topic":["is too long"]}}"#;
    let large = r#"{"errors":{"detail":"payload is too large"}}"#;
    for (status, answer, expected) in [
        ("401 Unauthorized", "{}", "401: it has no active app foo-app with this key and secret"),
        ("422 Unprocessable Entity", faulty, "422: topic is too long"),
        ("413 Payload Too Large", large, "413: payload is too large"),
        ("418 I'm a teapot", "<html>", "418 without a reason"),
        (
            "301 Moved\r\nlocation: https://x",
            "",
            "301, a redirect: give --url the address to which it redirects",
        ),
        ("404 Not Found", "", "404: this is not a Herald server"),
        (
            "403 Forbidden",
            r#"{"errors":{"detail":"this server takes requests over https only"}}"#,
            "403: this server takes requests over https only; give --url the address of the proxy",
        ),
        (
            "503 Service Unavailable",
            "",
            "503: it cannot take the request now, but the event may have been published: another try \
             may publish it twice, unless both have the same --idempotency-key",
        ),
        ("504 Gateway Timeout", "", "504 without a reason, but the event may have been published"),
    ] {
        let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
        let (url, served) = serve_once(status, answer);
        let args = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e", "--url", &url];
        let done = place.run(&args);
        served.join().expect("served");
        let expected = format!("herald: {url} answers {expected}");
        assert!(done.failed(1).starts_with(&expected), "{expected}: {done:?}");
        done.never_says("hush-hush");
    }
}

#[test]
fn a_trigger_that_has_an_idempotency_key_may_be_tried_again() {
    let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
    let (url, served) = serve_once("503 Service Unavailable", "");
    let args = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e"];
    let done = place.run(&[&args[..], &["--idempotency-key", "k", "--url", &url]].concat());
    served.join().expect("served");
    let expected = format!("herald: {url} answers 503: it cannot take the request now, try again");
    assert_eq!(done.failed(1), expected);
}

#[test]
fn a_connection_that_breaks_tells_that_the_event_may_have_been_published() {
    let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut head = [0; 8_192];
        stream.read(&mut head).expect("a request")
    });
    let args = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e", "--url", &url];
    let done = place.run(&args);
    assert!(served.join().expect("served") > 0);
    let line = done.failed(1);
    assert!(line.starts_with(&format!("herald: the connection to {url} failed: ")), "{line}");
    assert!(line.contains(", but the event may have been published: "), "{line}");
}

#[test]
fn trigger_tells_when_nobody_listens() {
    let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let url = format!("http://{free}");
    let args = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e", "--url"];
    let done = place.run(&[&args[..], &[&url]].concat());
    assert_eq!(done.failed(1), format!("herald: nothing listens on {url}: is the server running?"));

    let leaky = place.run(&[&args[..], &["http://key:hush-hush@127.0.0.1"]].concat());
    assert!(leaky.failed(2).contains("must not hold a key and secret"), "{leaky:?}");
    leaky.never_says("hush-hush");

    let half = Place::new().with("HERALD_APP_KEY", "k");
    let half = half.run(&args.iter().chain(&[url.as_str()]).copied().collect::<Vec<_>>());
    assert!(half.failed(1).contains("belong together"), "{half:?}");
}
