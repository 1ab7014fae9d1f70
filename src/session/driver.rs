//! The part that all transports share: it carries out the effects of a conversation.
//!
//! A transport is an actor that can write frames, close, and hold its client back. This module adds
//! joining, leaving, publishing and delivering, so that the rules between a session and the broker
//! are written once.

mod own_publications;

use std::{rc::Rc, sync::Arc, time::Duration};

use actix::{fut::wrap_future, prelude::*};
use bytestring::ByteString;
use log::{debug, info};

use super::{
    Close, Effect, Farewell, HeldConversation, Patience, Received, Replay,
    worker::{Membership, Worker},
};
use crate::{
    app::{AppId, token::now_s, visitor::ShownSub},
    broker::{
        JsonText, Publication, PublishError,
        connections::About,
        fanout::{Attach, Detach, Enter},
        outbox::{Ending, Excess, News, Outbox},
        subscriber::{
            Frame, Joined, Place, ScopeKey, SubscribeError, Subscription, SubscriptionId,
        },
        users::SignedIn,
    },
    metrics::labels::{Limit, SessionEnd},
};
use own_publications::{Unconfirmed, confirmed, run_after_own};

/// An actor that carries a conversation over some wire.
pub(super) trait Carrier: Actor<Context: AsyncContext<Self>> {
    /// The protocol of the session.
    type Protocol: HeldConversation;

    /// The session's side towards the broker.
    fn driver(&mut self) -> &mut Driver<Self::Protocol>;

    /// Hands a frame to the client.
    fn send(&mut self, frame: Frame, ctx: &mut Self::Context);

    /// Sends the client the frames that follow the answer to a join.
    fn replay(&mut self, of: SubscriptionId, frames: Vec<Frame>, ctx: &mut Self::Context);

    /// Closes the connection; nothing is sent after.
    fn close(&mut self, close: Close, ctx: &mut Self::Context);

    /// Handles a client that has sent nothing for the idle timeout.
    fn silent(&mut self, ctx: &mut Self::Context);

    /// Holds further messages of the client until [`Carrier::resume`], except for those that
    /// [`answer_meanwhile`] answers.
    fn hold(&mut self);

    /// Notes that the client has joined a topic, before the reply is sent.
    fn note_joined(&mut self);

    /// Continues with the client's messages.
    fn resume(&mut self, ctx: &mut Self::Context);
}

/// A session's side towards the broker.
pub(super) struct Driver<C: HeldConversation> {
    conversation: C,
    worker: Rc<Worker>,
    membership: Membership,
    outbox: Arc<Outbox>,
    /// The subscriptions of the client, by the names that the client uses for them.
    subscriptions: Vec<JoinedTopic>,
    next_subscription: u32,
    joining: Option<Joining>,
    /// The client's own publications that it may not have been sent yet.
    unconfirmed: Option<Box<Unconfirmed>>,
    /// The user that the session is signed in as.
    signed_in: Option<Box<SignedIn>>,
}

/// The join that waits for the broker's answer.
struct Joining {
    id: SubscriptionId,
    /// Whether the topic was not joined before.
    is_new: bool,
    /// The user as whom the topic is joined, for consoles.
    user: Option<Arc<ShownSub>>,
    /// Refuses the join when it has waited too long.
    timeout: Option<SpawnHandle>,
}

/// A subscription of this session: a topic of an app, which is one place.
struct JoinedTopic {
    id: SubscriptionId,
    app: AppId,
    topic: ByteString,
    /// The user as whom the topic was joined, for consoles.
    user: Option<Arc<ShownSub>>,
}

impl JoinedTopic {
    fn shown_sub(&self) -> Option<&str> {
        self.user.as_deref().map(ShownSub::as_str)
    }
}

impl<C: HeldConversation> Driver<C> {
    /// Enters the fan-out of this thread, which fills `outbox` from now on.
    pub(super) fn enter(conversation: C, outbox: Arc<Outbox>, worker: Rc<Worker>) -> Self {
        let membership = Membership { session: outbox.session(), fanout: worker.fanout() };
        let kind = conversation.kind();
        let about = About::new(kind, conversation.address()).of_app(conversation.app());
        membership.fanout.addr.do_send(Enter::new(outbox.clone(), about));
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
            unconfirmed: None,
            signed_in: None,
        }
    }

    /// The queue from the broker to this session.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// Counts in the backlog a frame that the session keeps for its client.
    pub(super) fn count(&self, frame: Frame) -> Frame {
        let counted = self.worker.topics.backlog().count(frame);
        self.worker.relieve();
        counted
    }

    /// The state that the sessions of this thread share.
    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Decides what happens to the session after a silence of this length.
    pub(super) fn patience(&mut self, silence: Duration) -> Patience {
        self.conversation.silent(silence)
    }

    /// The session's id, for the log.
    pub(super) fn session(&self) -> u64 {
        self.membership.session.0
    }

    /// Returns whether the session has any subscription.
    pub(super) fn is_subscribed(&self) -> bool {
        !self.subscriptions.is_empty()
    }

    /// The id of the subscription to a topic, and whether it is new. A session that subscribes again to the same
    /// topic keeps the id, because it must not miss frames in between.
    fn id_of(&mut self, app: AppId, topic: &ByteString) -> (SubscriptionId, bool) {
        if let Some(nth) = self.position_of(app, topic) {
            return (self.subscriptions[nth].id, false);
        }
        let id = SubscriptionId(self.next_subscription);
        self.next_subscription = self.next_subscription.wrapping_add(1);
        // One subscription is the common case, and an idle session should not keep room for four.
        if self.subscriptions.is_empty() {
            self.subscriptions.reserve_exact(1);
        }
        self.subscriptions.push(JoinedTopic { id, app, topic: topic.clone(), user: None });
        if app == AppId::CONSOLE {
            self.worker.topics.feed().watch(topic);
        }
        (id, true)
    }

    fn sign_in(&mut self, signed_in: SignedIn) {
        let users = self.worker.topics.signed_in();
        let Membership { session, fanout } = &self.membership;
        users.sign_in(fanout, *session, &signed_in, self.signed_in.as_deref());
        self.signed_in = Some(Box::new(signed_in));
    }

    fn unsubscribe(&mut self, place: Place, topic: &ByteString) {
        let Some(nth) = self.position_of(place.key.app, topic) else { return };
        let joined = self.end_subscription(nth, place);
        self.note_left(&joined);
    }

    fn end_subscription(&mut self, nth: usize, place: Place) -> JoinedTopic {
        let joined = self.subscriptions.remove(nth);
        let (session, id) = (self.membership.session, joined.id);
        self.outbox.leave(id);
        self.membership.fanout.addr.do_send(Detach { session, id, place });
        joined
    }

    /// Notes how the conversation has answered a join. A refused join gives up its subscription, and consoles
    /// are not told that a topic was left that was never joined.
    fn note_answered(&mut self, joining: Joining, effects: &[Effect]) {
        let Joining { id, is_new, user, .. } = joining;
        let Some(nth) = self.subscriptions.iter().position(|joined| joined.id == id) else {
            return;
        };
        let JoinedTopic { app, topic, .. } = &self.subscriptions[nth];
        let given_up = effects.iter().find_map(|effect| match effect {
            Effect::Unsubscribe(place, of) if place.key.app == *app && of == topic => Some(place),
            _ => None,
        });
        match given_up {
            None => {
                self.subscriptions[nth].user = user;
                self.note_joined(&self.subscriptions[nth]);
            }
            Some(place) if is_new => {
                let joined = self.end_subscription(nth, place.clone());
                if joined.app == AppId::CONSOLE {
                    self.worker.topics.feed().unwatch(&joined.topic);
                }
            }
            // The place is left when this effect is carried out.
            Some(_) => {}
        }
    }

    /// Tells consoles that a topic was joined.
    fn note_joined(&self, joined: &JoinedTopic) {
        let feed = self.worker.topics.feed();
        if joined.app != AppId::CONSOLE && feed.is_watched() {
            feed.joined(joined.app, &joined.topic, self.membership.session, joined.shown_sub());
        }
    }

    /// Tells consoles that a topic was left. If the topic was joined by a console itself, its watch of the feed
    /// ends instead.
    fn note_left(&self, joined: &JoinedTopic) {
        let feed = self.worker.topics.feed();
        if joined.app == AppId::CONSOLE {
            feed.unwatch(&joined.topic);
        } else if feed.is_watched() && !self.is_under_way(joined) {
            feed.left(joined.app, &joined.topic, self.membership.session, joined.shown_sub());
        }
    }

    /// Returns whether a topic is being joined for the first time.
    fn is_under_way(&self, joined: &JoinedTopic) -> bool {
        self.joining.as_ref().is_some_and(|joining| joining.is_new && joining.id == joined.id)
    }

    fn position_of(&self, app: AppId, topic: &ByteString) -> Option<usize> {
        self.subscriptions.iter().position(|joined| joined.app == app && joined.topic == *topic)
    }
}

impl<C: HeldConversation> Drop for Driver<C> {
    /// Counts and logs the end of a session, whatever ended it. No other code does so.
    fn drop(&mut self) {
        self.outbox.close();
        self.subscriptions.iter().for_each(|joined| self.note_left(joined));
        if let Some(signed_in) = &self.signed_in {
            self.worker.topics.signed_in().sign_out(self.membership.fanout.worker, signed_in);
        }
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

/// The label under which the end of a session is counted, and the limit that it hit.
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
        // Each pause of the session was counted already.
        Some(Ending::TooManyFrames) => (SessionEnd::TooManyFrames, None),
        Some(Ending::Unfinished) => (SessionEnd::Unfinished, Some(Limit::UnfinishedBytes)),
        Some(Ending::NotFetching) => (SessionEnd::NotFetching, Some(Limit::LongPollWindow)),
        // Unlike the other limits, this one is not logged for each session, because an
        // unauthenticated client can open many sessions.
        Some(Ending::NeverFetched) => (SessionEnd::NeverFetched, Some(Limit::LongPollWindow)),
        Some(Ending::Unjoined) => (SessionEnd::Unjoined, Some(Limit::LongPollUnjoined)),
        // No setting bounds the inbox, so there is no limit to name.
        Some(Ending::InboxFull) => (SessionEnd::InboxFull, None),
        Some(Ending::Broken) => (SessionEnd::Broken, None),
        Some(Ending::Shutdown) => (SessionEnd::Shutdown, None),
    }
}

/// Begins the conversation, which may send the first frames.
pub(super) fn begin<A: Carrier>(carrier: &mut A, ctx: &mut A::Context) {
    let driver = carrier.driver();
    let session = driver.membership.session;
    let effects = driver.conversation.begun(session, now_s());
    run(carrier, effects, ctx);
}

/// Ends the session with the farewell of its conversation.
pub(super) fn end<A: Carrier>(carrier: &mut A, ending: Ending, ctx: &mut A::Context) {
    let driver = carrier.driver();
    driver.outbox.end(ending);
    let Farewell { last, close } = driver.conversation.farewell(ending);
    if let Some(last) = last {
        carrier.send(last, ctx);
    }
    carrier.close(close, ctx);
}

/// Takes a client's message.
pub(super) fn received<A: Carrier>(carrier: &mut A, message: Received, ctx: &mut A::Context) {
    let effects = carrier.driver().conversation.received(message, now_s());
    run_after_own(carrier, effects, ctx);
}

/// Answers a client's message before its turn, if that is possible. Returns `false` if the message must
/// wait.
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
            let outcome = outcome.map(|joined| *joined);
            return joined(carrier, id, outcome, ctx);
        }
        News::AppChanged(app) => {
            driver.leave_at_once();
            driver.conversation.app_changed(app, now_s())
        }
        News::Disconnect(disconnection) => {
            driver.leave_at_once();
            let (effects, ended) = driver.conversation.disconnected(&disconnection.joins);
            disconnection.has_ended(ended);
            effects
        }
        News::Interrupted(places) => {
            places.iter().flat_map(|place| driver.conversation.interrupted(place)).collect()
        }
        News::Confirmed => return confirmed(carrier, ctx),
        News::Silent => return carrier.silent(ctx),
        News::End(ending) => return end(carrier, ending, ctx),
    };
    run(carrier, effects, ctx);
}

/// Carries out the effects of the conversation.
fn run<A: Carrier>(carrier: &mut A, effects: Vec<Effect>, ctx: &mut A::Context) {
    for effect in effects {
        match effect {
            Effect::Send(frame) | Effect::SendAhead(frame) => carrier.send(frame, ctx),
            Effect::Replay(replay) => self::replay(carrier, replay, ctx),
            Effect::Subscribe(subscription) => subscribe(carrier, subscription, ctx),
            Effect::Unsubscribe(place, topic) => carrier.driver().unsubscribe(place, &topic),
            Effect::Publish(publication) => publish(carrier, publication, ctx),
            Effect::Update(place, custom) => update(carrier, place, custom, ctx),
            Effect::SignIn(signed_in) => carrier.driver().sign_in(signed_in),
            Effect::Remind(after) => {
                ctx.run_later(after, |carrier: &mut A, ctx| {
                    let effects = carrier.driver().conversation.reminded(now_s());
                    run(carrier, effects, ctx);
                });
            }
            Effect::Close(close) => return carrier.close(close, ctx),
        }
    }
}

/// Sends the client the frames that follow the answer to a join. The members are encoded for this session
/// alone, so they are counted in the backlog here; the other frames are counted where they are shared.
fn replay<A: Carrier>(carrier: &mut A, replay: Replay, ctx: &mut A::Context) {
    let Replay { place, topic, mut frames, members } = replay;
    let driver = carrier.driver();
    let Some(nth) = driver.position_of(place.key.app, &topic) else { return };
    let of = driver.subscriptions[nth].id;
    frames.extend(members.map(|members| driver.count(members)));
    carrier.replay(of, frames, ctx);
}

/// Asks the fan-out of this thread for a subscription. The answer comes through the outbox, in order with
/// the frames. The client's next message waits for it.
fn subscribe<A: Carrier>(carrier: &mut A, subscription: Subscription, ctx: &mut A::Context) {
    carrier.hold();
    let driver = carrier.driver();
    let session = driver.membership.session;
    let (id, is_new) = driver.id_of(subscription.place.key.app, &subscription.topic);
    // The fan-out itself never waits, but the tracker of a scope runs on another thread.
    let timeout = subscription.persona.is_some().then(|| {
        ctx.run_later(driver.worker.topics.wait_max(), move |carrier: &mut A, ctx| {
            joined(carrier, id, Err(SubscribeError::Unavailable), ctx);
        })
    });
    let user = subscription.user.clone();
    driver.joining = Some(Joining { id, is_new, user, timeout });
    driver.membership.fanout.begin_join(session);
    driver.membership.fanout.addr.do_send(Attach { session, id, subscription });
}

/// Handles the broker's answer to a join, or its timeout.
fn joined<A: Carrier>(
    carrier: &mut A,
    id: SubscriptionId,
    outcome: Result<Joined, SubscribeError>,
    ctx: &mut A::Context,
) {
    let driver = carrier.driver();
    // A late answer belongs to a join that was refused after its time, and given up.
    let Some(joining) = driver.joining.take_if(|joining| joining.id == id) else { return };
    driver.membership.fanout.end_join(driver.membership.session);
    if let Some(timeout) = joining.timeout {
        ctx.cancel_future(timeout);
    }
    if outcome.is_ok() {
        carrier.note_joined();
    }
    let driver = carrier.driver();
    let effects = driver.conversation.subscribed(outcome, now_s());
    driver.note_answered(joining, &effects);
    run(carrier, effects, ctx);
    carrier.resume(ctx);
}

/// Publishes. The client's next message waits until this publication has its position. Deliveries to the
/// client continue meanwhile, because many publishers at once would otherwise fill its outbox.
fn publish<A: Carrier>(carrier: &mut A, publication: Publication, ctx: &mut A::Context) {
    carrier.hold();
    let driver = carrier.driver();
    let topics = driver.worker.topics.clone();
    let is_own = publication.except != Some(driver.membership.session);
    let own = is_own.then(|| ScopeKey::of(&publication));
    let publish = async move { topics.publish(publication).await };
    ctx.spawn(wrap_future(publish).map(|outcome, carrier: &mut A, ctx| {
        if let (Ok(receipt), Some(key)) = (&outcome, own) {
            let positions = receipt.positions().iter();
            positions.for_each(|at| carrier.driver().note_published(key.clone(), *at));
        }
        answered(outcome.map(drop), carrier, ctx);
    }));
}

/// Changes the client's custom data. Its next message waits, as with [`publish`], so at most one change of
/// each client waits for a tracker.
fn update<A: Carrier>(carrier: &mut A, place: Place, custom: JsonText, ctx: &mut A::Context) {
    carrier.hold();
    let driver = carrier.driver();
    let (topics, session) = (driver.worker.topics.clone(), driver.membership.session);
    let update = async move {
        let Place { key, channel } = place;
        // No session is tracked in a whole scope.
        let Some(channel) = channel else { return Ok(()) };
        topics.update(&key, channel, session, custom).await
    };
    ctx.spawn(wrap_future(update).map(answered));
}

fn answered<A: Carrier>(outcome: Result<(), PublishError>, carrier: &mut A, ctx: &mut A::Context) {
    let effects = carrier.driver().conversation.answered(outcome, now_s());
    if run_after_own(carrier, effects, ctx) {
        carrier.resume(ctx);
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
    async fn a_late_answer_is_not_taken_for_the_answer_to_the_next_join() {
        let bench = Bench::waiting(Duration::from_millis(100));
        let release = bench.stall_trackers().await;
        let (mut first, _first_pump) = bench.connect(10_000).websocket().await;
        let (mut second, _second_pump) = bench.connect(10_000).websocket().await;
        let enters = async {
            // The tracker accepts both once it runs. Then the other channel has all members that it may have.
            for (client, enter) in [(&mut first, "enter other"), (&mut second, "enter")] {
                client.send(Message::text(enter)).await.expect("room");
                assert_eq!(text(client).await, "refused", "it has taken too long");
            }
            second.send(Message::text("enter other")).await.expect("room");
            second.send(Message::text("now it is under way")).await.expect("room");
            assert_eq!(text(&mut second).await, "now it is under way");
            drop(release);
            let mut told = text(&mut second).await;
            while told.starts_with("Change") {
                told = text(&mut second).await;
            }
            assert_eq!(told, "refused", "the channel is full");
        };
        timeout(DEADLINE, enters).await.expect("in time");
    }

    #[actix_web::test]
    async fn news_that_ends_joins_reaches_a_session_whose_join_is_still_under_way() {
        let bench = Bench::new(limits());
        let (mut client, _pump) = bench.connect(10_000).websocket().await;
        // A place that has no subscribers.
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
        // No join is under way any more. Announcements that were sent meanwhile may still come, but
        // nothing after them.
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
