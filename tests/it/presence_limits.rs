//! The bounds of presence: keys, metas, members, and the announcements when many members arrive at once.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    picture::{Old, references},
    presence::{ROOM, diff, enter, ticket, ticket_of},
    *,
};

/// The response with which a join of the room is refused.
async fn refusal(server: &TestServer, way: &str, ticket: Value) -> Value {
    let reply = Socket::connect(server, way).await.try_join(ROOM, ticket).await;
    assert_eq!(reply["status"], "error", "{reply}");
    reply["response"].clone()
}

#[tokio::test]
async fn a_token_that_names_nobody_is_refused_with_a_reason() {
    let server = TestServer::start();
    let reason = json!({"reason": "presence needs a sub, id or email of at most 128 bytes"});
    for (case, claims) in [
        ("nobody", json!({})),
        ("an anonymous subject", json!({"sub": {}})),
        ("nothing that is text or a number", json!({"sub": [1], "id": true, "email": null})),
        ("an empty name", json!({"sub": ""})),
        ("one byte too many", json!({"sub": "k".repeat(129)})),
        ("a name of the browser's own", json!({"sub": "__proto__"})),
    ] {
        for way in WAYS {
            assert_eq!(refusal(&server, way, ticket(claims.clone())).await, reason, "{case}");
        }
    }
    for (case, payload) in [
        ("no token", json!({})),
        ("one for elsewhere", ticket(json!({"sub": "ada", "listen": ["private:*"]}))),
    ] {
        assert_eq!(refusal(&server, V2, payload).await, "authentication_required", "{case}");
    }
}

/// A `presence` claim that makes a meta of this size.
fn claim(bytes: usize) -> Value {
    let frame = r#"{"online_at":1700000000000,"a":""}"#.len();
    json!({ "a": "x".repeat(bytes - frame) })
}

#[tokio::test]
async fn a_meta_has_a_kilobyte_and_no_more() {
    let too_large = json!({"reason": "presence metadata too large"});
    for way in WAYS {
        let server = TestServer::start();
        let ada = |bytes| ticket(json!({"sub": "ada", "presence": claim(bytes)}));
        let (mut socket, _, _) = enter(&server, way, ada(1_024)).await;
        assert_eq!(refusal(&server, way, ada(1_025)).await, too_large, "{way}");
        // An update may not make a meta larger than that either: the meta stays as it is.
        let update = json!(["1", "2", ROOM, "presence_metadata", {"custom": 1}]);
        socket.push(update).await;
        let reply = socket.next().await;
        assert_eq!((&reply[1], &reply[4]["response"]), (&json!("2"), &too_large), "{way}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn an_update_that_says_nothing_of_custom_is_refused() {
    let no_custom = json!({"reason": "payload must have a custom"});
    let too_large = json!({"reason": "payload too large"});
    for way in V2_WAYS {
        let server = TestServer::start();
        let (mut socket, _, _) = enter(&server, way, ticket_of("ada")).await;
        for (payload, reason) in [
            (json!({}), &no_custom),
            (json!({"Custom": 1}), &no_custom),
            (json!([]), &no_custom),
            (json!(null), &no_custom),
            (json!({"custom": "x".repeat(40_000)}), &too_large),
        ] {
            socket.push(json!(["1", "2", ROOM, "presence_metadata", payload])).await;
            let reply = socket.next().await;
            let expected = json!({"status": "error", "response": reason});
            assert_eq!(reply, json!(["1", "2", ROOM, "phx_reply", expected]), "{way}");
        }
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_full_channel_admits_only_its_members_and_a_leave_makes_room() {
    let server = TestServer::start_with(|settings| settings.limits.presence_members_max = 2);
    let full = json!({"reason": "presence channel full"});
    let (mut ada, _, _) = enter(&server, V2, ticket_of("ada")).await;
    let (bob, _, _) = enter(&server, V1_POLLED, ticket_of("bob")).await;
    diff(&mut ada).await;
    for way in WAYS {
        let mut late = Socket::connect(&server, way).await;
        let refused = json!({"status": "error", "response": full});
        assert_eq!(late.try_join(ROOM, ticket_of("late")).await, refused, "{way}");
        // Nothing is left of the attempt, on either side.
        late.push(json!([null, "2", ROOM, "presence_metadata", {"custom": 1}])).await;
        assert_eq!(late.next().await[4]["response"], json!({"reason": "unmatched topic"}));
        late.join("presence:test-app:other", ticket_of("late")).await;
    }
    ada.assert_quiet().await;
    ada.push(json!(["2", "2", ROOM, "phx_join", ticket_of("ada")])).await;
    for event in ["phx_reply", "phx_close", "presence_state", "presence_diff"] {
        assert_eq!(ada.next().await[3], event, "a rejoin does not count as a further member");
    }
    let mut bob = bob;
    bob.push(json!([null, "2", ROOM, "phx_leave", {}])).await;
    let told = diff(&mut ada).await;
    assert!(told["leaves"].get("bob").is_some(), "{told}");
    enter(&server, V2, ticket_of("late")).await;
}

/// The default maximum of members.
const MANY: usize = 1_000;

#[tokio::test]
async fn a_thousand_may_be_there_and_their_coming_does_not_cost_the_square() {
    let server = TestServer::start_with(|settings| {
        settings.socket.presence_interval = INTERVAL;
        // On a busy machine a thousand joins take minutes, and none of these clients says more.
        settings.socket.idle_timeout = Duration::from_secs(3_600);
    });
    let mut sockets = Vec::with_capacity(MANY);
    for _ in 0..MANY {
        sockets.push(Socket::connect(&server, V2).await);
    }
    let began = Instant::now();
    for (nth, socket) in sockets.iter_mut().enumerate() {
        let ticket = ticket_of(&format!("visitor-{nth}"));
        socket.push(json!(["1", "1", ROOM, "phx_join", ticket])).await;
    }
    let mut frames_max = 0;
    for socket in &mut sockets {
        let mut frames = 0;
        assert_eq!(socket.next().await[4]["status"], "ok");
        let state = socket.next().await;
        assert_eq!(state[3], "presence_state");
        let mut known = state[4].as_object().expect("keys").len();
        while known < MANY {
            let told = diff(socket).await;
            known += told["joins"].as_object().expect("keys").len();
            frames += 1;
        }
        assert_eq!(known, MANY, "each member is told once");
        frames_max = frames_max.max(frames);
    }
    // If the members were announced one by one, some clients would have received hundreds of announcements.
    let moments = moments_since(began);
    assert!(frames_max <= moments, "{frames_max} at {moments} moments");
    let mut late = Socket::connect(&server, V2).await;
    let refused = json!({"status": "error", "response": {"reason": "presence channel full"}});
    assert_eq!(late.try_join(ROOM, ticket_of("late")).await, refused);
    sockets.swap_remove(0);
    let mut watcher = sockets.swap_remove(0);
    assert!(diff(&mut watcher).await["leaves"].get("visitor-0").is_some());
    assert_eq!(late.try_join(ROOM, ticket_of("late")).await["status"], "ok");
}

/// The least time between two announcements on a channel in these tests: long enough for many members
/// to arrive meanwhile, however slow the machine.
const INTERVAL: Duration = Duration::from_secs(1);

/// The number of moments at which something may have been announced since `began`. One more is allowed, because
/// the test and the server read the clock at different times.
fn moments_since(began: Instant) -> usize {
    usize::try_from(began.elapsed().as_millis() / INTERVAL.as_millis()).expect("few") + 2
}

/// The number of visitors of a crowd: far more than there are moments of announcements during a test.
const CROWD: usize = 200;

/// A client of the crowd, with the members that it knows.
struct Visitor {
    socket: Socket,
    seen: Old,
    /// The number of announcements that it has received.
    diffs: usize,
}

impl Visitor {
    async fn joins(&mut self, nth: usize, reference: &str) {
        let ticket = ticket_of(&format!("visitor-{nth}"));
        self.socket.push(json!([reference, reference, ROOM, "phx_join", ticket])).await;
    }

    /// Reads until it knows `count` metas, none of which has one of these references.
    async fn sees(&mut self, count: usize, none_of: &[String]) {
        let is_seen = |seen: &Old| {
            let references = references(seen.picture());
            references.len() == count
                && none_of.iter().all(|old| references.binary_search(old).is_err())
        };
        while !is_seen(&self.seen) {
            let frame = self.socket.next().await;
            match frame[3].as_str() {
                Some("presence_state") => self.seen.state(&frame[4]),
                Some("presence_diff") => {
                    self.seen.diff(&frame[4]);
                    self.diffs += 1;
                }
                Some("phx_reply") => assert_eq!(frame[4]["status"], "ok", "{frame}"),
                Some("phx_close") => {}
                _ => panic!("nothing else is sent: {frame}"),
            }
        }
    }
}

#[tokio::test]
async fn a_crowd_that_joins_anew_at_once_is_told_of_at_few_moments() {
    let server = TestServer::start_with(|settings| settings.socket.presence_interval = INTERVAL);
    let mut crowd = Vec::with_capacity(CROWD);
    for nth in 0..CROWD {
        let socket = Socket::connect(&server, V2).await;
        let mut visitor = Visitor { socket, seen: Old::default(), diffs: 0 };
        visitor.joins(nth, "1").await;
        crowd.push(visitor);
    }
    for visitor in &mut crowd {
        visitor.sees(CROWD, &[]).await;
        visitor.diffs = 0;
    }
    let before = references(crowd[0].seen.picture());
    let began = Instant::now();
    for (nth, visitor) in crowd.iter_mut().enumerate() {
        visitor.joins(nth, "2").await;
    }
    let mut diffs_max = 0;
    for visitor in &mut crowd {
        visitor.sees(CROWD, &before).await;
        diffs_max = diffs_max.max(visitor.diffs);
    }
    let moments = moments_since(began);
    assert!(diffs_max <= moments, "{diffs_max} announcements at {moments} moments");
}
