//! The server that the commands ask: the one of `--url`, or else the one of this machine's settings.

use crate::support::{App, TestServer};

use super::*;

/// The arguments of `herald history`, without a server.
const HISTORY: [&str; 5] = ["history", "--app", "test-app", "--channel", "foo-topic"];

/// A place in which the commands call as the seeded app, and need no database.
fn as_the_app() -> Place {
    Place::new()
        .with("HERALD_APP_KEY", "test-app-fake-key")
        .with("HERALD_APP_SECRET", "test-app-fake-secret")
}

#[test]
fn without_a_url_the_server_of_the_settings_is_asked() {
    let nodes = r#"{"data":[{"id":7}]}"#;
    let page = r#"{"data":[],"complete":true,"position":null}"#;
    // The second address is one of the loopback network on which no other server of the tests listens.
    for host in ["127.0.0.1", "127.0.0.7"] {
        let address = host.parse().expect("an address");
        for (args, answer, path, place) in [
            (&["nodes"][..], nodes, "/api/admin/nodes", Place::new()),
            (&HISTORY, page, "/api/apps/test-app/channels/public/foo-topic/history", as_the_app()),
            (
                &HISTORY,
                page,
                "/api/apps/test-app/channels/public/foo-topic/history",
                Place::seeded(),
            ),
        ] {
            let (server, served) = serve_once_at(address, "200 OK", answer);
            let port = server.port().to_string();
            let place = place.with("HERALD__SERVER__HOST", host).with("PORT", &port);
            place.run(args).succeeded();
            let (head, _) = served.join().expect("served");
            assert!(head.starts_with(&format!("get {path} http/1.1\r\n")), "{head}");
            assert!(head.contains(&format!("\r\nhost: {server}\r\n")), "{head}");
        }
    }
}

#[test]
fn a_server_on_every_interface_is_asked_over_loopback() {
    let (server, served) = serve_once_at(Ipv4Addr::LOCALHOST, "200 OK", r#"{"data":[]}"#);
    let place = Place::new()
        .with("HERALD__SERVER__HOST", "0.0.0.0")
        .with("PORT", &server.port().to_string())
        .with("PUSHER_ADMIN_PASSWORD", "correct-horse-battery");
    place.run(&["nodes"]).succeeded();
    served.join().expect("served");
}

#[test]
fn settings_that_cannot_be_read_are_not_needed_with_a_url_and_credentials() {
    let (url, served) = serve_once("200 OK", r#"{"data":[],"complete":true,"position":null}"#);
    let place = as_the_app().with("PORT", "nonsense");
    let args = [&HISTORY[..], &["--limit", "7", "--url", &url]].concat();
    assert_eq!(place.run(&args).succeeded(), "nothing is retained\n");
    let (head, _) = served.join().expect("served");
    assert!(head.contains("/history?limit=7 "), "{head}");
}

#[test]
fn credentials_in_the_url_are_refused_with_a_remedy_for_the_caller() {
    let url = "http://somebody:hush-hush@127.0.0.1";
    let of_admin = "herald: --url: must not hold a name and password: set PUSHER_ADMIN_USERNAME and \
                    PUSHER_ADMIN_PASSWORD";
    let of_app =
        "herald: --url: must not hold a key and secret: set HERALD_APP_KEY and HERALD_APP_SECRET";
    for (args, expected) in [
        (&["nodes"][..], of_admin),
        (&["usage"], of_admin),
        (&["usage", "--app", "test-app"], of_app),
        (&HISTORY, of_app),
    ] {
        let done = as_the_app().run(&[args, &["--url", url]].concat());
        assert_eq!(done.failed(2), expected, "{args:?}");
    }
}

#[tokio::test]
async fn a_server_that_replays_few_publications_lists_its_history() {
    let server = TestServer::start_with(|settings| settings.history.replay_max = 2);
    for n in 0..3 {
        let event =
            serde_json::json!({ "topic": "foo-topic", "event": "msg", "payload": { "n": n } });
        server.trigger(&App::seeded(), event).await;
    }
    let url = server.url("");
    let list = move || as_the_app().run(&[&HISTORY[..], &["--url", &url, "--json"]].concat());
    let page = tokio::task::spawn_blocking(list).await.expect("an end").json();
    let shown: Vec<_> =
        page["data"].as_array().expect("a list").iter().map(|one| &one["payload"]["n"]).collect();
    assert_eq!(shown, [1, 2]);
}
