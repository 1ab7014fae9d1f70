//! Tests of the turns of apps and the rounds of a thread: which tasks wait for others, and which frames leave
//! together.

use super::*;

/// The number of channels that a busy app's session has joined: one `#general` takes many turns.
const BUSY_CHANNELS: usize = 20 * PUBLICATIONS_PER_TURN;

/// A session of app 1 that has joined many channels, and one of app 2.
async fn busy_and_quiet(broker: &Broker) -> (Probe, Probe) {
    let (busy, quiet) = (broker.session(1).await, broker.session(2).await);
    for nth in 0..BUSY_CHANNELS {
        let place = channel(&key(1, "public"), &format!("c{nth}"));
        broker.join(&busy, place).await.expect("a place");
    }
    broker.join(&quiet, whole(&key(2, "public"))).await.expect("a place");
    (busy, quiet)
}

/// Checks that a session of a busy app has been handed the frames of few turns so far. (`quiet` has been handed its
/// frame.)
fn assert_came_within_turns(busy: &Probe) {
    let (frames, per_turn) = (busy.unread(), busy.outbox.load_per_turn().frames);
    assert!(frames <= 4 * per_turn, "{frames} frames came before it, at {per_turn} in a turn");
}

/// Publishes without waiting for the fan-outs.
async fn begin(broker: &Broker, app: i32, destination: &str, event: &str) -> Receipt {
    let publication = publication(&key(app, "public"), destination, event);
    broker.topics.publish(publication).await.expect("room for one more")
}

#[actix_web::test]
async fn an_app_whose_publications_take_long_delays_another_app_by_a_turn() {
    let broker = Broker::start();
    let (mut busy, mut quiet) = busy_and_quiet(&broker).await;
    for event in ["first", "second"] {
        begin(&broker, 1, "#general", event).await;
    }
    begin(&broker, 2, "#general", "msg").await;
    assert_eq!(quiet.next().await, "* msg");
    assert_came_within_turns(&busy);
    let mut heard: HashMap<String, Vec<String>> = HashMap::new();
    for _ in 0..2 * BUSY_CHANNELS {
        let frame = busy.next().await;
        let (topic, event) = frame.split_once(' ').expect("a topic and an event");
        heard.entry(topic.to_owned()).or_default().push(event.to_owned());
    }
    assert_eq!(heard.len(), BUSY_CHANNELS);
    for (topic, events) in heard {
        assert_eq!(events, ["#general:first", "#general:second"], "{topic}");
    }
    assert!(busy.has_heard_nothing() && quiet.has_heard_nothing());
}

#[actix_web::test]
async fn publications_of_apps_that_take_turns_keep_their_order() {
    let broker = Broker::start_with(|limits| limits.publications_in_flight_max = 100);
    let (mut busy, mut quiet) = busy_and_quiet(&broker).await;
    for nth in 0..10 {
        begin(&broker, 1, "#general", &format!("all{nth}")).await;
        begin(&broker, 1, "c0", &format!("one{nth}")).await;
        begin(&broker, 2, "#general", &format!("msg{nth}")).await;
    }
    for nth in 0..10 {
        assert_eq!(quiet.next().await, format!("* msg{nth}"));
    }
    let mut heard = Vec::new();
    for _ in 0..10 * (BUSY_CHANNELS + 1) {
        heard.extend(Some(busy.next().await).filter(|frame| frame.starts_with("c0 ")));
    }
    let expected = |nth| [format!("c0 #general:all{nth}"), format!("c0 one{nth}")];
    assert_eq!(heard, (0..10).flat_map(expected).collect::<Vec<_>>());
    assert!(busy.has_heard_nothing() && quiet.has_heard_nothing());
}

#[actix_web::test]
async fn a_join_waits_for_the_batches_of_its_app_before_it_and_for_those_of_no_other() {
    let broker = Broker::start();
    let (busy, _quiet) = busy_and_quiet(&broker).await;
    let (mut late, other) = (broker.session(3).await, broker.session(4).await);
    let subscribe = |place: Place| {
        let (topic, format) = ("late".into(), FORMAT);
        Subscription { place, topic, format, persona: None, user: None, wanted: None }
    };
    let first = begin(&broker, 1, "#general", "first").await.positions()[0];
    // It joins all channels, so some of them are yet to be reached by the first publication, wherever that is now.
    for nth in 0..BUSY_CHANNELS {
        let id = SubscriptionId(100 + nth as u32);
        let place = channel(&key(1, "public"), &format!("c{nth}"));
        let attach = Attach { session: late.session, id, subscription: subscribe(place) };
        broker.fanout.do_send(attach);
    }
    let place = whole(&key(2, "public"));
    broker.begin_attach(SUBSCRIPTION, &other, subscribe(place)).await;
    other.joined().await.expect("a place");
    assert_came_within_turns(&busy);
    begin(&broker, 1, "#general", "second").await;
    for _ in 0..BUSY_CHANNELS {
        assert_eq!(late.joined().await.expect("a place").boundary, first);
    }
    for _ in 0..BUSY_CHANNELS {
        assert_eq!(late.next().await, "late #general:second", "and nothing of the first");
    }
    assert!(late.has_heard_nothing());
}

#[actix_web::test]
async fn a_disconnect_arrives_after_the_publications_before_it() {
    let broker = Broker::start();
    let (mut busy, _quiet) = busy_and_quiet(&broker).await;
    begin(&broker, 1, "#general", "last").await;
    let disconnect = Disconnect::Place(channel(&key(1, "public"), "c0"));
    broker.topics.disconnect(disconnect.clone()).await.expect("all to be told");
    for _ in 0..BUSY_CHANNELS {
        let frame = busy.next().await;
        assert!(frame.ends_with(" #general:last"), "{frame}");
    }
    assert_eq!(busy.next().await, format!("disconnect: {disconnect:?}"));
}

#[actix_web::test]
async fn a_thread_awaits_the_batch_that_waits_though_a_newer_one_was_handed_out() {
    let mut broker = Broker::start();
    let thread = broker.topics.start_fanout();
    (broker.worker, broker.fanout) = (thread.worker, thread.addr.clone());
    let (mut busy, mut quiet) = busy_and_quiet(&broker).await;
    for event in ["first", "second"] {
        begin(&broker, 1, "#general", event).await;
    }
    begin(&broker, 2, "#general", "msg").await;
    assert_eq!(quiet.next().await, "* msg");
    assert!(thread.awaits_more(), "the second waits");
    for _ in 0..=BUSY_CHANNELS {
        busy.next().await;
    }
    assert!(!thread.awaits_more(), "all are begun");
}

#[actix_web::test]
async fn the_sessions_of_a_busy_app_are_woken_a_few_at_a_time_and_those_of_others_in_between() {
    for (channels, sessions) in [(1, 160), (20, 100), (100, 30)] {
        let per_round = sessions_per_round(channels);
        let broker = Broker::start();
        let mut busy = Vec::new();
        for id in 0..sessions {
            let probe = broker.roomy_session(id as u64).await;
            for nth in 0..channels {
                let place = channel(&key(1, "public"), &format!("c{nth}"));
                broker.join(&probe, place).await.expect("a place");
            }
            busy.push(probe);
        }
        let mut quiet = broker.roomy_session(sessions as u64).await;
        broker.join(&quiet, whole(&key(2, "public"))).await.expect("a place");
        begin(&broker, 1, "#general", "msg").await;
        begin(&broker, 2, "#general", "msg").await;
        assert_eq!(quiet.next().await, "* msg");
        let meanwhile = busy.iter().filter(|probe| probe.unread() > 0).count();
        assert!(meanwhile <= 4 * per_round, "{meanwhile} sessions were woken before it");
        for probe in &mut busy {
            for _ in 0..channels {
                probe.next().await;
            }
            assert!(probe.has_heard_nothing());
        }
    }
}

/// Counts how often a session is woken. It must not use the outbox, which is locked while it wakes a session
/// that is being ended.
#[derive(Default)]
struct Woken(AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Notes after which look of the thread at its sockets a session is woken.
struct NotingLook {
    /// The number of looks so far.
    looks: Arc<AtomicUsize>,
    /// The number of sessions that were woken after each look.
    woken: Arc<Mutex<HashMap<usize, usize>>>,
}

impl std::task::Wake for NotingLook {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().expect("no panic").entry(self.looks.load(SeqCst)).or_default() += 1;
    }
}

/// Counts how often the thread looks at its sockets, until the task is aborted.
fn count_looks(looks: Arc<AtomicUsize>) -> actix_rt::task::JoinHandle<()> {
    actix::spawn(async move {
        loop {
            pause().await;
            looks.fetch_add(1, SeqCst);
        }
    })
}

#[actix_web::test]
async fn publications_that_nobody_hears_take_no_part_of_a_turn() {
    const UNHEARD: usize = 20 * PUBLICATIONS_PER_TURN;
    let broker = Broker::start_with(|limits| limits.publications_in_flight_max = UNHEARD + 1);
    let mut probe = broker.session(1).await;
    broker.join(&probe, channel(&key(1, "public"), "heard")).await.expect("a place");
    let looks = Arc::<AtomicUsize>::default();
    let look = count_looks(looks.clone());
    let unheard = (0..UNHEARD).map(|_| "unheard");
    let publications =
        unheard.chain(["heard"]).map(|name| publication(&key(1, "public"), name, "msg"));
    broker.topics.publish_all(publications.collect()).await.expect("room for all");
    assert_eq!(probe.next().await, "heard msg");
    look.abort();
    // Each turn would end with a look.
    assert!(looks.load(SeqCst) <= 2, "{looks:?} looks");
}

#[actix_web::test]
async fn publications_hold_their_permits_until_the_fan_out_has_handed_them_out() {
    let broker = Broker::start_with(|limits| limits.publications_in_flight_max = 4);
    let mut probe = broker.session(1).await;
    let scopes = ["public", "public", "other"].map(|scope| key(1, scope));
    for scope in &scopes[1..] {
        broker.join(&probe, whole(scope)).await.expect("a place");
    }
    let publications = scopes.iter().map(|scope| publication(scope, "#general", "msg")).collect();
    broker.topics.publish_all(publications).await.expect("room for all");
    let (permits, app) = (broker.topics.permits(), AppId(1));
    let last = permits.take_at_once(app);
    assert!(last.is_some() && permits.take_at_once(app).is_none(), "three of four are held");
    drop(last);
    for _ in &scopes {
        assert_eq!(probe.next().await, "* msg");
    }
    let all = tokio::time::timeout(DEADLINE, permits.take(app, 4)).await;
    assert!(all.expect("in time").is_some());
}

#[actix_web::test]
async fn the_thread_looks_at_its_sockets_after_every_round_however_many_rounds_a_batch_took() {
    const CHANNELS: usize = 60;
    const SESSIONS: usize = 100;
    let (broker, looks, woken) = (Broker::start(), Arc::<AtomicUsize>::default(), Arc::default());
    let mut outboxes = Vec::new();
    for id in 0..SESSIONS {
        let probe = broker.stuck_session(id as u64, 1_024).await;
        for nth in 0..CHANNELS {
            let place = channel(&key(1, "public"), &format!("c{nth}"));
            broker.join(&probe, place).await.expect("a place");
        }
        let noting = NotingLook { looks: looks.clone(), woken: Arc::clone(&woken) };
        probe.outbox.take_frames(Some(&Waker::from(Arc::new(noting))), |_, _| true);
        outboxes.push(probe.outbox);
    }
    let look = count_looks(looks.clone());
    begin(&broker, 1, "#general", "msg").await;
    let all_are_woken = async {
        while woken.lock().expect("no panic").values().sum::<usize>() < SESSIONS {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, all_are_woken).await.expect("in time");
    look.abort();
    let most = woken.lock().expect("no panic").values().copied().max();
    // The runtime polls the fan-out and the task that counts looks in an order that alternates, so two rounds may
    // be noted under the same look.
    assert!(most <= Some(2 * sessions_per_round(CHANNELS)), "{most:?} were woken after one look");
}

#[actix_web::test]
async fn one_for_all_channels_wakes_a_session_once_for_all_of_them() {
    const SESSIONS: usize = 8;
    let scopes = [(key(1, "public"), 100), (key(1, "other"), 30), (key(1, "third"), 15)];
    // Whatever the app has published before, each of these publications leaves in one write.
    let published = [0, 1, 0, 0, 2, 0, 2, 1, 0];
    let broker = Broker::start_with(|limits| limits.scopes_per_app_max = scopes.len());
    let mut sessions = Vec::new();
    for id in 0..SESSIONS {
        let probe = broker.stuck_session(id as u64, 1_024).await;
        for (scope, channels) in &scopes {
            for nth in 0..*channels {
                let place = channel(scope, &format!("c{nth}"));
                broker.join(&probe, place).await.expect("a place");
            }
        }
        sessions.push((probe.outbox.clone(), Arc::new(Woken::default()), Vec::new()));
    }
    let take = |outbox: &Outbox, woken: &Arc<Woken>| {
        let mut taken = 0;
        outbox.take_frames(Some(&Waker::from(woken.clone())), |_, _| {
            taken += 1;
            true
        });
        taken
    };
    for (outbox, woken, _) in &sessions {
        assert_eq!(take(outbox, woken), 0, "nothing was published");
    }
    for nth in published {
        let (scope, channels) = &scopes[nth];
        let publication = publication(scope, "#general", "msg");
        broker.topics.publish(publication).await.expect("room for one more");
        let all_are_taken = async {
            while sessions.iter().any(|(_, _, taken)| taken.iter().sum::<usize>() < *channels) {
                pause().await;
                // A session that is woken takes all waiting frames, as a pump does.
                for (outbox, woken, taken) in &mut sessions {
                    if woken.0.swap(0, SeqCst) > 0 {
                        taken.push(take(outbox, woken));
                    }
                }
            }
        };
        tokio::time::timeout(DEADLINE, all_are_taken).await.expect("in time");
        for (_, _, taken) in &mut sessions {
            assert_eq!(std::mem::take(taken), [*channels], "in {scope:?}");
        }
        // The thread is idle for a moment, so that the app may begin a new turn.
        for _ in 0..4 {
            pause().await;
        }
    }
}

#[actix_web::test]
async fn publications_that_come_one_by_one_leave_together_while_sessions_write() {
    const SESSIONS: usize = 200;
    const EVENTS: usize = 32;
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let (writes, mut sessions) = (Rc::new(Cell::new(0)), Vec::new());
    for id in 0..SESSIONS {
        let probe = broker.stuck_session(id as u64, 1_024).await;
        broker.join(&probe, whole(&scope)).await.expect("a place");
        let (outbox, writes) = (probe.outbox.clone(), writes.clone());
        // A session that is woken takes all waiting frames, as a pump does.
        sessions.push(actix::spawn(async move {
            let mut left = EVENTS;
            poll_fn(|cx| {
                let before = left;
                outbox.take_frames(Some(cx.waker()), |_, _| {
                    left -= 1;
                    true
                });
                writes.set(writes.get() + usize::from(left < before));
                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }));
    }
    // The publisher's next request is read once the thread has looked at its sockets.
    let publisher = async {
        for nth in 0..EVENTS {
            begin(&broker, 1, "#general", &format!("e{nth}")).await;
            pause().await;
        }
        for session in sessions {
            session.await.expect("no panic");
        }
    };
    tokio::time::timeout(DEADLINE, publisher).await.expect("in time");
    let frames = SESSIONS * EVENTS;
    assert!(4 * writes.get() <= frames, "{frames} frames left in {} writes", writes.get());
}
