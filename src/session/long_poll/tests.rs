//! A session over long-poll, with a conversation that does as it is told.

mod abandoned;
mod other_node;

use std::time::Instant;

use futures_util::future::join_all;

use super::{
    actor::{FAREWELL_MAX, INBOX_BYTES_MAX, LATE_FETCHES_MAX},
    *,
};
use crate::metrics::labels::{Limit, SessionEnd};
use crate::session::{
    bucket::PerSecond,
    testing::{Bench, DEADLINE, Obedient, limits},
    worker::SessionLimits,
};

/// A thread's long-poll sessions.
struct Polls {
    bench: Bench,
    all: LongPolls,
}

impl Polls {
    fn new(limits: SessionLimits, times: LongPollTimes) -> Self {
        Self { bench: Bench::new(limits), all: LongPolls::new(times) }
    }

    fn roomy() -> Self {
        Self::new(limits(), times(DEADLINE))
    }

    fn open(&self) -> Uuid {
        self.all.open(Obedient::default(), &self.bench.worker).expect("room for a session")
    }

    /// A session that was fetched: both requests are there before it can lose patience.
    async fn open_and_fetch(&self) -> Uuid {
        let id = self.open();
        let (fetched, posted) = tokio::join!(self.all.poll(id), self.post(id, &["hello"]));
        assert_eq!((fetched, posted), (frames(&["hello"]), Posted::Done));
        id
    }

    async fn post(&self, id: Uuid, orders: &[&str]) -> Posted {
        self.all.post(id, texts(orders)).await
    }

    /// A fetch that is parked in its session.
    async fn parked(&self, id: Uuid) -> tokio::task::JoinHandle<Polled> {
        let all = self.all.clone();
        let fetch = tokio::task::spawn_local(async move { all.poll(id).await });
        // The fetch reaches the session's mailbox before this post, so it is parked when the post is done.
        tokio::task::yield_now().await;
        assert_eq!(self.post(id, &[]).await, Posted::Done);
        fetch
    }

    /// Waits until no session is left, neither listed nor counted.
    async fn until_none(&self) {
        let none = async {
            while self.bench.sessions.open() > 0 || !lock(&self.all).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, none).await.expect("sessions end in time");
    }
}

fn lock(all: &LongPolls) -> Vec<Uuid> {
    all.sessions.read().keys().copied().collect()
}

fn times(window: Duration) -> LongPollTimes {
    LongPollTimes { window, unjoined_max: DEADLINE }
}

fn texts(orders: &[&str]) -> Vec<Received> {
    orders.iter().map(|&order| Received::Text(order.into())).collect()
}

fn frames(texts: &[&str]) -> Polled {
    Polled::Frames(texts.iter().map(|&text| Frame::Text(text.into())).collect())
}

#[actix_web::test]
async fn waiting_frames_are_fetched_at_once_and_only_once() {
    let polls = Polls::new(limits(), times(Duration::from_millis(500)));
    let id = polls.open_and_fetch().await;
    assert_eq!(polls.post(id, &["a", "b"]).await, Posted::Done);
    assert_eq!(polls.post(id, &["c"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["a", "b", "c"]));
    assert_eq!(polls.all.poll(id).await, frames(&[]), "after its window");
}

#[actix_web::test]
async fn a_parked_poll_delivers_new_frames() {
    let polls = Polls::roomy();
    let id = polls.open();
    let parked = polls.parked(id).await;
    assert_eq!(polls.post(id, &["join", "a"]).await, Posted::Done);
    assert_eq!(parked.await.expect("a fetch"), frames(&["joined", "a"]));
    let parked = polls.parked(id).await;
    polls.bench.publish(r#"{"n":1}"#).await;
    assert_eq!(parked.await.expect("a fetch"), frames(&[r#"{"n":1}"#]));
}

#[actix_web::test]
async fn the_later_of_two_fetches_counts() {
    let polls = Polls::roomy();
    let id = polls.open();
    let first = polls.parked(id).await;
    let second = polls.parked(id).await;
    assert_eq!(first.await.expect("a fetch"), frames(&[]));
    assert_eq!(polls.post(id, &["a"]).await, Posted::Done);
    assert_eq!(second.await.expect("a fetch"), frames(&["a"]));
}

#[actix_web::test]
async fn a_fetch_that_was_given_up_keeps_nothing_and_takes_nothing_over() {
    let polls = Polls::roomy();
    let id = polls.open();
    let parked = polls.parked(id).await;
    parked.abort();
    assert!(parked.await.is_err(), "given up");
    assert_eq!(polls.post(id, &["a"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["a"]));
    // A fetch that is given up before its turn comes does not take over from a live one.
    let live = polls.parked(id).await;
    let (answer, _) = oneshot::channel();
    polls.all.find(id).expect("a session").send(Poll(answer)).await.expect("a session");
    assert_eq!(polls.post(id, &["b"]).await, Posted::Done);
    assert_eq!(live.await.expect("a fetch"), frames(&["b"]));
}

#[actix_web::test]
async fn frames_that_arrive_at_the_end_of_a_window_are_not_lost() {
    const MESSAGES: usize = 500;
    const WINDOW: Duration = Duration::from_millis(1);
    let all = LongPolls::new(times(DEADLINE));
    let elsewhere = Arbiter::new();
    let (opened, opens) = oneshot::channel();
    let theirs = all.clone();
    elsewhere.spawn_fn(move || {
        let id = theirs.open(Obedient::default(), &Bench::new(limits()).worker);
        opened.send(id.expect("room for a session")).expect("the test waits");
    });
    let id = opens.await.expect("a session");
    // The session has time; only these fetches have none.
    let hasty = LongPolls { times: times(WINDOW), ..all.clone() };
    let posts = async {
        let mut pace = tokio::time::interval(WINDOW);
        for n in 0..MESSAGES {
            pace.tick().await;
            assert_eq!(all.post(id, texts(&[&n.to_string()])).await, Posted::Done);
        }
    };
    let (mut heard, mut empty) = (Vec::new(), 0);
    let fetches = async {
        while heard.len() < MESSAGES {
            match hasty.poll(id).await {
                Polled::Frames(frames) if frames.is_empty() => empty += 1,
                Polled::Frames(frames) => heard.extend(frames),
                Polled::Gone => panic!("it lives"),
            }
        }
    };
    timeout(DEADLINE, async { tokio::join!(posts, fetches) }).await.expect("none is missing");
    let expected = (0..MESSAGES).map(|n| Frame::Text(n.to_string().into()));
    assert!(heard.into_iter().eq(expected));
    assert!(empty > 0, "windows have ended");
    elsewhere.stop();
}

#[actix_web::test]
async fn a_session_whose_outbox_overflows_ends() {
    for (case, limits) in [
        ("frames", SessionLimits { outbox_frames_max: 3, ..limits() }),
        ("bytes", SessionLimits { outbox_bytes_max: 3, ..limits() }),
    ] {
        let polls = Polls::new(limits, times(DEADLINE));
        let (id, keeps_up) = (polls.open(), polls.open());
        for id in [id, keeps_up] {
            assert_eq!(polls.post(id, &["a", "b", "c"]).await, Posted::Done, "{case}");
        }
        assert_eq!(polls.all.poll(keeps_up).await, frames(&["a", "b", "c"]), "{case}");
        for id in [id, keeps_up] {
            let expected = if id == keeps_up { Posted::Done } else { Posted::Gone };
            assert_eq!(polls.post(id, &["d"]).await, expected, "{case}");
        }
        assert_eq!(polls.all.poll(id).await, Polled::Gone, "{case}");
        assert_eq!(polls.bench.sessions.open(), 1, "{case}");
    }
}

#[actix_web::test]
async fn a_fetch_that_waits_makes_room_in_the_middle_of_a_batch() {
    let limits = SessionLimits { outbox_frames_max: 3, ..limits() };
    let polls = Polls::new(limits, times(DEADLINE));
    let id = polls.open();
    let parked = polls.parked(id).await;
    assert_eq!(polls.post(id, &["a", "b", "c", "d", "e", "f"]).await, Posted::Done);
    assert_eq!(parked.await.expect("a fetch"), frames(&["a", "b", "c", "d"]));
    assert_eq!(polls.all.poll(id).await, frames(&["e", "f"]));
}

#[actix_web::test]
async fn a_client_that_sends_more_than_may_wait_for_its_turn_is_ended() {
    let large = "x".repeat(INBOX_BYTES_MAX / 2);
    for (case, order, requests, messages, expected) in [
        ("as many as may", "x", 4, 99, Posted::Done),
        ("too many", "x", 5, 99, Posted::Gone),
        ("one large request", large.as_str(), 1, 3, Posted::Done),
        ("too heavy", large.as_str(), 4, 1, Posted::Gone),
    ] {
        let limits = SessionLimits { outbox_bytes_max: 1 << 30, ..limits() };
        let polls = Polls::new(limits, times(DEADLINE));
        let id = polls.open();
        // The first message has to wait for the broker, and all others behind it.
        let first = polls.post(id, &["publish"]);
        let orders = vec![order; messages];
        let others = (0..requests).map(|_| polls.post(id, &orders));
        let (_, posted) = tokio::join!(first, join_all(others));
        assert_eq!(posted, vec![expected; requests], "{case}");
        if expected == Posted::Gone {
            polls.until_none().await;
        }
        let ended = &polls.bench.worker.metrics.sessions_ended;
        let times = u64::from(expected == Posted::Gone);
        assert_eq!(ended.of(SessionEnd::InboxFull).get(), times, "{case}");
        assert_eq!(ended.of(SessionEnd::Left).get(), 0, "{case}");
    }
}

#[actix_web::test]
async fn messages_that_need_not_wait_are_answered_while_a_join_hangs() {
    let polls = Polls::roomy();
    let standstill = polls.bench.standstill().await;
    let id = polls.open();
    let posts = async {
        // Behind the join in one batch, and in another request.
        let batch = polls.post(id, &["join", "a", "now 1", "join", "b"]);
        let other = polls.post(id, &["c", "now 2"]);
        assert_eq!(tokio::join!(batch, other), (Posted::Done, Posted::Done));
    };
    let fetches = async {
        let mut heard = Vec::new();
        while heard.len() < 2 {
            let Polled::Frames(frames) = polls.all.poll(id).await else { panic!("it lives") };
            heard.extend(frames);
        }
        assert_eq!(Polled::Frames(heard), frames(&["now 1", "now 2"]));
        standstill.release();
        let mut heard = Vec::new();
        while heard.len() < 5 {
            let Polled::Frames(frames) = polls.all.poll(id).await else { panic!("it lives") };
            heard.extend(frames);
        }
        assert_eq!(Polled::Frames(heard), frames(&["joined", "a", "joined", "b", "c"]));
    };
    timeout(DEADLINE, async { tokio::join!(posts, fetches) }).await.expect("answers in time");
}

#[actix_web::test]
async fn e149_messages_that_do_not_get_their_turn_in_time_are_late() {
    let all = LongPolls::new(times(DEADLINE));
    let busy = Arbiter::new();
    let (opened, opens) = oneshot::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let theirs = all.clone();
    busy.spawn_fn(move || {
        let id = theirs.open(Obedient::default(), &Bench::new(limits()).worker);
        opened.send(id.expect("room for a session")).expect("the test waits");
        // Nothing happens on that thread until it is released.
        held.recv().ok();
    });
    let id = opens.await.expect("a session");
    // The session has time; only this request has none.
    let hasty = LongPolls { times: times(Duration::from_millis(100)), ..all.clone() };
    assert_eq!(hasty.post(id, texts(&["a"])).await, Posted::Late);
    release.send(()).expect("a thread that waits");
    assert_eq!(all.poll(id).await, frames(&["a"]), "late, not lost");
    busy.stop();
}

#[actix_web::test]
async fn a_session_that_nobody_fetches_is_over_though_it_is_posted_to() {
    let window = Duration::from_millis(40);
    for is_fetched in [true, false] {
        let polls = Polls::new(limits(), times(window));
        let began = Instant::now();
        let id = if is_fetched { polls.open_and_fetch().await } else { polls.open() };
        let posts = async { while polls.post(id, &["leave"]).await != Posted::Gone {} };
        timeout(DEADLINE, posts).await.expect("an end in time");
        let patience = if is_fetched { window * 3 / 2 } else { window / 2 };
        assert!(began.elapsed() > patience, "{is_fetched}");
        assert_eq!(polls.all.poll(id).await, Polled::Gone, "{is_fetched}");
        polls.until_none().await;
    }
}

#[test]
fn a_session_that_was_never_fetched_has_a_third_of_the_patience() {
    let times = times(Duration::from_secs(10));
    assert_eq!(times.patience(false), Duration::from_secs(15));
    assert_eq!(times.patience(true), Duration::from_secs(5));
}

#[actix_web::test]
async fn of_a_quarter_that_was_never_fetched_the_oldest_gives_way() {
    let polls = Polls::roomy();
    let fetched = polls.open_and_fetch().await;
    let quarter: Vec<_> = (0..25).map(|_| polls.open()).collect();
    assert_eq!(polls.post(quarter[0], &["a"]).await, Posted::Done, "as many as may be");
    assert_eq!(polls.all.poll(quarter[0]).await, frames(&["a"]));
    let more: Vec<_> = (0..2).map(|_| polls.open()).collect();
    for (case, id, expected) in [
        ("the oldest", quarter[1], Posted::Gone),
        ("the next", quarter[2], Posted::Done),
        ("who was fetched in time", quarter[0], Posted::Done),
        ("who was fetched long ago", fetched, Posted::Done),
        ("the newest", more[1], Posted::Done),
    ] {
        assert_eq!(polls.post(id, &["b"]).await, expected, "{case}");
    }
    for _ in 0..1_000 {
        polls.open();
        tokio::task::yield_now().await;
    }
    assert_eq!(polls.all.poll(fetched).await, frames(&["b"]), "whatever came since");
    assert!(polls.bench.sessions.open() <= 28, "{}", polls.bench.sessions.open());
}

#[actix_web::test]
async fn a_session_that_is_fetched_lives_as_long_as_it_has_joined() {
    let times = LongPollTimes {
        window: Duration::from_millis(300),
        unjoined_max: Duration::from_millis(500),
    };
    let polls = Polls::new(limits(), times);
    let id = polls.open_and_fetch().await;
    assert_eq!(polls.post(id, &["join"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["joined"]));
    let began = Instant::now();
    while began.elapsed() < 2 * times.unjoined_max {
        assert_eq!(polls.all.poll(id).await, frames(&[]));
    }
    assert_eq!(polls.post(id, &["leave"]).await, Posted::Done);
    let began = Instant::now();
    while polls.all.poll(id).await != Polled::Gone {}
    assert!(began.elapsed() >= times.unjoined_max);
    polls.until_none().await;
}

#[actix_web::test]
async fn a_session_that_ends_lets_everybody_know() {
    for order in ["close", "panic"] {
        let polls = Polls::roomy();
        let id = polls.open();
        let parked = polls.parked(id).await;
        assert_eq!(polls.post(id, &["a", order, "b"]).await, Posted::Gone, "{order}");
        let parked = parked.await.expect("a fetch");
        // Frames from before the close are still delivered; a session that panics sends nothing more.
        let last = if order == "close" { frames(&["a"]) } else { Polled::Gone };
        assert_eq!(parked, last, "{order}");
        assert_eq!(polls.all.poll(id).await, Polled::Gone, "{order}");
        polls.until_none().await;
    }
}

#[actix_web::test]
async fn a_client_between_two_polls_when_the_server_stops_gets_the_accepted_publications() {
    let polls = Polls::roomy();
    let topics = &polls.bench.topics;
    let id = polls.open_and_fetch().await;
    assert_eq!(polls.post(id, &["join"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["joined"]));
    polls.bench.publish(r#"{"n":1}"#).await;
    topics.finish(DEADLINE).await;
    assert_eq!(topics.end_all(DEADLINE).await, 1);
    // A message that is sent now is not read, and its client is told so only with its next poll.
    let both = async { tokio::join!(polls.post(id, &["a"]), polls.all.poll(id)) };
    let both = timeout(DEADLINE, both).await.expect("answers in time");
    assert_eq!(both, (Posted::Gone, frames(&[r#"{"n":1}"#])));
    assert_eq!(polls.all.poll(id).await, Polled::Gone);
    polls.until_none().await;
    assert_eq!(polls.bench.worker.metrics.sessions_ended.of(SessionEnd::Shutdown).get(), 1);
}

#[actix_web::test]
async fn a_client_between_two_polls_when_its_session_is_closed_gets_the_earlier_frames() {
    let polls = Polls::roomy();
    let id = polls.open_and_fetch().await;
    let both = async { tokio::join!(polls.post(id, &["a", "close", "b"]), polls.all.poll(id)) };
    // The message is handled before the fetch, because it comes first.
    let both = timeout(DEADLINE, both).await.expect("answers in time");
    assert_eq!(both, (Posted::Gone, frames(&["a"])));
    assert_eq!(polls.all.poll(id).await, Polled::Gone);
    polls.until_none().await;
}

#[actix_web::test]
async fn a_session_for_which_nothing_waits_is_gone_at_once_when_the_server_stops() {
    let polls = Polls::roomy();
    let (quiet, absent) = (polls.open_and_fetch().await, polls.open_and_fetch().await);
    assert_eq!(polls.post(absent, &["a"]).await, Posted::Done);
    let began = Instant::now();
    polls.bench.topics.end_all(DEADLINE).await;
    let one_left = async {
        while polls.bench.sessions.open() > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(FAREWELL_MAX, one_left).await.expect("the one before the other");
    assert_eq!(polls.all.poll(quiet).await, Polled::Gone);
    // A client that never comes back delays a stop by this time and no longer.
    polls.until_none().await;
    assert!(began.elapsed() >= FAREWELL_MAX);
}

#[actix_web::test]
async fn there_is_room_up_to_the_limit_and_for_nobody_while_the_server_stops() {
    let polls = Polls::roomy();
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(polls.open_and_fetch().await);
    }
    assert_eq!(polls.all.open(Obedient::default(), &polls.bench.worker), None, "full");
    assert_eq!(polls.post(ids[0], &["close"]).await, Posted::Gone);
    polls.open();
    assert_eq!(polls.post(ids[1], &["close"]).await, Posted::Gone);
    polls.bench.sessions.close();
    assert_eq!(polls.all.open(Obedient::default(), &polls.bench.worker), None, "stopping");
}

#[actix_web::test]
async fn a_session_that_never_was_is_gone() {
    let polls = Polls::roomy();
    assert_eq!(polls.all.poll(Uuid::new_v4()).await, Polled::Gone);
    assert_eq!(polls.post(Uuid::new_v4(), &["a"]).await, Posted::Gone);
}

/// Sessions of which each may send this many frames within a second.
fn paced(frames: u32) -> Polls {
    let frames_per_second_max = PerSecond(frames);
    Polls::new(SessionLimits { frames_per_second_max, ..limits() }, times(DEADLINE))
}

fn hits(polls: &Polls) -> u64 {
    polls.bench.worker.metrics.limit_hits.of(Limit::FramesPerSecond).get()
}

#[actix_web::test]
async fn fetches_that_come_too_fast_wait_for_their_time_and_none_is_refused() {
    const RATE: u32 = 20;
    let polls = paced(RATE);
    let id = polls.open();
    assert_eq!(polls.post(id, &["join"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["joined"]));
    let began = Instant::now();
    for n in 0..2 * RATE {
        let payload = format!(r#"{{"n":{n}}}"#);
        polls.bench.publish(&payload).await;
        assert_eq!(polls.all.poll(id).await, frames(&[&payload]));
    }
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    assert!(hits(&polls) > 0, "it is counted");
    assert_eq!(polls.post(id, &["a"]).await, Posted::Done, "the session goes on");
}

#[actix_web::test]
async fn fetches_that_take_over_from_one_another_are_answered_at_a_bounded_rate() {
    const RATE: u32 = 20;
    let polls = paced(RATE);
    let id = polls.open();
    let answered = std::cell::Cell::new(0_u32);
    let began = Instant::now();
    let flood = async || {
        while began.elapsed() < Duration::from_millis(1_500) {
            if polls.all.poll(id).await == frames(&[]) {
                answered.set(answered.get() + 1);
            }
        }
    };
    // The last of them is parked until something comes.
    let last = async {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(polls.post(id, &["close"]).await, Posted::Gone);
    };
    let all = async { tokio::join!(flood(), flood(), flood(), last) };
    tokio::select! {
        _ = all => {}
        () = tokio::time::sleep(DEADLINE) => panic!("no end"),
    }
    let most = f64::from(RATE) * (began.elapsed().as_secs_f64() + 1.0);
    assert!(f64::from(answered.get()) <= most, "{} answers", answered.get());
}

#[actix_web::test]
async fn a_client_that_fetches_many_times_at_once_beyond_its_rate_is_ended() {
    let polls = paced(1);
    let id = polls.open();
    let all = join_all((0..LATE_FETCHES_MAX + 3).map(|_| polls.all.poll(id))).await;
    assert!(all.contains(&Polled::Gone), "{all:?}");
    polls.until_none().await;
    assert_eq!(polls.bench.worker.metrics.sessions_ended.of(SessionEnd::TooManyFrames).get(), 1);
}

#[actix_web::test]
async fn messages_that_come_too_fast_wait_and_a_session_that_goes_on_is_ended() {
    let polls = paced(20);
    let id = polls.open();
    assert_eq!(polls.post(id, &["join"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["joined"]));
    let orders: Vec<String> = (0..45).map(|n| n.to_string()).collect();
    let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
    let began = Instant::now();
    assert_eq!(polls.post(id, &orders).await, Posted::Done);
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(polls.all.poll(id).await, frames(&orders), "all of them, in order");
    assert!(hits(&polls) > 0, "it is counted");

    let flood = async {
        loop {
            let (posted, _) = tokio::join!(polls.post(id, &["x"; 50]), async {
                // Replies must not pile up.
                polls.all.poll(id).await
            });
            if posted == Posted::Gone {
                return;
            }
        }
    };
    timeout(4 * DEADLINE, flood).await.expect("an end in time");
    polls.until_none().await;
    assert_eq!(polls.bench.worker.metrics.sessions_ended.of(SessionEnd::TooManyFrames).get(), 1);
}

#[actix_web::test]
async fn replies_ahead_of_their_turn_are_paced_as_well() {
    let polls = paced(10);
    let standstill = polls.bench.standstill().await;
    let id = polls.open();
    let posts = async { polls.post(id, &[&["join"][..], &["now"; 30]].concat()).await };
    let fetches = async {
        let Polled::Frames(first) = polls.all.poll(id).await else { panic!("it lives") };
        assert!(first.len() <= 10, "{first:?}");
        standstill.release();
        let mut rest = first.len();
        while rest < 31 {
            let Polled::Frames(frames) = polls.all.poll(id).await else { panic!("it lives") };
            rest += frames.len();
        }
    };
    let both = async { tokio::join!(posts, fetches) };
    assert_eq!(timeout(DEADLINE, both).await.expect("in time").0, Posted::Done);
}
