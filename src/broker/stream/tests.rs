//! Streams among fan-outs and probes, then under as much load as goes.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    super::{
        Topics,
        connections::About,
        fanout::{Attach, Detach, Enter, ThreadFanout},
        outbox::{Load, News, Outbox, ToSession},
        position::Epoch,
        presence::{Meta, Persona},
        subscriber::{Frame, Place, SessionId, SubscribeError, Subscription, SubscriptionId},
        testing::{
            Broker, DEADLINE, FORMAT, SUBSCRIPTION, Stall, channel, key, publication, whole,
        },
    },
    *,
};

#[actix_web::test]
async fn a_stream_is_forgotten_with_its_last_subscriber_and_begins_anew_with_the_next() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probe = broker.session(1).await;
    let mut epochs = Vec::new();
    for round in 0..3 {
        for place in [whole(&scope), channel(&scope, "room")] {
            broker.join(&probe, place).await.expect("a place");
        }
        broker.leave(&probe, whole(&scope)).await;
        broker.publish(&scope, "room", "heard").await;
        assert_eq!(probe.next().await, "room heard", "round {round}");
        let head = broker.head(&scope).expect("a stream");
        assert_eq!(head.offset, 1, "round {round}");
        epochs.push(head.epoch);
        broker.leave(&probe, channel(&scope, "room")).await;
        assert_eq!(broker.head(&scope), None, "round {round}: it is forgotten");
        broker.publish(&scope, "room", "missed").await;
        assert!(probe.has_heard_nothing(), "round {round}");
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2] && epochs[0] != epochs[2]);
}

#[actix_web::test]
async fn positions_are_known_when_publishing_returns() {
    let (broker, scope, other) = (Broker::start(), key(1, "public"), key(2, "public"));
    let probe = broker.session(1).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    let head = broker.head(&scope).expect("a stream");
    let at = |offset| StreamPosition { offset, ..head };
    let to = |scope: &ScopeKey| publication(scope, "room", "msg");
    let first = broker.topics.publish(to(&scope)).await.expect("room");
    assert_eq!(first.positions(), [at(1)]);
    let all = vec![to(&scope), to(&other), to(&other), to(&scope), to(&scope)];
    let receipt = broker.topics.publish_all(all).await.expect("room");
    let [second, unheard, next_unheard, third, fourth] = receipt.positions() else {
        panic!("{receipt:?}");
    };
    assert_eq!([second, third, fourth], [&at(2), &at(3), &at(4)]);
    assert_eq!((unheard.offset, next_unheard.offset), (1, 2));
    let again = broker.topics.publish(to(&other)).await.expect("room").positions()[0];
    assert_eq!((unheard.epoch, again.offset), (next_unheard.epoch, 1));
    assert!(again.epoch != unheard.epoch && again.epoch != head.epoch);
}

#[actix_web::test]
async fn a_stream_stays_while_a_join_and_a_leave_cross() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let (going, mut coming) = (broker.session(1).await, broker.session(2).await);
    broker.join(&going, whole(&scope)).await.expect("a place");
    for round in 0..50 {
        let leaving = broker.leave(&going, whole(&scope));
        let joining = broker.join(&coming, whole(&scope));
        let (_, joined) = tokio::join!(leaving, joining);
        joined.expect("a place");
        broker.publish(&scope, "#general", "msg").await;
        assert_eq!(coming.next().await, "* msg", "round {round}");
        broker.leave(&coming, whole(&scope)).await;
        broker.join(&going, whole(&scope)).await.expect("a place");
    }
}

/// Keeps the fan-out of a thread from its messages until what is answered is dropped.
async fn stall(broker: &Broker) -> oneshot::Sender<()> {
    let (end, stalled) = oneshot::channel();
    broker.fanout.send(Stall(stalled)).await.expect("a fan-out");
    end
}

#[actix_web::test]
async fn a_join_waits_for_no_other_thread() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let elsewhere = broker.another_thread();
    let (mut here, mut there) = (broker.session(1).await, elsewhere.session(2).await);
    elsewhere.join(&there, whole(&scope)).await.expect("a place");
    let end = stall(&elsewhere).await;
    broker.join(&here, channel(&scope, "room")).await.expect("a place at once");
    broker.topics.publish(publication(&scope, "room", "msg")).await.expect("room");
    assert_eq!(here.next().await, "room msg");
    drop(end);
    assert_eq!(there.next().await, "* room:msg");
}

fn subscription(place: Place) -> Subscription {
    Subscription {
        place,
        topic: "*".into(),
        format: FORMAT,
        persona: None,
        user: None,
        wanted: None,
    }
}

#[actix_web::test]
async fn a_join_just_after_the_last_subscriber_has_left_hears_no_gap() {
    for has_witness in [true, false] {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let elsewhere = broker.another_thread();
        let (first, mut second) = (broker.session(1).await, broker.session(2).await);
        let mut witness = elsewhere.session(3).await;
        broker.join(&first, whole(&scope)).await.expect("a place");
        if has_witness {
            elsewhere.join(&witness, whole(&scope)).await.expect("a place");
        }
        let end = stall(&broker).await;
        // In the fan-out's mailbox, in this order: it is told that the last has left, and that
        // another comes, before it gets to what was published for the last.
        let (session, id, place) = (first.session, SUBSCRIPTION, whole(&scope));
        broker.fanout.do_send(Detach { session, id, place });
        let (session, subscription) = (second.session, subscription(whole(&scope)));
        broker.fanout.do_send(Attach { session, id, subscription });
        let publish = |event| broker.topics.publish(publication(&scope, "#general", event));
        let last = publish("for the old").await.expect("room").positions()[0];
        drop(end);
        let boundary = second.joined().await.expect("a place").boundary;
        assert_eq!(boundary == last, has_witness, "without a witness the order begins anew");
        publish("for the new").await.expect("room");
        assert_eq!(second.next().await, "* for the new");
        if has_witness {
            for event in ["for the old", "for the new"] {
                assert_eq!(witness.next().await, format!("* {event}"));
            }
        }
    }
}

#[actix_web::test]
async fn the_boundary_of_a_join_lies_just_before_the_first_that_it_hears() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let (first, mut second) = (broker.session(1).await, broker.session(2).await);
    broker.join(&first, whole(&scope)).await.expect("a place");
    let publish = || broker.topics.publish(publication(&scope, "#general", "msg"));
    let position = async || publish().await.expect("room").positions()[0];
    let (one, two) = (position().await, position().await);
    let subscription = subscription(whole(&scope));
    broker.begin_attach(SUBSCRIPTION, &second, subscription.clone()).await;
    assert_eq!(second.joined().await.expect("a place").boundary, two);
    assert!(second.has_heard_nothing());
    let three = position().await;
    assert_eq!(second.next().await, "* msg");
    // Joined anew, it is told what it has heard already.
    broker.begin_attach(SUBSCRIPTION, &second, subscription).await;
    assert_eq!(second.joined().await.expect("a place").boundary, three);
    assert!(one.offset < two.offset && two.offset < three.offset);
}

#[actix_web::test]
async fn a_publisher_waits_for_its_place_in_the_order_and_not_for_any_thread() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probe = broker.session(1).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    let in_flight_max = broker.topics.limits().publications_in_flight_max;
    for n in 0..in_flight_max {
        let event = format!("e{n}");
        let publish = broker.topics.publish(publication(&scope, "#general", &event));
        // No other task has run since.
        assert!(publish.now_or_never().is_some_and(|taken| taken.is_ok()), "{event}");
        assert!(probe.has_heard_nothing(), "{event}");
    }
    let one_more = broker.topics.publish(publication(&scope, "#general", "one more"));
    assert!(one_more.now_or_never().is_none(), "there is room for so many and no more");
    for n in 0..in_flight_max {
        assert_eq!(probe.next().await, format!("* e{n}"));
    }
}

#[actix_web::test]
async fn an_app_that_publishes_all_it_may_does_not_keep_another_from_publishing() {
    let broker = Broker::start();
    let mut probes = Vec::new();
    for (session, app) in [(1, 1), (2, 2)] {
        let probe = broker.session(session).await;
        broker.join(&probe, whole(&key(app, "public"))).await.expect("a place");
        probes.push(probe);
    }
    let publish = |app| broker.topics.publish(publication(&key(app, "public"), "#general", "msg"));
    let mut loud = 0;
    while publish(1).now_or_never().is_some() {
        loud += 1;
    }
    assert_eq!(loud, broker.topics.limits().publications_in_flight_max);
    assert!(publish(2).now_or_never().is_some_and(|taken| taken.is_ok()), "the quiet app's event");
    assert_eq!(probes[1].next().await, "* msg");
    for _ in 0..loud {
        assert_eq!(probes[0].next().await, "* msg");
    }
}

#[actix_web::test]
async fn an_app_has_subscribers_in_a_limited_number_of_scopes() {
    let broker = Broker::start();
    let probe = broker.session(1).await;
    for scope in ["one", "two"] {
        broker.join(&probe, whole(&key(1, scope))).await.expect("a place");
    }
    let third = whole(&key(1, "three"));
    let refused = broker.join(&probe, third.clone()).await;
    assert_eq!(refused, Err(SubscribeError::TooManyScopes));
    broker.leave(&probe, third.clone()).await;
    broker.join(&probe, whole(&key(2, "three"))).await.expect("another app's");
    broker.leave(&probe, whole(&key(1, "one"))).await;
    broker.join(&probe, third).await.expect("a place that became free");
}

/// The publications that one join received after its boundary.
struct Run {
    boundary: StreamPosition,
    events: Vec<String>,
}

/// Joins and leaves again and again on the thread that it is called on.
async fn join_again(
    topics: Topics,
    session: u64,
    place: Place,
    persona: Option<Persona>,
) -> Vec<Run> {
    const ROUNDS: u32 = 60;
    let ThreadFanout { addr: fanout, .. } = topics.start_fanout();
    let session = SessionId(session);
    let outbox = Outbox::new(session, Load { frames: 1 << 20, bytes: 1 << 30 });
    fanout.do_send(Enter::new(outbox.clone(), About::default()));
    let mut runs = Vec::new();
    for round in 0..ROUNDS {
        let id = SubscriptionId(round);
        let subscription = Subscription {
            place: place.clone(),
            topic: "".into(),
            format: FORMAT,
            persona: persona.clone(),
            user: None,
            wanted: None,
        };
        fanout.do_send(Attach { session, id, subscription });
        let mut run: Option<Run> = None;
        let wanted = usize::try_from(round % 7).expect("few");
        while run.as_ref().is_none_or(|run| run.events.len() < wanted) {
            match (poll_fn(|cx| outbox.poll_take(cx)).await, &mut run) {
                (ToSession::News(News::Joined(answered, Ok(joined))), None) => {
                    assert_eq!(answered, id);
                    run = Some(Run { boundary: joined.boundary, events: Vec::new() });
                }
                (ToSession::Frame(Frame::Text(text), _), Some(run)) => {
                    // Changes of members are heard as well, and have no place in the order.
                    let event = text.rsplit([' ', ':']).next().unwrap_or_default();
                    run.events.extend(event.starts_with('e').then(|| event.to_owned()));
                }
                (other, _) => panic!("{other:?}"),
            }
        }
        runs.extend(run);
        outbox.leave(id);
        fanout.do_send(Detach { session, id, place: place.clone() });
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    runs
}

/// Publishes as fast as goes until it is over; answers what stands where.
fn publish_until(
    over: &AtomicBool,
    topics: &Topics,
    scope: &ScopeKey,
    publisher: usize,
) -> Vec<(StreamPosition, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let mut published = Vec::new();
    for n in (0..).take_while(|_| !over.load(SeqCst)) {
        let (event, destination) = (format!("e{publisher}-{n}"), ["room", "#general"][n % 2]);
        let publish = topics.publish(publication(scope, destination, &event));
        let receipt = runtime.block_on(publish).expect("room in time");
        published.push((receipt.positions()[0], event));
    }
    published
}

/// The place and the persona of a joiner. All hear the same: the scope, or its only channel.
fn way_of(joiner: u64, scope: &ScopeKey) -> (Place, Option<Persona>) {
    let persona = || Persona { key: "k".into(), meta: Meta::default() };
    match joiner % 3 {
        0 => (whole(scope), None),
        1 => (channel(scope, "room"), None),
        _ => (channel(scope, "room"), Some(persona())),
    }
}

#[actix_web::test]
async fn nothing_is_missed_or_heard_twice_while_streams_and_trackers_come_and_go_at_full_rate() {
    const JOINERS: u64 = 6;
    const PUBLISHERS: usize = 2;
    let (broker, scope) = (Broker::start(), key(1, "presence"));
    let over = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|nth| {
            let (over, topics, scope) = (over.clone(), broker.topics.clone(), scope.clone());
            thread::spawn(move || publish_until(&over, &topics, &scope, nth))
        })
        .collect();
    let (sender, mut all_runs) = mpsc::unbounded_channel();
    let arbiters: Vec<_> = (0..JOINERS)
        .map(|joiner| {
            let (topics, sender, arbiter) = (broker.topics.clone(), sender.clone(), Arbiter::new());
            let (place, persona) = way_of(joiner, &scope);
            arbiter.spawn(async move {
                topics.add_worker();
                let runs = join_again(topics, joiner, place, persona).await;
                sender.send(runs).expect("the test waits");
            });
            arbiter
        })
        .collect();
    let mut runs: Vec<Run> = Vec::new();
    for _ in 0..JOINERS {
        let joined = timeout(6 * DEADLINE, all_runs.recv()).await;
        runs.extend(joined.expect("nobody waits for what it misses").expect("no panic"));
    }
    over.store(true, SeqCst);
    let published =
        publishers.into_iter().flat_map(|publisher| publisher.join().expect("no panic"));
    let mut orders: HashMap<Epoch, BTreeMap<u64, String>> = HashMap::new();
    for (position, event) in published {
        let order = orders.entry(position.epoch).or_default();
        assert_eq!(order.insert(position.offset, event), None, "{position:?} was given twice");
    }
    let heard: usize = runs.iter().map(|run| run.events.len()).sum();
    assert!(heard > 500, "only {heard} events were heard: that is no load");
    for Run { boundary, events } in runs.iter().filter(|run| !run.events.is_empty()) {
        let behind = orders[&boundary.epoch].range(boundary.offset + 1..);
        let expected: Vec<_> = behind.map(|(_, event)| event.clone()).take(events.len()).collect();
        assert_eq!(*events, expected, "behind {boundary:?}");
    }
    for arbiter in arbiters {
        arbiter.stop();
    }
}
