//! Section 14.9 of the protocol document: how long-poll sessions live and end, to which client they belong, and how
//! that client learns of the end.

use std::time::{Duration, Instant};

use crate::support::{tokens::token, *};
use herald::settings::Settings;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const TOPIC: &str = "public:test-app";
const WINDOW: Duration = Duration::from_secs(2);

fn hasty(settings: &mut Settings) {
    settings.socket.long_poll_window = WINDOW;
}

async fn joined(server: &TestServer, vsn: &str, topic: &str) -> Poller {
    let mut socket = Socket::polled(Poller::connect(server, vsn).await, vsn);
    socket.join(topic, json!({})).await;
    socket.into_poller()
}

/// Checks the answers about a session that has ended. On 500 clients of every generation reconnect. On 410 clients up
/// to 1.8.1 would take the new session for the old one, and receive nothing.
async fn assert_gone(poller: &mut Poller, case: &str) {
    assert_eq!(poller.fetch().await, json!({"status": 500}), "{case}");
    assert_eq!(poller.post(&heartbeat("1")).await, 410, "{case}");
}

fn heartbeat(reference: &str) -> String {
    format!(r#"[null,"{reference}","phoenix","heartbeat",{{}}]"#)
}

/// Waits until posts find no session. The posts do not keep it alive, and they are so few that their replies do not
/// fill its outbox.
async fn until_gone(poller: &mut Poller) {
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let gone = async {
        while poller.post(&heartbeat("1")).await == 200 {
            pace.tick().await;
        }
    };
    timeout(DEADLINE, gone).await.expect("the session ends in time");
}

#[tokio::test]
async fn e150_a_session_that_nobody_fetches_ends_and_takes_its_channels_along() {
    // The app may have one scope with subscribers: another is accepted once the first has none.
    let server = TestServer::start_with(|settings| {
        hasty(settings);
        settings.limits.scopes_per_app_max = 1;
        settings.limits.sessions_max = Some(2);
    });
    let jwt = token(&App::seeded(), &json!({"listen": ["private:*"]}));
    // Its last fetch happens after this moment, and it ends at least a window after that fetch.
    let since = Instant::now();
    let mut silent = joined(&server, V2, TOPIC).await;
    until_gone(&mut silent).await;
    assert!(since.elapsed() > WINDOW, "{:?}", since.elapsed());
    assert_gone(&mut silent, "nobody fetched").await;
    let payload = json!({"guardian_token": jwt});
    let mut comes = Socket::connect(&server, V2).await;
    let refused = json!({"status": "error", "response": {"reason": "too many scopes"}});
    let free =
        repeat_until(async || comes.try_join("private:test-app", payload.clone()).await != refused);
    timeout(DEADLINE, free).await.expect("its scope is free");
    let _second_place = Socket::connect(&server, V2).await;
}

#[tokio::test]
async fn a_session_that_is_fetched_lives_on_and_misses_nothing_between_two_fetches() {
    let server = TestServer::start_with(hasty);
    let mut listener = joined(&server, V2, TOPIC).await;
    let mut publisher = Socket::connect(&server, V2).await;
    publisher.join(TOPIC, json!({})).await;
    let (began, mut n) = (Instant::now(), 0);
    // Some events arrive between two fetches, and some during a fetch.
    while began.elapsed() < 2 * WINDOW {
        publisher.push(json!(["1", "2", TOPIC, "msg", {"n": n}])).await;
        n += 1;
        publisher.frame().await;
        if n % 10 == 0 {
            listener.park().await;
            listener.parked_into_waiting().await;
        }
        sleep(Duration::from_millis(5)).await;
    }
    for expected in 0..n {
        let frame: Value =
            serde_json::from_str(&listener.next().await.expect("a session")).expect("JSON");
        assert_eq!(frame[4]["n"], expected);
    }
}

#[tokio::test]
async fn a_second_fetch_takes_over_and_the_first_ends_empty() {
    let server = TestServer::start();
    let mut first = joined(&server, V2, TOPIC).await;
    let mut second = first.again(&server).await;
    first.park().await;
    // Once a message that was posted later is answered, the first fetch has certainly been parked.
    assert_eq!(first.post(&heartbeat("1")).await, 200);
    assert_eq!(first.parked().await["status"], 200);
    first.park().await;
    second.park().await;
    let (loser, winner) = tokio::select! {
        ended = first.parked() => (ended, &mut second),
        ended = second.parked() => (ended, &mut first),
    };
    assert_eq!(loser, json!({"status": 204, "token": loser["token"], "messages": []}));
    assert_eq!(winner.post(&heartbeat("2")).await, 200);
    let reply = r#"[null,"2","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(winner.parked().await["messages"], json!([reply]));
}

#[tokio::test]
async fn a_fetch_whose_client_hung_up_takes_nothing_along() {
    // A single thread sees the end of a connection before it answers a later connection.
    let server = TestServer::start_with(|settings| settings.server.workers = 1);
    let mut poller = joined(&server, V2, TOPIC).await;
    for n in 0..20 {
        poller.park().await;
        poller.hang_up(&server).await;
        get(server.url("/health")).await;
        assert_eq!(poller.post(&heartbeat(&n.to_string())).await, 200);
        let reply =
            format!(r#"[null,"{n}","phoenix","phx_reply",{{"status":"ok","response":{{}}}}]"#);
        assert_eq!(poller.next().await, Some(reply));
    }
}

#[tokio::test]
async fn a_session_without_a_join_ends_and_one_with_a_join_does_not() {
    let unjoined_max = Duration::from_secs(2);
    let server = TestServer::start_with(|settings| {
        hasty(settings);
        settings.socket.long_poll_unjoined_timeout = unjoined_max;
    });
    let began = Instant::now();
    let mut listener = joined(&server, V2, TOPIC).await;
    let mut idle = Poller::connect(&server, V2).await;
    let mut denied = Poller::connect(&server, V2).await;
    assert_eq!(denied.post(r#"["1","1","private:test-app","phx_join",{}]"#).await, 200);
    assert!(denied.next().await.is_some());
    // All three sessions are polled without pauses.
    let ends = async { tokio::join!(idle.next(), denied.next()) };
    let ends = tokio::select! {
        ends = timeout(DEADLINE, ends) => ends.expect("an end in time"),
        frame = listener.next() => panic!("the joined session stays, and is sent nothing: {frame:?}"),
    };
    assert_eq!(ends, (None, None));
    assert!(began.elapsed() >= unjoined_max);
}

#[tokio::test]
async fn a_client_that_has_left_everything_may_join_again_within_its_time() {
    let unjoined_max = Duration::from_secs(2);
    let server = TestServer::start_with(|settings| {
        hasty(settings);
        settings.socket.long_poll_unjoined_timeout = unjoined_max;
    });
    let mut poller = joined(&server, V2, TOPIC).await;
    let began = Instant::now();
    while began.elapsed() < unjoined_max * 3 / 2 {
        assert_eq!(poller.fetch().await["status"], 204, "joined, so it lives");
    }
    assert_eq!(poller.post(r#"["1","2","public:test-app","phx_leave",{}]"#).await, 200);
    while poller.next().await.is_some() {}
    assert_gone(&mut poller, "nothing joined any more").await;
}

#[tokio::test]
async fn e151_e160_an_app_that_changes_ends_its_sessions_and_they_come_back() {
    let server = TestServer::start();
    server.create_app(json!({"name": "foo-app"})).await;
    for vsn in [V1, V2] {
        let mut poller = joined(&server, vsn, "public:foo-app").await;
        let mut parked = joined(&server, vsn, "public:foo-app").await;
        let mut bystander = joined(&server, vsn, TOPIC).await;
        parked.park().await;
        server.update_app("foo-app", json!({"active": false})).await;
        assert_eq!(parked.parked().await, json!({"status": 500}), "{vsn}");
        assert_gone(&mut parked, vsn).await;
        assert_gone(&mut poller, vsn).await;
        server.trigger(&App::seeded(), json!({"topic": "t", "event": "e"})).await;
        assert!(bystander.next().await.is_some_and(|frame| frame.contains("t:e")));
        // This is how clients react to 500: they open a session, and join again.
        server.update_app("foo-app", json!({"active": true})).await;
        joined(&server, vsn, "public:foo-app").await;
    }
}

#[tokio::test]
async fn e152_a_channel_that_fails_says_so_in_the_next_fetch() {
    let server = TestServer::start();
    server.create_app(json!({"name": "foo-app"})).await;
    let mut poller = joined(&server, V2, TOPIC).await;
    assert_eq!(poller.post(r#"["2","2","public:foo-app","phx_join",{}]"#).await, 200);
    assert!(poller.next().await.is_some());
    assert_eq!(server.admin("DELETE", "/api/admin/apps/foo-app", None).await.status, 204);
    let error = r#"["2","2","public:foo-app","phx_error",{"reason":"channel_crash"}]"#;
    assert_eq!(poller.next().await.as_deref(), Some(error));
}

/// Sends the requests of a real client, one after the other. The clients themselves run in `tests/clients`.
async fn lives(server: &TestServer, vsn: &str, content_type: &str, join: &str, push: &str) {
    let path = format!("/socket/longpoll?vsn={vsn}&");
    let mut poller = Poller::open(server, &path).await;
    poller.park().await;
    for message in [join, push] {
        let answer = poller.post_raw(Some(content_type), message.as_bytes()).await;
        assert_eq!(answer, (200, r#"{"status":200}"#.to_owned()), "{content_type} {vsn}");
    }
    let reply = poller.parked().await;
    assert_eq!((&reply["status"], &reply["token"]), (&json!(200), &json!(poller.token)));
    let mut heard = reply["messages"].as_array().expect("messages").clone();
    while heard.len() < 2 {
        heard.extend(poller.fetch().await["messages"].as_array().expect("messages").clone());
    }
    let event = |item: &Value| match item {
        Value::Object(frame) if vsn == V1 => frame["event"].clone(),
        Value::String(text) if vsn == V2 => {
            serde_json::from_str::<Value>(text).expect("JSON")[3].clone()
        }
        _ => panic!("clients of {vsn} cannot read {item}"),
    };
    assert!(heard.iter().map(event).eq([json!("phx_reply"), json!("msg")]), "{heard:?}");
}

#[tokio::test]
async fn e158_a_client_of_version_1_joins_and_receives() {
    let server = TestServer::start();
    let join = r#"{"topic":"public:test-app","event":"phx_join","payload":{},"ref":"1"}"#;
    let push = r#"{"topic":"public:test-app","event":"msg","payload":{"a":1},"ref":"2"}"#;
    lives(&server, V1, "application/json", join, push).await;
}

#[tokio::test]
async fn e159_clients_of_version_2_join_and_receive_one_by_one_or_in_batches() {
    let server = TestServer::start();
    let join = r#"["3","3","public:test-app","phx_join",{}]"#;
    let push = r#"["3","4","public:test-app","msg",{"a":1}]"#;
    lives(&server, V2, "application/json", join, push).await;
    lives(&server, V2, "application/x-ndjson", join, push).await;
}

fn with_key(key: &'static str) -> impl Fn(&mut Settings) {
    move |settings| settings.secrets.secret_key_base = key.into()
}

#[tokio::test]
async fn e160_a_token_is_known_as_ours_after_a_restart_and_only_with_the_same_key() {
    let mut before = TestServer::start_with(with_key("the key base of this server"));
    let mut poller = joined(&before, V2, TOPIC).await;
    let token = poller.token.clone();
    poller.park().await;
    before.begin_stop();
    assert_eq!(poller.parked().await, json!({"status": 500}), "a parked fetch is answered");
    before.stop();

    let after = TestServer::start_with(with_key("the key base of this server"));
    assert_gone(&mut poller.again(&after).await, "restarted").await;
    let stranger = TestServer::start_with(with_key("the key base of another server"));
    let url = stranger.url(&format!("/socket/longpoll?vsn=2.0.0&token={token}"));
    let answer = get(url).await.json();
    assert_eq!(answer["status"], 410, "not ours: a new session");
    assert_ne!(answer["token"], token);
}

#[tokio::test]
async fn a_token_opens_its_own_session_and_no_other() {
    let server = TestServer::start();
    let jwt = token(&App::seeded(), &json!({"listen": ["private:*"]}));
    let mut private = Socket::polled(Poller::connect(&server, V2).await, V2);
    private.join("private:test-app", json!({"guardian_token": jwt})).await;
    let mut private = private.into_poller();
    let mut other = joined(&server, V2, TOPIC).await;
    assert_ne!(private.token, other.token);
    let event = json!({"topic": "t", "event": "e", "scope": "private", "payload": {"n": 1}});
    server.trigger(&App::seeded(), event).await;
    // The halves of two tokens do not make a valid token.
    let (id, _) = private.token.split_once('.').expect("two parts");
    let (_, signature) = other.token.split_once('.').expect("two parts");
    let mixed = server.url(&format!("/socket/longpoll?vsn=2.0.0&token={id}.{signature}"));
    assert_eq!(get(mixed).await.json()["messages"], json!([]));
    assert_eq!(other.post(&heartbeat("1")).await, 200);
    let reply = r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(other.next().await.as_deref(), Some(reply));
    let heard = r#"[null,null,"private:test-app","t:e",{"n":1}]"#;
    assert_eq!(private.next().await.as_deref(), Some(heard));
}
