//! Tests of bounds: whatever comes at once, no session that keeps up is ended.

use super::*;

#[actix_web::test]
async fn a_publication_for_all_channels_drops_no_session_that_keeps_up() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probe = broker.session(1).await;
    // It joins more channels than its outbox holds frames.
    for nth in 0..64 {
        let place = channel(&scope, &format!("c{nth}"));
        broker.join(&probe, place).await.expect("a place");
    }
    broker.publish(&scope, "#general", "first").await;
    broker.publish(&scope, "c5", "second").await;
    let mut heard = Vec::new();
    for _ in 0..64 {
        heard.push(probe.next().await);
    }
    assert!(heard.iter().all(|frame| frame.ends_with(" #general:first")), "{heard:?}");
    assert_eq!(heard.iter().collect::<std::collections::HashSet<_>>().len(), 64);
    assert_eq!(probe.next().await, "c5 second", "in order, behind all of the first");
}

#[actix_web::test]
async fn a_batch_that_exceeds_an_outbox_stays_in_order_and_drops_no_session_that_keeps_up() {
    let broker = Broker::start_with(|limits| limits.publications_in_flight_max = 120);
    let (scope, other) = (key(1, "public"), key(2, "public"));
    // Only the other thread has subscribers of the other scope, so only that thread is sent its publications.
    let elsewhere = broker.another_thread();
    let (mut probe, mut neighbour) = (broker.session(1).await, elsewhere.session(2).await);
    broker.join(&probe, whole(&scope)).await.expect("a place");
    elsewhere.join(&neighbour, whole(&other)).await.expect("a place");
    // More publications than an outbox has room for: of one scope, of another, and of the first again.
    let events = |range: std::ops::Range<usize>, of| {
        let event = move |n: usize| publication(of, "#general", &format!("e{n}"));
        range.map(event).collect::<Vec<_>>()
    };
    let all = [events(0..50, &scope), events(50..70, &other), events(70..120, &scope)].concat();
    broker.topics.publish_all(all).await.expect("room");
    for n in (0..50).chain(70..120) {
        assert_eq!(probe.next().await, format!("* e{n}"));
    }
    for n in 50..70 {
        assert_eq!(neighbour.next().await, format!("* e{n}"));
    }
    assert!(probe.has_heard_nothing() && neighbour.has_heard_nothing());
    assert_eq!([probe.outbox.ended(), neighbour.outbox.ended()], [None, None]);
}

/// A format with a frame for each user that arrives, which the user's own session is not sent.
const EACH: Encoders = Encoders {
    slot: 1,
    encode_change: |_, Change { arrived, .. }| {
        let frame = |Arrival { member, sessions }: &Arrival| ChangeFrame {
            frame: Frame::Text(member.persona.key.clone()),
            except: sessions.clone(),
        };
        arrived.iter().map(frame).collect()
    },
    ..ENCODERS
};

#[actix_web::test]
async fn an_announcement_of_many_changes_drops_no_member_that_keeps_up() {
    const USERS: usize = 300;
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let room = || channel(&scope, "room");
    let persona = |key: String| Persona { key: key.into(), meta: Meta::default() };
    let mut members = Vec::new();
    for (id, format) in (0..).zip([Format::of(&EACH), FORMAT, Format::of(&EACH)]) {
        let probe = broker.session(id).await;
        let persona = Some(persona(format!("member {id}")));
        let (place, topic) = (room(), "room".into());
        let join = Subscription { place, topic, format, persona, user: None, wanted: None };
        broker.begin_attach(SUBSCRIPTION, &probe, join).await;
        probe.joined().await.expect("a place");
        members.push(probe);
    }
    let arrival = |nth: usize| {
        let persona = persona(format!("user {nth}"));
        let member = Arc::new(Member { persona, reference: "".into(), previous: None });
        Arrival { member, sessions: vec![SessionId(nth as u64)] }
    };
    let change = Change { arrived: (0..USERS).map(arrival).collect(), ..Change::default() };
    let name = ChannelName::parse("room").expect("a channel");
    let backlog = Backlog::new(1);
    let announcement =
        Arc::new(Announcement::new(scope.clone(), name, change, permit(), backlog.clone()));
    broker.fanout.do_send(Announce(announcement.clone()));
    broker.publish(&scope, "room", "behind it").await;
    for (id, probe) in members.iter_mut().enumerate() {
        let (mut heard, mut expected) = (Vec::new(), Vec::new());
        loop {
            let frame = probe.next().await;
            if frame == "room behind it" {
                break;
            }
            let is_meant = frame.starts_with("user ") || frame == "room +[] -[]";
            heard.extend(Some(frame).filter(|_| is_meant));
        }
        match id {
            1 => expected.push("room +[] -[]".to_owned()),
            _ => expected
                .extend((0..USERS).filter(|nth| *nth != id).map(|nth| format!("user {nth}"))),
        }
        assert_eq!(heard, expected);
        assert_eq!(probe.outbox.ended(), None);
    }
    assert!(backlog.is_exceeded(), "its frames count as long as they are kept");
    drop(announcement);
    assert!(!backlog.is_exceeded(), "all members have taken theirs");
}

#[actix_web::test]
async fn publications_with_more_bytes_than_an_outbox_holds_drop_no_session_that_keeps_up() {
    const PUBLICATIONS: usize = 16;
    let broker = Broker::start_with(|limits| limits.publications_in_flight_max = PUBLICATIONS);
    let scope = key(1, "public");
    let mut probe = broker.roomy_session(1).await;
    broker.join_for_bytes(&probe, whole(&scope)).await;
    // Together they are 1.6 times what the outbox holds.
    let payload = Payload::Bytes(vec![b'x'; 100_000].into());
    let one = Publication { payload, ..publication(&scope, "#general", "msg") };
    broker.topics.publish_all(vec![one; PUBLICATIONS]).await.expect("room");
    for _ in 0..PUBLICATIONS {
        assert!(probe.next().await.starts_with("b\"* msg xxx"));
    }
    assert_eq!(probe.outbox.ended(), None);
}

#[actix_web::test]
async fn what_is_asked_of_a_fan_out_at_once_drops_no_session_that_keeps_up() {
    const TIMES: usize = 200;
    const CHANNELS: usize = 64;
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probe = broker.session(1).await;
    // The first channel is joined under two names.
    let names = (0..CHANNELS).map(|nth| format!("c{nth}"));
    for (nth, topic) in names.chain(["again".to_owned()]).enumerate() {
        let (place, topic) = (channel(&scope, &format!("c{}", nth % CHANNELS)), topic.into());
        let format = Format::of(&COUNTING);
        let join = Subscription { place, topic, format, persona: None, user: None, wanted: None };
        broker.begin_attach(SubscriptionId(nth as u32), &probe, join).await;
        probe.joined().await.expect("a place");
    }
    for count in 0..TIMES {
        let (key, channel) = (scope.clone(), ChannelName::parse("c1").expect("a channel"));
        broker.fanout.do_send(TellCount { key, channel, count: 1_000 + count });
    }
    // Its own joins are counted, too.
    while probe.next().await != "c1: 1000" {}
    for count in 1..TIMES {
        assert_eq!(probe.next().await, format!("c1: {}", 1_000 + count));
    }

    let disconnect = Disconnect::Place(channel(&scope, "c1"));
    let disconnection = Arc::new(Disconnection::new(disconnect.clone()));
    (0..TIMES).for_each(|_| broker.fanout.do_send(EndJoins(disconnection.clone())));
    for _ in 0..TIMES {
        assert_eq!(probe.next().await, format!("disconnect: {disconnect:?}"));
    }

    (0..TIMES).for_each(|_| broker.fanout.do_send(AppChanged(AppId(1))));
    for _ in 0..TIMES {
        assert_eq!(probe.next().await, "app 1 changed");
    }

    let head = broker.head(&scope).expect("a stream");
    let begin = Beginning { head, interruptions: 1 };
    broker.fanout.do_send(Interrupt { key: scope.clone(), begin });
    let interrupted = probe.next().await;
    assert_eq!(interrupted.split(' ').count(), 1 + CHANNELS, "{interrupted}");
    assert_eq!(probe.outbox.ended(), None);
}
