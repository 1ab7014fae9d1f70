//! Tests of fan-outs, with probes in place of sessions.

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Poll, Waker},
    time::Duration,
};

use tokio::sync::oneshot;

use super::super::{
    Payload, Publication, PublicationOrigin, Receipt,
    backlog::Backlog,
    disconnection::Disconnection,
    outbox::Excess,
    presence::{Arrival, Change, Member, Meta, Persona},
    recovery::Since,
    stream::Beginning,
    subscriber::{ChangeFrame, Disconnect, Encoders, Frame},
    testing::{
        Break, Broker, COUNTING, DEADLINE, ENCODERS, FORMAT, Probe, ROOMY, SUBSCRIPTION, Stall,
        channel, key, permit, publication, whole,
    },
};
use super::{rounds::PUBLICATIONS_PER_TURN, serving::sessions_per_round, *};
use crate::{
    app::subject::{Subject, SubjectMembers},
    settings::HistorySettings,
};

impl Fanout {
    /// The id of this fan-out.
    pub(in crate::broker) fn worker(&self) -> WorkerId {
        self.worker
    }
}

#[actix_web::test]
async fn each_session_hears_the_places_that_it_joined_and_each_of_them_once() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let (mut all, mut room, mut other) =
        (broker.session(1).await, broker.session(2).await, broker.session(3).await);
    for (probe, place) in [
        (&all, whole(&scope)),
        (&all, whole(&scope)),
        (&room, channel(&scope, "room")),
        (&other, channel(&scope, "other")),
        (&other, whole(&key(2, "public"))),
    ] {
        broker.join(probe, place).await.expect("a place");
    }
    for destination in ["room", "#general"] {
        broker.publish(&scope, destination, "msg").await;
    }
    assert_eq!([all.next().await, all.next().await], ["* room:msg", "* msg"]);
    assert_eq!([room.next().await, room.next().await], ["room msg", "room #general:msg"]);
    assert_eq!(other.next().await, "other #general:msg");
    for probe in [&mut all, &mut room, &mut other] {
        assert!(probe.has_heard_nothing(), "{:?}", probe.session);
    }
}

#[actix_web::test]
async fn an_interruption_from_before_a_scope_was_opened_again_changes_nothing() {
    let (broker, scope) = (Broker::start_with(|limits| limits.history = ROOMY), key(1, "public"));
    let gone = broker.session(1).await;
    broker.join(&gone, whole(&scope)).await.expect("a place");
    let head = broker.head(&scope).expect("a stream");
    broker.topics.directory().with(&scope, |stream| stream.interrupt(head, 1));
    broker.leave(&gone, whole(&scope)).await;
    broker.publish(&scope, "room", "before").await;
    let mut probe = broker.session(2).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    // The fan-out was sent this while it had another subscriber.
    let begin = Beginning { head, interruptions: 1 };
    broker.fanout.do_send(Interrupt { key: scope.clone(), begin });

    let late = broker.session(3).await;
    let wanted = Some(Wanted { since: Since::Position(head), newest_max: 0 });
    let (place, topic) = (whole(&scope), "late".into());
    let join = Subscription { place, topic, format: FORMAT, persona: None, user: None, wanted };
    broker.begin_attach(SUBSCRIPTION, &late, join).await;
    let recovery = late.joined().await.expect("a place").recovery.expect("a recovery");
    assert_eq!((recovery.incomplete, recovery.replayed), (None, 1), "it came before the join");
    broker.publish(&scope, "room", "after").await;
    assert_eq!(probe.next().await, "* room:after", "its join goes on");
}

#[actix_web::test]
async fn an_interruption_of_an_earlier_stream_of_the_scope_is_not_taken_for_one_of_the_present_stream()
 {
    // An app that retains nothing has a stream only while somebody listens.
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let gone = broker.session(1).await;
    broker.join(&gone, whole(&scope)).await.expect("a place");
    let head = broker.head(&scope).expect("a stream");
    broker.topics.directory().with(&scope, |stream| stream.interrupt(head, 1));
    broker.leave(&gone, whole(&scope)).await;
    assert_eq!(broker.head(&scope), None, "the stream is gone");
    let mut probe = broker.session(2).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    let begin = Beginning { head, interruptions: 1 };
    broker.fanout.do_send(Interrupt { key: scope.clone(), begin });
    broker.publish(&scope, "room", "msg").await;
    assert_eq!(probe.next().await, "* room:msg", "its join goes on");
    let head = broker.head(&scope).expect("a stream");
    broker.topics.directory().with(&scope, |stream| stream.interrupt(head, 2));
    assert!(probe.next().await.starts_with("interrupted"), "the next one counts");
}

#[actix_web::test]
async fn members_that_name_a_place_differently_hear_it_by_the_names_they_joined() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probes = Vec::new();
    for (session, topic) in ["old", "new", "third", "new", "old"].into_iter().enumerate() {
        let probe = broker.session(session as u64).await;
        broker.join_as(&probe, whole(&scope), topic).await.expect("a place");
        broker
            .join_as(&probe, channel(&scope, "room"), &format!("{topic}/room"))
            .await
            .expect("a place");
        probes.push((topic, probe));
    }
    assert_eq!(broker.topics.subscribers(whole(&scope)).await, Ok(5));
    // The sessions that joined first leave first. The others keep their names.
    while !probes.is_empty() {
        for destination in ["room", "#general"] {
            broker.publish(&scope, destination, "msg").await;
        }
        for (topic, probe) in &mut probes {
            let heard = [probe.next().await, probe.next().await];
            assert_eq!(heard, [format!("{topic} room:msg"), format!("{topic}/room msg")]);
            let heard = [probe.next().await, probe.next().await];
            assert_eq!(heard, [format!("{topic} msg"), format!("{topic}/room #general:msg")]);
            assert!(probe.has_heard_nothing(), "{topic}");
        }
        let (_, gone) = probes.remove(0);
        broker.fanout.send(Leave(gone.session)).await.expect("a fan-out");
    }
    assert_eq!(broker.topics.subscribers(whole(&scope)).await, Ok(0));
}

#[actix_web::test]
async fn a_session_hears_a_place_under_each_name_until_it_leaves_that_one() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probe = broker.session(1).await;
    let room = || channel(&scope, "room");
    let [short, long] = [SubscriptionId(101), SubscriptionId(102)];
    for (id, topic) in [(short, "short"), (long, "long"), (short, "short")] {
        broker.join_under(id, &probe, room(), topic).await.expect("a place");
    }
    assert_eq!(broker.topics.subscribers(room()).await, Ok(2));
    broker.publish(&scope, "room", "both").await;
    assert_eq!([probe.next().await, probe.next().await], ["short both", "long both"]);
    broker.leave_under(short, &probe, room()).await;
    // If a member that has left is removed again, no other member is removed in its place.
    broker.leave_under(short, &probe, room()).await;
    broker.publish(&scope, "room", "one").await;
    assert_eq!(probe.next().await, "long one");
    broker.fanout.send(Leave(probe.session)).await.expect("a fan-out");
    assert_eq!(broker.topics.subscribers(room()).await, Ok(0));
    assert!(probe.has_heard_nothing());
}

#[actix_web::test]
async fn a_thread_awaits_what_its_fan_out_was_sent_and_has_yet_to_begin_and_nothing_else() {
    let (broker, scope, elsewhere) = (Broker::start(), key(1, "public"), key(2, "public"));
    let mut neighbour = broker.session(2).await;
    broker.join(&neighbour, whole(&elsewhere)).await.expect("a place");
    let there = broker.another_thread();
    let thread = &there.thread;
    let mut probe = there.session(1).await;
    there.join(&probe, whole(&scope)).await.expect("a place");
    assert!(!thread.awaits_more(), "nothing was published");
    let publish = |to: &ScopeKey| broker.topics.publish(publication(to, "#general", "msg"));
    publish(&key(3, "public")).await.expect("room");
    assert!(!thread.awaits_more(), "nobody hears it");
    publish(&elsewhere).await.expect("room");
    assert!(!thread.awaits_more(), "only another thread hears it");
    for _ in 0..2 {
        publish(&scope).await.expect("room");
        assert!(thread.awaits_more(), "it is in the fan-out's mailbox");
        assert_eq!(probe.next().await, "* msg");
        assert!(!thread.awaits_more(), "the fan-out has begun it");
    }
    assert_eq!(neighbour.next().await, "* msg");
}

/// A join of a session that requests everything after a position.
fn attach_since(probe: &Probe, place: Place, since: StreamPosition) -> Attach {
    let wanted = Some(Wanted { since: Since::Position(since), newest_max: 0 });
    let (topic, format) = ("room".into(), FORMAT);
    let subscription = Subscription { place, topic, format, persona: None, user: None, wanted };
    Attach { session: probe.session, id: SUBSCRIPTION, subscription }
}

#[actix_web::test]
async fn a_client_that_comes_from_a_thread_that_is_ahead_hears_nothing_twice() {
    for publications in [0, 10] {
        let broker = Broker::start_with(|limits| {
            limits.history = HistorySettings { publications, ..ROOMY };
        });
        let (scope, behind) = (key(1, "public"), broker.another_thread());
        let room = || channel(&scope, "room");
        let (mut ahead, mut neighbour) = (broker.session(1).await, behind.session(2).await);
        broker.join(&ahead, room()).await.expect("a place");
        behind.join(&neighbour, room()).await.expect("a place");
        broker.publish(&scope, "room", "e1").await;
        let before = broker.head(&scope).expect("a stream");

        // The thread handles the join before the event that the client has already received elsewhere.
        let mut again = behind.session(3).await;
        let (release, until) = oneshot::channel();
        behind.fanout.send(Stall(until)).await.expect("a fan-out");
        let since = StreamPosition { offset: before.offset + 1, ..before };
        behind.fanout.do_send(attach_since(&again, room(), since));
        for event in ["e2", "e3"] {
            let published = broker.topics.publish(publication(&scope, "room", event)).await;
            let receipt = published.expect("room for one more");
            assert_eq!(receipt.positions()[0] == since, event == "e2");
        }
        for event in ["e1", "e2", "e3"] {
            assert_eq!(ahead.next().await, format!("room {event}"));
        }
        release.send(()).expect("a fan-out that waits");
        let recovery = again.joined().await.expect("a place").recovery.expect("it asked");
        let Recovery { incomplete, position, replayed, .. } = *recovery;
        assert_eq!((incomplete, position, replayed), (None, since, 0));
        assert_eq!(again.next().await, "room e3");
        for event in ["e1", "e2", "e3"] {
            assert_eq!(neighbour.next().await, format!("room {event}"));
        }
        assert!(again.has_heard_nothing());
    }
}

#[actix_web::test]
async fn a_client_that_then_joins_with_an_older_position_hears_nothing_twice_either() {
    let broker = Broker::start_with(|limits| limits.history = ROOMY);
    let (scope, behind) = (key(1, "public"), broker.another_thread());
    let room = || channel(&scope, "room");
    let (ahead, neighbour) = (broker.session(1).await, behind.session(2).await);
    broker.join(&ahead, room()).await.expect("a place");
    behind.join(&neighbour, room()).await.expect("a place");
    broker.publish(&scope, "room", "e1").await;
    let first = broker.head(&scope).expect("a stream");
    let nth = |nth: u64| StreamPosition { offset: first.offset + nth - 1, ..first };

    let mut back = behind.session(3).await;
    let (release, until) = oneshot::channel();
    behind.fanout.send(Stall(until)).await.expect("a fan-out");
    for since in [nth(3), nth(2), nth(1)] {
        behind.fanout.do_send(attach_since(&back, room(), since));
    }
    for event in ["e2", "e3", "e4"] {
        broker.topics.publish(publication(&scope, "room", event)).await.expect("room for one more");
    }
    release.send(()).expect("a fan-out that waits");
    for since in [nth(3), nth(2), nth(1)] {
        let recovery = back.joined().await.expect("a place").recovery.expect("it asked");
        let Recovery { incomplete, position, replayed, .. } = *recovery;
        assert_eq!((incomplete, position, replayed), (None, since, 0));
    }
    for event in ["e2", "e3", "e4"] {
        assert_eq!(back.next().await, format!("room {event}"));
    }
    behind.publish(&scope, "room", "e5").await;
    assert_eq!(back.next().await, "room e5");
    assert!(back.has_heard_nothing());
}

#[actix_web::test]
async fn a_session_that_does_not_take_its_frames_is_ended_and_nothing_waits_for_it() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let stuck = broker.stuck_session(1, 1).await;
    let mut healthy = broker.session(2).await;
    for probe in [&stuck, &healthy] {
        broker.join(probe, whole(&scope)).await.expect("a place");
    }
    for n in 0..100 {
        broker.publish(&scope, "#general", &format!("e{n}")).await;
        assert_eq!(healthy.next().await, format!("* e{n}"));
    }
    let ending = Some(Ending::SlowConsumer(Excess::Frames));
    assert_eq!(stuck.outbox.ended(), ending);
    assert_eq!(healthy.outbox.ended(), None);
}

#[actix_web::test]
async fn bytes_are_sent_to_clients_that_can_receive_them_and_the_others_are_counted() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let (mut all, mut room, mut text) =
        (broker.session(1).await, broker.session(2).await, broker.session(3).await);
    broker.join_for_bytes(&all, whole(&scope)).await;
    broker.join_for_bytes(&room, channel(&scope, "room")).await;
    for place in [whole(&scope), channel(&scope, "room"), channel(&scope, "other")] {
        broker.join(&text, place).await.expect("a place");
    }
    let bytes = |destination| Publication {
        payload: Payload::Bytes(b"\x00!".as_slice().into()),
        ..publication(&scope, destination, "msg")
    };
    for (publications, skipped) in [
        (vec![bytes("room")], Some(2)),
        (vec![bytes("#general")], Some(3)),
        (vec![bytes("room"), publication(&scope, "room", "msg"), bytes("room")], Some(4)),
        (vec![Publication { app: AppId(2), ..bytes("room") }], Some(0)),
    ] {
        let receipt = broker.topics.publish_all(publications).await.expect("a receipt");
        assert!(receipt.may_skip());
        assert_eq!(receipt.skipped().await, skipped);
    }
    let [of_room, general] = ["b\"* room:msg \\0!\"", "b\"* msg \\0!\""];
    for expected in [of_room, general, of_room, "* room:msg", of_room] {
        assert_eq!(all.next().await, expected);
    }
    let heard = [room.next().await, room.next().await, room.next().await];
    assert_eq!(heard, ["b\"room msg \\0!\"", "b\"room #general:msg \\0!\"", "b\"room msg \\0!\""]);
    let mut heard = [text.next().await, text.next().await];
    heard.sort();
    assert_eq!(heard, ["* room:msg", "room msg"], "a format of text is sent the object alone");
    assert!(text.has_heard_nothing());
}

#[actix_web::test]
async fn one_session_may_be_left_out_wherever_it_stands_and_whatever_it_joined() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    for left_out in [Some(1), Some(2), Some(3), Some(9), None] {
        let mut probes = Vec::new();
        for id in 1..=3 {
            let probe = broker.session(id).await;
            broker.join(&probe, channel(&scope, "room")).await.expect("a place");
            // The same session also joins the channel under another name, and the scope as a whole.
            let other = SubscriptionId(8);
            broker.join_under(other, &probe, channel(&scope, "room"), "r").await.expect("a place");
            broker.join(&probe, whole(&scope)).await.expect("a place");
            probes.push(probe);
        }
        let except = left_out.map(SessionId);
        let to_all_but_one = Publication { except, ..publication(&scope, "room", "msg") };
        broker.topics.publish(to_all_but_one).await.expect("room");
        broker.publish(&scope, "room", "last").await;
        for mut probe in probes {
            let heard = [probe.next().await, probe.next().await, probe.next().await];
            let event = if except == Some(probe.session) { "last" } else { "msg" };
            let names = ["* room:", "room ", "r "].map(|name| format!("{name}{event}"));
            assert_eq!(heard, names, "{left_out:?}");
            broker.fanout.send(Leave(probe.session)).await.expect("a fan-out");
        }
    }
}

#[actix_web::test]
async fn p097_p098_a_last_event_that_is_under_way_comes_live_unless_its_publisher_left_the_session_out()
 {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let witness = broker.session(9).await;
    broker.join(&witness, channel(&scope, "room")).await.expect("a place");
    let format = Format::of(const { &Encoders { begins_with_last_event: true, ..ENCODERS } });
    for (session, except, expected) in [
        (1, None, Cached::ComesLive),
        (2, Some(1), Cached::ComesLive),
        (3, Some(3), Cached::Event(Frame::Text("cache-room msg".into()))),
    ] {
        let mut probe = broker.session(session).await;
        let (release, until) = oneshot::channel::<()>();
        broker.fanout.send(Stall(until)).await.expect("a fan-out");
        let (place, topic) = (channel(&scope, "cache-room"), "cache-room".into());
        let subscription =
            Subscription { place, topic, format, persona: None, user: None, wanted: None };
        broker.fanout.do_send(Attach { session: probe.session, id: SUBSCRIPTION, subscription });
        let except = except.map(SessionId);
        let under_way = Publication { except, ..publication(&scope, "cache-room", "msg") };
        broker.topics.publish(under_way).await.expect("room");
        drop(release);
        let joined = probe.joined().await.expect("a place");
        assert_eq!(joined.cached, Some(expected), "{session}");
        broker.publish(&scope, "cache-room", "last").await;
        let comes_live = except != Some(probe.session);
        if comes_live {
            assert_eq!(probe.next().await, "cache-room msg");
        }
        assert_eq!(probe.next().await, "cache-room last");
        broker.fanout.send(Leave(probe.session)).await.expect("a fan-out");
    }
}

#[actix_web::test]
async fn a_publisher_is_counted_once_for_each_accepted_publication() {
    let wait_max = Duration::from_millis(20);
    let broker = Broker::start_with(|limits| limits.wait_max = wait_max);
    let scope = key(1, "public");
    broker.topics.metrics().apps.keep([(1, "app-1")].into_iter());
    let shown = |source: &str| {
        let text = broker.topics.metrics().encode();
        let start = format!("herald_publications_total{{app=\"app-1\",source=\"{source}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {source} in {text}"))
    };
    let trigger = || publication(&scope, "room", "msg");
    let push = || Publication { origin: PublicationOrigin::Session { user: None }, ..trigger() };
    broker.topics.publish_all(vec![trigger(), trigger()]).await.expect("room");
    broker.topics.publish(push()).await.expect("room");
    let too_many = vec![trigger(); 100];
    let taken = broker.topics.publish_all(too_many).await;
    assert_eq!((shown("client").as_str(), taken.is_ok()), ("1", false));
    assert_eq!(shown("trigger"), "2");
}

#[actix_web::test]
async fn publications_that_a_broken_fan_out_never_delivered_are_not_waited_for() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let deaf = broker.session(1).await;
    broker.join(&deaf, whole(&scope)).await.expect("a place");
    broker.fanout.do_send(Break);
    let payload = Payload::Bytes(b"x".as_slice().into());
    let bytes = Publication { payload, ..publication(&scope, "room", "msg") };
    let receipt = broker.topics.publish(bytes).await.expect("a receipt");
    assert_eq!(receipt.skipped().await, Some(0));
}

#[actix_web::test]
async fn a_session_with_a_join_of_a_changed_app_is_told_once() {
    let broker = Broker::start();
    let (mut one, mut other) = (broker.session(1).await, broker.session(2).await);
    for place in [whole(&key(1, "public")), channel(&key(1, "public"), "room")] {
        broker.join(&one, place).await.expect("a place");
    }
    broker.join(&other, whole(&key(2, "public"))).await.expect("a place");
    for app in [1, 2] {
        broker.fanout.send(AppChanged(AppId(app))).await.expect("a fan-out");
    }
    assert_eq!(one.next().await, "app 1 changed");
    assert_eq!(other.next().await, "app 2 changed");
    assert!(one.has_heard_nothing() && other.has_heard_nothing());
}

#[actix_web::test]
async fn a_session_that_may_have_a_join_to_end_is_told_once_also_one_about_to_join() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probes = Vec::new();
    for (id, places) in [
        (1, vec![channel(&scope, "room"), channel(&scope, "other")]),
        (2, vec![whole(&scope)]),
        (3, vec![channel(&key(1, "private"), "room")]),
        (4, vec![channel(&key(2, "public"), "room")]),
        (5, vec![]),
        (6, vec![]),
    ] {
        let probe = broker.session(id).await;
        for place in places {
            broker.join(&probe, place).await.expect("a place");
        }
        if id == 6 {
            broker.thread.begin_join(probe.session);
        }
        probes.push(probe);
    }
    let subject = Subject::of(serde_json::from_str("1").expect("JSON")).expect("a subject");
    let members = serde_json::from_str(r#"{"id":1}"#).expect("JSON");
    let members = SubjectMembers::of(members).expect("members");
    for (disconnect, concerned) in [
        (Disconnect::Place(channel(&scope, "room")), [1, 6].as_slice()),
        (Disconnect::Place(whole(&scope)), &[2, 6]),
        (Disconnect::Place(channel(&scope, "empty")), &[6]),
        (Disconnect::Subject { app: AppId(1), subject }, &[1, 2, 3, 6]),
        (Disconnect::Members { app: AppId(1), members }, &[1, 2, 3, 6]),
    ] {
        broker.topics.disconnect(disconnect.clone()).await.expect("all to be told");
        for probe in &mut probes {
            if concerned.contains(&probe.session.0) {
                assert_eq!(probe.next().await, format!("disconnect: {disconnect:?}"));
            }
            probe.outbox.tell(News::Silent);
            assert_eq!(probe.next().await, "silent", "{:?} {disconnect:?}", probe.session);
        }
    }
}

/// Asks for the work of this round so far, in deliveries.
#[derive(Message)]
#[rtype(result = "usize")]
struct WorkOfRound;

impl Handler<WorkOfRound> for Fanout {
    type Result = usize;

    fn handle(&mut self, _: WorkOfRound, _: &mut Self::Context) -> usize {
        self.delivered_this_round
    }
}

#[actix_web::test]
async fn a_disconnect_and_a_change_of_an_app_and_a_gap_visit_only_the_sessions_concerned() {
    // Each of the three messages costs as much as 16 deliveries.
    const ACTS: usize = 3 * 16;
    let broker = Broker::start();
    let (quiet, busy) = (key(1, "private"), key(2, "public"));
    let mut others = Vec::new();
    for id in 1..=300 {
        let probe = broker.roomy_session(id).await;
        broker.join(&probe, whole(&busy)).await.expect("a place");
        others.push(probe);
    }
    let work = async |head| {
        let begin = Beginning { head, interruptions: 1 };
        let disconnect = Disconnect::Place(channel(&quiet, "room"));
        let before = broker.fanout.send(WorkOfRound);
        broker.fanout.do_send(EndJoins(Disconnection::new(disconnect).into()));
        broker.fanout.do_send(AppChanged(quiet.app));
        broker.fanout.do_send(Interrupt { key: quiet.clone(), begin });
        let (before, after) = tokio::join!(before, broker.fanout.send(WorkOfRound));
        after.expect("a fan-out") - before.expect("a fan-out")
    };
    let head = broker.head(&busy).expect("a stream");
    assert_eq!(work(head).await, ACTS, "the app has no session");
    broker.thread.begin_join(SessionId(1));
    assert_eq!(work(head).await, ACTS + 1, "one session may be about to join");
    broker.join(&others[0], channel(&quiet, "room")).await.expect("a place");
    broker.join(&others[1], whole(&quiet)).await.expect("a place");
    let head = broker.head(&quiet).expect("a stream");
    assert_eq!(work(head).await, ACTS + 3 * 2);
    broker.thread.end_join(SessionId(1));
    assert!(others[2].has_heard_nothing());
}

#[actix_web::test]
async fn a_session_that_leaves_amid_a_join_is_not_kept_among_those_that_join() {
    let broker = Broker::start();
    let probe = broker.session(1).await;
    broker.thread.begin_join(probe.session);
    broker.fanout.send(Leave(probe.session)).await.expect("a fan-out");
    assert!(broker.thread.joining.borrow().is_empty());
}

#[actix_web::test]
async fn the_count_of_ended_joins_is_complete_once_every_session_has_come_to_it() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let joins = || Disconnect::Place(whole(&scope));
    // A probe drops its news without ending any join.
    let probe = broker.session(1).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    assert_eq!(broker.topics.disconnect_counted(joins()).await, Ok(Some(0)));
    let (disconnection, count) = Disconnection::counted(joins());
    let shared = std::sync::Arc::new(disconnection);
    let sessions = [(2, shared.clone()), (3, shared.clone()), (0, shared)];
    for (ended, session) in sessions {
        session.has_ended(ended);
    }
    assert_eq!(count.await, Ok(5));
}

#[actix_web::test]
async fn the_count_of_ended_joins_is_unknown_while_a_session_does_not_come_to_it() {
    let broker = Broker::start_with(|limits| limits.wait_max = std::time::Duration::from_secs(1));
    let scope = key(1, "public");
    let joins = || Disconnect::Place(whole(&scope));
    let stuck = broker.stuck_session(1, 1).await;
    broker.join(&stuck, whole(&scope)).await.expect("a place");
    assert_eq!(broker.topics.disconnect_counted(joins()).await, Ok(None));
}

#[actix_web::test]
async fn a_session_that_cannot_be_told_of_the_end_of_its_joins_is_ended() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    for change in [None, Some(Disconnect::Place(whole(&scope)))] {
        let stuck = broker.stuck_session(1, 1).await;
        broker.join(&stuck, whole(&scope)).await.expect("a place");
        // As long as news fits into its outbox, the session is not ended.
        let mut told = 0;
        while stuck.outbox.ended().is_none() && told < 100 {
            match change.clone() {
                None => broker.fanout.send(AppChanged(scope.app)).await.expect("a fan-out"),
                Some(joins) => broker.topics.disconnect(joins).await.expect("to be told"),
            }
            told += 1;
        }
        assert_eq!(stuck.outbox.ended(), Some(Ending::SlowConsumer(Excess::Frames)));
        assert!(told > 1, "there was room for one");
        broker.fanout.send(Leave(stuck.session)).await.expect("a fan-out");
    }
}

#[actix_web::test]
async fn at_the_end_every_session_is_told_even_one_without_a_join() {
    let broker = Broker::start();
    let (mut joined, mut idle) = (broker.session(1).await, broker.session(2).await);
    let left = broker.session(3).await;
    broker.join(&joined, whole(&key(1, "public"))).await.expect("a place");
    broker.fanout.send(Leave(left.session)).await.expect("a fan-out");
    assert_eq!(broker.fanout.send(EndAll).await.expect("a fan-out"), 2);
    for probe in [&mut joined, &mut idle] {
        assert_eq!(probe.next().await, "end: Shutdown");
    }
}

#[actix_web::test]
async fn some_are_ended_at_a_time_over_all_threads_together() {
    let broker = Broker::start();
    let other = broker.another_thread();
    let mut probes = Vec::new();
    for (at, id) in [(&broker, 1), (&broker, 2), (&broker, 3), (&other, 4), (&other, 5)] {
        probes.push(at.session(id).await);
    }
    for (batch, left) in [(2, 3), (2, 1), (2, 0), (2, 0)] {
        assert_eq!(broker.topics.end_some(batch, DEADLINE).await, left);
        let is_open = |probe: &&Probe| probe.outbox.ended().is_none();
        assert_eq!(probes.iter().filter(is_open).count(), left);
    }
    for probe in &mut probes {
        assert_eq!(probe.next().await, "end: Shutdown");
        assert!(probe.has_heard_nothing());
    }
}

#[actix_web::test]
async fn the_fullest_gives_way_on_the_thread_where_too_much_waits_and_on_no_other() {
    let broker = Broker::start_with(|limits| limits.outboxes_bytes_max = 1_000);
    let other = broker.another_thread();
    let full = broker.stuck_session(1, 16).await;
    let reads_well = other.stuck_session(2, 16).await;
    for (probe, bytes) in [(&full, 2_000), (&reads_well, 100)] {
        let frame = Frame::Text("x".repeat(bytes).into());
        let frame = broker.topics.backlog().count(frame);
        assert!(probe.outbox.deliver(&frame, SUBSCRIPTION, None));
    }
    for thread in [&other, &broker] {
        thread.fanout.send(Relieve).await.expect("a fan-out");
    }
    assert_eq!(reads_well.outbox.ended(), None);
    assert_eq!(full.outbox.ended(), Some(Ending::SlowConsumer(Excess::AllBytes)));
}

#[actix_web::test]
async fn a_session_that_enters_while_all_are_ended_is_ended_as_well() {
    let broker = Broker::start();
    assert_eq!(broker.fanout.send(EndAll).await.expect("a fan-out"), 0);
    assert_eq!(broker.session(1).await.next().await, "end: Shutdown");
}

#[actix_web::test]
async fn a_fan_out_that_breaks_ends_also_the_sessions_that_were_entering_or_came_too_late() {
    let broker = Broker::start();
    let outbox = |id| Outbox::new(SessionId(id), Load { frames: 1, bytes: 1 });
    let [inside, on_its_way, too_late] = [1, 2, 3].map(outbox);
    broker.fanout.do_send(Enter::new(inside.clone(), About::default()));
    broker.fanout.do_send(Break);
    broker.fanout.do_send(Enter::new(on_its_way.clone(), About::default()));
    assert!(broker.fanout.send(EndAll).await.is_err(), "it is broken");
    broker.fanout.do_send(Enter::new(too_late.clone(), About::default()));
    for outbox in [inside, on_its_way, too_late] {
        assert_eq!(outbox.ended(), Some(Ending::Broken), "{outbox:?}");
    }
}

#[actix_web::test]
async fn a_fan_out_that_breaks_ends_its_sessions_and_another_takes_its_place() {
    let (mut broker, scope) = (Broker::start(), key(1, "public"));
    let mut deaf = broker.session(1).await;
    broker.join(&deaf, whole(&scope)).await.expect("a place");
    let backlog = broker.topics.backlog().clone();
    let _other = broker.another_thread().session(3).await;
    let whole_part = 2 * backlog.equal_part();
    assert!(broker.fanout.send(Break).await.is_err());
    assert_eq!(deaf.next().await, "end: Broken");
    assert_eq!(backlog.equal_part(), whole_part, "its session is no longer counted");
    let ThreadFanout { worker, addr, .. } = broker.topics.start_fanout();
    (broker.worker, broker.fanout) = (worker, addr);
    let mut back = broker.session(2).await;
    broker.join(&back, whole(&scope)).await.expect("a place");
    broker.publish(&scope, "#general", "msg").await;
    assert_eq!(back.next().await, "* msg");
}

#[actix_web::test]
async fn a_fan_out_that_breaks_leaves_nobody_who_is_sent_the_number_of_subscribers() {
    let (broker, room) = (Broker::start(), channel(&key(1, "public"), "room"));
    let there = broker.another_thread();
    let (mut counting, other) = (broker.session(1).await, there.session(2).await);
    there.join(&other, room.clone()).await.expect("a place");
    let (place, topic, format) = (room.clone(), "room".into(), Format::of(&COUNTING));
    let join = Subscription { place, topic, format, persona: None, user: None, wanted: None };
    broker.begin_attach(SUBSCRIPTION, &counting, join).await;
    assert_eq!(counting.next().await, "room: 2");
    let is_any_told = || {
        let stream = broker.topics.directory();
        stream.with(&room.key, |stream| stream.counts().is_any()).expect("a stream")
    };
    assert!(is_any_told());
    assert!(broker.fanout.send(Break).await.is_err());
    assert_eq!(counting.next().await, "end: Broken");
    assert!(!is_any_told());
}

mod bounds;
mod rounds;
