//! What every transport does alike: it carries out what its conversation wants.
//!
//! A transport is an actor that can write frames, close, and hold its client back; here it learns
//! to join, leave, publish and deliver. So the rules that tie a session to the broker stand once.

use std::{rc::Rc, sync::Arc};

use actix::{fut::wrap_future, prelude::*};
use bytestring::ByteString;
use log::{debug, info};

use super::{
    CloseCode, Conversation, Effect, Failure, Received, Replay,
    worker::{Membership, Worker},
};
use crate::{
    app::{AppId, token::now_s},
    broker::{
        JsonObject, Publication,
        fanout::{Attach, Detach, Enter, Relieve},
        outbox::{Ending, Excess, News, Outbox},
        subscriber::{Frame, Joined, Place, Subscription, SubscriptionId},
    },
    metrics::labels::{Limit, SessionEnd, Source},
};

/// An actor that carries a conversation over some wire.
pub(super) trait Carrier: Actor<Context: AsyncContext<Self>> {
    /// The protocol that is spoken.
    type Protocol: Conversation;

    /// The session's side towards the broker.
    fn driver(&mut self) -> &mut Driver<Self::Protocol>;

    /// Hands a frame to the client.
    fn send(&mut self, frame: Frame, ctx: &mut Self::Context);

    /// Hands the client what a join is sent ahead of everything that belongs to it.
    fn replay(&mut self, of: SubscriptionId, frames: Vec<Frame>, ctx: &mut Self::Context);

    /// Closes the connection; nothing is sent after.
    fn close(&mut self, code: CloseCode, ctx: &mut Self::Context);

    /// Has further messages of the client wait until [`Carrier::resume`], except for what
    /// [`answer_meanwhile`] can do.
    fn hold(&mut self);

    /// Learns that the client has joined a topic, before the reply is sent.
    fn note_joined(&mut self);

    /// Goes on with the client's messages.
    fn resume(&mut self, ctx: &mut Self::Context);
}

/// A session's side towards the broker.
pub(super) struct Driver<C: Conversation> {
    conversation: C,
    worker: Rc<Worker>,
    membership: Membership,
    outbox: Arc<Outbox>,
    /// What the client hears, by the names it has for it.
    subscriptions: Vec<Heard>,
    next_subscription: u32,
    joining: Option<Joining>,
}

/// The join that the broker is asked for.
struct Joining {
    id: SubscriptionId,
    /// Refuses the join when it has waited too long.
    timeout: Option<SpawnHandle>,
}

/// A subscription of this session: a topic of an app, which is one place.
struct Heard {
    id: SubscriptionId,
    app: AppId,
    topic: ByteString,
}

impl<C: Conversation> Driver<C> {
    /// Enters the fan-out of this thread, which fills `outbox` from now on.
    pub(super) fn enter(conversation: C, outbox: Arc<Outbox>, worker: Rc<Worker>) -> Self {
        let membership = Membership { session: outbox.session(), fanout: worker.fanout() };
        membership.fanout.addr.do_send(Enter::new(outbox.clone()));
        let kind = conversation.kind();
        worker.metrics.sessions.of(kind).inc();
        worker.metrics.sessions_opened.of(kind).inc();
        Self {
            conversation,
            worker,
            membership,
            outbox,
            subscriptions: Vec::new(),
            next_subscription: 0,
            joining: None,
        }
    }

    /// The way from the broker to this session.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// Counts a frame that the session is to keep for its client among all that waits.
    pub(super) fn count(&self, frame: Frame) -> Frame {
        let backlog = self.worker.topics.backlog();
        let counted = backlog.count(frame);
        if backlog.is_exceeded() {
            self.membership.fanout.addr.do_send(Relieve);
        }
        counted
    }

    /// What the sessions of this thread share.
    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The session's number, for the log.
    pub(super) fn session(&self) -> u64 {
        self.membership.session.0
    }

    /// Whether it hears anything.
    pub(super) fn is_subscribed(&self) -> bool {
        !self.subscriptions.is_empty()
    }

    /// The id of the subscription to a topic. A session that subscribes again to what it hears keeps
    /// the id, because it must miss nothing in between.
    fn id_of(&mut self, app: AppId, topic: &ByteString) -> SubscriptionId {
        if let Some(nth) = self.position_of(app, topic) {
            return self.subscriptions[nth].id;
        }
        let id = SubscriptionId(self.next_subscription);
        self.next_subscription = self.next_subscription.wrapping_add(1);
        // One is the common case, and an idle session should not keep room for four.
        if self.subscriptions.is_empty() {
            self.subscriptions.reserve_exact(1);
        }
        self.subscriptions.push(Heard { id, app, topic: topic.clone() });
        id
    }

    fn unsubscribe(&mut self, place: Place, topic: &ByteString) {
        let Some(nth) = self.position_of(place.key.app, topic) else { return };
        let Heard { id, .. } = self.subscriptions.remove(nth);
        self.outbox.leave(id);
        let session = self.membership.session;
        self.membership.fanout.addr.do_send(Detach { session, id, place });
    }

    fn position_of(&self, app: AppId, topic: &ByteString) -> Option<usize> {
        self.subscriptions.iter().position(|heard| heard.app == app && heard.topic == *topic)
    }
}

impl<C: Conversation> Drop for Driver<C> {
    /// A session is over, whatever ended it: here, and nowhere else, that is counted and logged.
    fn drop(&mut self) {
        self.outbox.close();
        let metrics = &self.worker.metrics;
        metrics.sessions.of(self.conversation.kind()).dec();
        let ending = match self.outbox.ended() {
            None if std::thread::panicking() => Some(Ending::Broken),
            ending => ending,
        };
        let (end, limit) = counted_as(ending);
        metrics.sessions_ended.of(end).inc();
        if let Some(limit) = limit {
            metrics.hit(limit);
        }
        let session = self.session();
        match ending {
            Some(Ending::SlowConsumer(_) | Ending::Stuck | Ending::NotFetching) => {
                info!("session {session} is dropped: {}", end.as_str());
            }
            _ => debug!("session {session} is over: {}", end.as_str()),
        }
    }
}

/// What the end of a session is counted as, and the limit that it hit.
fn counted_as(ending: Option<Ending>) -> (SessionEnd, Option<Limit>) {
    match ending {
        None => (SessionEnd::Left, None),
        Some(Ending::SlowConsumer(Excess::Frames)) => {
            (SessionEnd::OutboxFrames, Some(Limit::OutboxFrames))
        }
        Some(Ending::SlowConsumer(Excess::AllBytes)) => {
            (SessionEnd::OutboxesBytes, Some(Limit::OutboxesBytes))
        }
        Some(Ending::SlowConsumer(Excess::Bytes)) => {
            (SessionEnd::OutboxBytes, Some(Limit::OutboxBytes))
        }
        Some(Ending::Stuck) => (SessionEnd::Stuck, Some(Limit::Write)),
        Some(Ending::Idle) => (SessionEnd::Idle, Some(Limit::Idle)),
        Some(Ending::SlowMessage) => (SessionEnd::SlowMessage, Some(Limit::Message)),
        // Each pause of it was counted already.
        Some(Ending::TooManyFrames) => (SessionEnd::TooManyFrames, None),
        Some(Ending::Unfinished) => (SessionEnd::Unfinished, Some(Limit::UnfinishedBytes)),
        Some(Ending::NotFetching) => (SessionEnd::NotFetching, Some(Limit::LongPollWindow)),
        // Not said once each in the log, as the others of this kind are: a stranger can open many.
        Some(Ending::NeverFetched) => (SessionEnd::NeverFetched, Some(Limit::LongPollWindow)),
        Some(Ending::Unjoined) => (SessionEnd::Unjoined, Some(Limit::LongPollUnjoined)),
        // No setting bounds it, so there is no limit to name.
        Some(Ending::InboxFull) => (SessionEnd::InboxFull, None),
        Some(Ending::Broken) => (SessionEnd::Broken, None),
        Some(Ending::Shutdown) => (SessionEnd::Shutdown, None),
    }
}

/// Takes a client's message.
pub(super) fn received<A: Carrier>(carrier: &mut A, message: Received, ctx: &mut A::Context) {
    let effects = carrier.driver().conversation.received(message, now_s());
    run(carrier, effects, ctx);
}

/// Answers a client's message ahead of its turn, if that can be done: `false` leaves it where it is.
pub(super) fn answer_meanwhile<A: Carrier>(
    carrier: &mut A,
    message: &Received,
    ctx: &mut A::Context,
) -> bool {
    let answer = carrier.driver().conversation.meanwhile(message);
    let can_be = answer.is_some();
    if let Some(frame) = answer {
        carrier.send(frame, ctx);
    }
    can_be
}

/// Takes news from the broker.
pub(super) fn heard<A: Carrier>(carrier: &mut A, news: News, ctx: &mut A::Context) {
    let driver = carrier.driver();
    let effects = match news {
        News::Joined(id, outcome) => {
            let outcome = outcome.map(|joined| *joined).map_err(Failure::from);
            return joined(carrier, id, outcome, ctx);
        }
        News::AppChanged(app) => driver.conversation.app_changed(app, now_s()),
        News::Disconnect(disconnection) => {
            let (effects, ended) = driver.conversation.disconnected(&disconnection.joins);
            disconnection.has_ended(ended);
            effects
        }
        News::End(ending) => return carrier.close(close_code(ending), ctx),
    };
    run(carrier, effects, ctx);
}

/// Carries out what the conversation wants.
fn run<A: Carrier>(carrier: &mut A, effects: Vec<Effect>, ctx: &mut A::Context) {
    for effect in effects {
        match effect {
            Effect::Send(frame) => carrier.send(frame, ctx),
            Effect::Replay(replay) => self::replay(carrier, replay, ctx),
            Effect::Subscribe(subscription) => subscribe(carrier, subscription, ctx),
            Effect::Unsubscribe(place, topic) => carrier.driver().unsubscribe(place, &topic),
            Effect::Publish(publication) => publish(carrier, publication, ctx),
            Effect::Update(place, meta) => update(carrier, place, meta, ctx),
            Effect::Close(code) => return carrier.close(code, ctx),
        }
    }
}

/// Hands the client what it missed. The members are spelled for this session alone; the frames are
/// counted where they are shared.
fn replay<A: Carrier>(carrier: &mut A, replay: Replay, ctx: &mut A::Context) {
    let Replay { place, topic, mut frames, members } = replay;
    let driver = carrier.driver();
    let Some(nth) = driver.position_of(place.key.app, &topic) else { return };
    let of = driver.subscriptions[nth].id;
    frames.extend(members.map(|members| driver.count(members)));
    carrier.replay(of, frames, ctx);
}

/// Asks the fan-out of this thread for a subscription. The answer comes through the outbox, in its
/// order among the frames. The client's next message waits for it.
fn subscribe<A: Carrier>(carrier: &mut A, subscription: Subscription, ctx: &mut A::Context) {
    carrier.hold();
    let driver = carrier.driver();
    let session = driver.membership.session;
    let id = driver.id_of(subscription.place.key.app, &subscription.topic);
    // The fan-out itself waits for nobody, but the tracker of a scope lives on another thread.
    let timeout = subscription.persona.is_some().then(|| {
        ctx.run_later(driver.worker.topics.wait_max(), move |carrier: &mut A, ctx| {
            joined(carrier, id, Err(Failure::Unavailable), ctx);
        })
    });
    driver.joining = Some(Joining { id, timeout });
    driver.outbox.begin_join();
    driver.membership.fanout.addr.do_send(Attach { session, id, subscription });
}

/// The broker has answered a join, or the time for it is over.
fn joined<A: Carrier>(
    carrier: &mut A,
    id: SubscriptionId,
    outcome: Result<Joined, Failure>,
    ctx: &mut A::Context,
) {
    let driver = carrier.driver();
    // An answer that comes too late finds its join refused and left.
    let Some(joining) = driver.joining.take_if(|joining| joining.id == id) else { return };
    driver.outbox.end_join();
    if let Some(timeout) = joining.timeout {
        ctx.cancel_future(timeout);
    }
    if outcome.is_ok() {
        carrier.note_joined();
    }
    let effects = carrier.driver().conversation.subscribed(outcome, now_s());
    run(carrier, effects, ctx);
    carrier.resume(ctx);
}

/// Holds the client's next message until this one has its place, but not what others say: in a
/// crowd of publishers that would fill the outbox of a client that keeps up.
fn publish<A: Carrier>(carrier: &mut A, publication: Publication, ctx: &mut A::Context) {
    carrier.hold();
    let topics = carrier.driver().worker.topics.clone();
    let publish = async move {
        let app = publication.app;
        topics.publish(publication).await.map_err(|_| Failure::Unavailable)?;
        topics.metrics().app(app.0).published(Source::Client, 1);
        Ok(())
    };
    ctx.spawn(wrap_future(publish).map(answered));
}

/// Holds the client's next message as [`publish`] does: at most one of each waits for a tracker.
fn update<A: Carrier>(carrier: &mut A, place: Place, meta: JsonObject, ctx: &mut A::Context) {
    carrier.hold();
    let driver = carrier.driver();
    let (topics, session) = (driver.worker.topics.clone(), driver.membership.session);
    let update = async move {
        let Place { key, channel } = place;
        // Nobody is tracked in a whole scope.
        let Some(channel) = channel else { return Ok(()) };
        topics.update(&key, channel, session, meta).await.map_err(|_| Failure::Unavailable)
    };
    ctx.spawn(wrap_future(update).map(answered));
}

fn answered<A: Carrier>(outcome: Result<(), Failure>, carrier: &mut A, ctx: &mut A::Context) {
    let effects = carrier.driver().conversation.answered(outcome, now_s());
    run(carrier, effects, ctx);
    carrier.resume(ctx);
}

fn close_code(ending: Ending) -> CloseCode {
    match ending {
        Ending::SlowConsumer(_) | Ending::Stuck | Ending::InboxFull => CloseCode::TRY_LATER,
        Ending::Idle | Ending::NotFetching | Ending::NeverFetched | Ending::Unjoined => {
            CloseCode::GOING_AWAY
        }
        Ending::SlowMessage | Ending::TooManyFrames => CloseCode::POLICY,
        Ending::Unfinished => CloseCode::TOO_BIG,
        Ending::Shutdown => CloseCode::RESTART,
        Ending::Broken => CloseCode::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{SinkExt, StreamExt};
    use tokio::time::timeout;
    use tokio_tungstenite::tungstenite::Message;

    use crate::{
        broker::subscriber::Disconnect,
        session::testing::{Bench, DEADLINE, limits, place, text},
    };

    #[actix_web::test]
    async fn a_join_is_refused_once_its_tracker_has_taken_too_long_and_a_late_answer_is_no_harm() {
        let bench = Bench::waiting(Duration::from_millis(50));
        let release = bench.stall_trackers().await;
        let (mut client, _pump) = bench.connect(10_000).websocket().await;
        let enters = async {
            client.send(Message::text("enter")).await.expect("room");
            assert_eq!(text(&mut client).await, "refused");
            client.send(Message::text("join")).await.expect("room");
            assert_eq!(text(&mut client).await, "joined", "where nobody is tracked");
            drop(release);
            loop {
                client.send(Message::text("enter")).await.expect("room");
                match &*text(&mut client).await {
                    "joined" => break,
                    refused => assert_eq!(refused, "refused"),
                }
            }
        };
        timeout(DEADLINE, enters).await.expect("in time");
    }

    #[actix_web::test]
    async fn news_that_ends_joins_reaches_a_session_whose_join_is_still_under_way() {
        let bench = Bench::new(limits());
        let (mut client, _pump) = bench.connect(10_000).websocket().await;
        // A place that nobody ever has: whoever hears of it is told for its own join's sake.
        let mut elsewhere = place();
        elsewhere.key.app.0 += 1;
        let topics = bench.topics.clone();
        let news = tokio::task::spawn_local(async move {
            loop {
                let disconnect = Disconnect::Place(elsewhere.clone());
                topics.disconnect(disconnect).await.expect("all to be told");
            }
        });
        let joins = async {
            loop {
                client.send(Message::text("join")).await.expect("room");
                client.send(Message::text("leave")).await.expect("room");
                let first = client.next().await.expect("a session").expect("a frame");
                if first == Message::text("disconnected") {
                    return;
                }
                assert_eq!(first, Message::text("joined"));
            }
        };
        timeout(DEADLINE, joins).await.expect("some news comes amid a join");
        // Nothing is joining any more. What was told meanwhile may still come, but nothing after it.
        let quiet = async {
            let mut answers_in_a_row = 0;
            while answers_in_a_row < 20 {
                client.send(Message::text("quiet")).await.expect("room");
                answers_in_a_row += 1;
                while client.next().await.expect("a session").expect("a frame")
                    != Message::text("quiet")
                {
                    answers_in_a_row = 0;
                }
            }
        };
        timeout(DEADLINE, quiet).await.expect("no more news");
        news.abort();
    }
}
