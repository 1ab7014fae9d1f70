//! The helpers that the tests of this room share: names, publications, and probes in place of
//! sessions.

use std::{
    borrow::Cow,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{fut::wrap_future, prelude::*};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{sleep, timeout},
};

use crate::{
    app::{App, AppDirectory, AppId, Slug, testing},
    engine::{Engine, EngineState},
    metrics::Metrics,
    settings::{HistoryFile, HistorySettings},
};

use super::{
    ChannelName, Destination, EventName, JsonObject, JsonText, Publication, PublicationOrigin,
    Scope, Topics,
    connections::About,
    count::CountAll,
    directory::Directory,
    fanout::{Attach, Detach, Enter, Fanout, ThreadFanout, WorkerId},
    last_events::LastEventLimits,
    outbox::{Load, News, Outbox, ToSession},
    permits::{Permit, Permits},
    placed::Accepted,
    position::StreamPosition,
    presence::{Change, Persona, Roster},
    stream::Stream,
    subscriber::{
        ChangeFrame, Delivery, Encoders, Format, Frame, Joined, Place, ScopeKey, SessionId,
        SubscribeError, Subscription, SubscriptionId,
    },
    topics::TopicLimits,
    tracker::Tracker,
    writers::FrameWriters,
};

/// The id of the subscription that every probe has.
pub(super) const SUBSCRIPTION: SubscriptionId = SubscriptionId(7);

/// The time that anything may take before a test fails.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Bounds on the last events that no test reaches.
pub(crate) const LAST_EVENTS: LastEventLimits =
    LastEventLimits { ttl: Duration::from_secs(60), app_bytes_max: 1 << 20, bytes_max: 1 << 20 };

/// Waits until an engine is up.
pub(super) async fn until_up(engine: &dyn Engine) {
    let mut state = engine.state();
    let up = state.wait_for(|state| *state == EngineState::Up);
    timeout(DEADLINE, up).await.expect("in time").expect("an engine");
}

/// Waits until a condition holds.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// A scope of an app.
pub(super) fn key(app: i32, scope: &str) -> ScopeKey {
    ScopeKey { app: AppId(app), scope: Scope::parse(scope).expect("a scope") }
}

/// The apps 1 and 2, with the settings that apps have by default.
pub(super) fn apps() -> AppDirectory {
    let app = |id: i32| App {
        id: AppId(id),
        name: format!("App {id}"),
        slug: Slug::parse(&format!("app-{id}")).expect("a slug"),
        // Archives name the time, and each test that loads one makes the apps anew.
        inserted_at: chrono::DateTime::UNIX_EPOCH,
        ..testing::app(&format!("key-{id}"), &format!("secret-{id}"))
    };
    let directory = AppDirectory::default();
    directory.replace([1, 2].map(app).into_iter().collect());
    directory
}

/// A publication of `{}` to a channel or `#general`.
pub(super) fn publication(key: &ScopeKey, destination: &str, event: &str) -> Publication {
    Publication {
        app: key.app,
        scope: key.scope.clone(),
        destination: Destination::parse(destination).expect("a destination"),
        event: EventName::parse(event).expect("an event"),
        payload: JsonObject::empty().into(),
        origin: PublicationOrigin::Trigger,
        except: None,
    }
}

/// Accepts a publication in a directory without threads, at `now_ms` in Unix milliseconds.
pub(super) fn publish_in(
    directory: &Directory,
    publication: Publication,
    now_ms: u64,
) -> StreamPosition {
    let key = ScopeKey { app: publication.app, scope: publication.scope.clone() };
    assert!(directory.ensure(&key));
    let (accepted, _) = Accepted::new(publication, Instant::now(), Some(permit().into()));
    let mut positions = Vec::new();
    let publish = |stream: &Stream| stream.publish(vec![accepted], now_ms, &mut positions);
    directory.with(&key, publish).expect("a stream");
    directory.relieve(key.app);
    positions[0]
}

/// A permit to be under way.
pub(super) fn permit() -> Permit {
    Permits::new(1).take_at_once(AppId(1)).expect("the only permit")
}

/// `topic event`.
fn spell(delivery: &Delivery<'_, str>) -> Option<Frame> {
    Some(Frame::Text(format!("{} {}", delivery.topic, delivery.event).into()))
}

/// `topic event payload`.
fn spell_bytes(delivery: &Delivery<'_, [u8]>) -> Option<Frame> {
    let names = format!("{} {} ", delivery.topic, delivery.event);
    Some(Frame::Binary([names.as_bytes(), delivery.payload].concat().into()))
}

/// A format that carries text only.
pub(super) const FORMAT: Format = Format::of(&ENCODERS);

/// The encoders of [`FORMAT`].
pub(super) const ENCODERS: Encoders = Encoders {
    slot: 0,
    roster_slot: 0,
    has_event: |_| true,
    carry: |json, _, _| Cow::Borrowed(json),
    encode: spell,
    tail_bytes: None,
    encode_bytes: None,
    encode_position: None,
    encode_count: None,
    positions_follow_json: false,
    begins_with_last_event: false,
    spell_members: |roster| shown(roster).into(),
    encode_change: |topic, Change { joins, leaves, .. }| {
        let text = format!("{topic} +{} -{}", shown(joins), shown(leaves));
        vec![ChangeFrame { frame: Frame::Text(text.into()), except: Vec::new() }]
    },
};

/// The encoders of [`FORMAT`], with the number of subscribers as `topic: number`.
pub(super) const COUNTING: Encoders = Encoders {
    encode_count: Some(|topic, count| Frame::Text(format!("{topic}: {count}").into())),
    ..ENCODERS
};

/// `[key=meta key=meta]`, without references.
pub(super) fn shown(roster: &Roster) -> String {
    let all = roster.iter().flat_map(|(_, members)| members);
    let all: Vec<_> = all
        .map(|member| {
            let Persona { key, meta } = &member.persona;
            format!("{key}={}", meta.custom.as_ref().map_or(meta.info_text(), JsonText::as_str))
        })
        .collect();
    format!("[{}]", all.join(" "))
}

/// Nothing is retained.
pub(crate) const HISTORY_OFF: HistorySettings = HistorySettings {
    publications: 0,
    publications_max: 0,
    age: Duration::ZERO,
    age_max: Duration::ZERO,
    app_bytes_max: 0,
    bytes_max: 0,
    channels_max: 0,
    replay_max: 0,
    replay_bytes_max: 0,
    file: HistoryFile::Off,
};

/// More is retained than most tests publish.
pub(super) const ROOMY: HistorySettings = HistorySettings {
    publications: 100,
    publications_max: 1_000,
    age: Duration::from_secs(300),
    age_max: Duration::from_secs(3_600),
    app_bytes_max: 1 << 20,
    bytes_max: 1 << 22,
    channels_max: 100,
    replay_max: 1_000,
    replay_bytes_max: 1 << 20,
    file: HistoryFile::Off,
};

/// The bounds of most tests, with some of them changed.
fn limits_with(change: impl FnOnce(&mut TopicLimits)) -> TopicLimits {
    let mut limits = TopicLimits {
        outboxes_bytes_max: 1 << 30,
        publications_in_flight_max: 8,
        scopes_per_app_max: 2,
        presence_members_max: 4,
        idempotency_keys_max: 4,
        presence_interval: Duration::from_millis(5),
        online_interval: Duration::ZERO,
        wait_max: DEADLINE,
        history: HISTORY_OFF,
        last_events: LAST_EVENTS,
    };
    change(&mut limits);
    limits
}

/// A broker of one thread, this one.
pub(super) struct Broker {
    pub(super) topics: Topics,
    pub(super) worker: WorkerId,
    pub(super) fanout: Addr<Fanout>,
    pub(super) writers: Rc<FrameWriters>,
    pub(super) thread: ThreadFanout,
}

impl Broker {
    pub(super) fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// A broker with some bounds changed.
    pub(super) fn start_with(change: impl FnOnce(&mut TopicLimits)) -> Self {
        let topics = Topics::new(limits_with(change), apps(), Metrics::new(10));
        topics.add_worker();
        Self::of(topics)
    }

    /// A node's broker with some bounds changed.
    pub(super) fn of_node(engine: Arc<dyn Engine>, change: impl FnOnce(&mut TopicLimits)) -> Self {
        Self::of_node_with(engine, apps(), change)
    }

    /// A node's broker with these apps and some bounds changed.
    pub(super) fn of_node_with(
        engine: Arc<dyn Engine>,
        apps: AppDirectory,
        change: impl FnOnce(&mut TopicLimits),
    ) -> Self {
        let topics = Topics::of_node(limits_with(change), apps, Metrics::new(10), engine);
        topics.add_worker();
        Self::of(topics)
    }

    fn of(topics: Topics) -> Self {
        let thread = topics.start_fanout();
        let (worker, fanout, writers) =
            (thread.worker, thread.addr.clone(), thread.writers.clone());
        Self { topics, worker, fanout, writers, thread }
    }

    /// The same broker with a second fan-out, as if this thread were another worker.
    pub(super) fn another_thread(&self) -> Self {
        Self::of(self.topics.clone())
    }

    /// A session that takes whatever comes.
    pub(super) async fn session(&self, id: u64) -> Probe {
        self.session_with(id, 16, true).await
    }

    /// The same, with room for all channels that a session may join by default.
    pub(super) async fn roomy_session(&self, id: u64) -> Probe {
        self.session_with(id, 1_024, true).await
    }

    /// A session that takes nothing, with room for this many frames.
    pub(super) async fn stuck_session(&self, id: u64, outbox_frames_max: usize) -> Probe {
        self.session_with(id, outbox_frames_max, false).await
    }

    async fn session_with(&self, id: u64, outbox_frames_max: usize, takes: bool) -> Probe {
        let (heard, hears) = mpsc::unbounded_channel();
        let (answered, answers) = mpsc::unbounded_channel();
        let session = SessionId(id);
        let outbox = Outbox::new(session, Load { frames: outbox_frames_max, bytes: 1_000_000 });
        if takes {
            actix::spawn(take_all(outbox.clone(), heard, answered));
        }
        self.fanout.send(Enter::new(outbox.clone(), About::default())).await.expect("a fan-out");
        Probe { session, outbox, hears, answers: takes.then(|| Mutex::new(answers)) }
    }

    /// Joins as a session does.
    pub(super) async fn join(&self, probe: &Probe, place: Place) -> Result<(), SubscribeError> {
        let topic = place.channel.as_ref().map_or("*", |channel| channel.as_str()).to_owned();
        self.join_as(probe, place, &topic).await
    }

    /// Joins a place by this name for it.
    pub(super) async fn join_as(
        &self,
        probe: &Probe,
        place: Place,
        topic: &str,
    ) -> Result<(), SubscribeError> {
        self.join_under(SUBSCRIPTION, probe, place, topic).await
    }

    /// Joins a place by this name for it, under this id.
    pub(super) async fn join_under(
        &self,
        id: SubscriptionId,
        probe: &Probe,
        place: Place,
        topic: &str,
    ) -> Result<(), SubscribeError> {
        let (topic, format) = (topic.into(), FORMAT);
        self.attach(
            id,
            probe,
            Subscription { place, topic, format, persona: None, user: None, wanted: None },
        )
        .await
    }

    /// Joins a channel to be tracked there.
    pub(super) async fn enter(
        &self,
        probe: &Probe,
        place: Place,
        persona: Persona,
    ) -> Result<(), SubscribeError> {
        let topic = place.channel.as_ref().expect("a channel").to_string();
        self.enter_under(SUBSCRIPTION, probe, place, &topic, persona).await
    }

    /// Joins a channel by this name for it, under this id, to be tracked there.
    pub(super) async fn enter_under(
        &self,
        id: SubscriptionId,
        probe: &Probe,
        place: Place,
        topic: &str,
        persona: Persona,
    ) -> Result<(), SubscribeError> {
        let (topic, format) = (topic.into(), FORMAT);
        let persona = Some(persona);
        self.attach(
            id,
            probe,
            Subscription { place, topic, format, persona, user: None, wanted: None },
        )
        .await
    }

    /// Joins a whole scope or a channel with a format that carries bytes.
    pub(super) async fn join_for_bytes(&self, probe: &Probe, place: Place) {
        let topic = place.channel.as_ref().map_or("*", |channel| channel.as_str()).into();
        let format =
            Format::of(const { &Encoders { encode_bytes: Some(spell_bytes), ..ENCODERS } });
        let subscription =
            Subscription { place, topic, format, persona: None, user: None, wanted: None };
        self.attach(SUBSCRIPTION, probe, subscription).await.expect("a place");
    }

    async fn attach(
        &self,
        id: SubscriptionId,
        probe: &Probe,
        subscription: Subscription,
    ) -> Result<(), SubscribeError> {
        self.begin_attach(id, probe, subscription).await;
        probe.joined().await.map(|_| ())
    }

    /// Has the fan-out look at a join, which it may not answer yet.
    pub(super) async fn begin_attach(
        &self,
        id: SubscriptionId,
        probe: &Probe,
        subscription: Subscription,
    ) {
        let attach = Attach { session: probe.session, id, subscription };
        self.fanout.send(attach).await.expect("a fan-out");
    }

    pub(super) async fn leave(&self, probe: &Probe, place: Place) {
        self.leave_under(SUBSCRIPTION, probe, place).await;
    }

    /// Leaves what was joined under this id.
    pub(super) async fn leave_under(&self, id: SubscriptionId, probe: &Probe, place: Place) {
        let detach = Detach { session: probe.session, id, place };
        self.fanout.send(detach).await.expect("a fan-out");
    }

    /// The newest position of a scope, if it has subscribers.
    pub(super) fn head(&self, key: &ScopeKey) -> Option<StreamPosition> {
        self.topics.directory().with(key, Stream::head)
    }

    /// Publishes, and waits until all threads have received it. A thread may not have handed it out yet, if its app
    /// waits for its turn.
    pub(super) async fn publish(&self, key: &ScopeKey, destination: &str, event: &str) {
        let published = self.topics.publish(publication(key, destination, event)).await;
        published.expect("room for one more");
        // Each fan-out answers this question after the publication that is ahead of it in the mailbox.
        self.topics.fanouts().ask(CountAll, DEADLINE).await;
    }
}

/// The whole of a scope.
pub(super) fn whole(key: &ScopeKey) -> Place {
    Place { key: key.clone(), channel: None }
}

/// One channel of a scope.
pub(super) fn channel(key: &ScopeKey, name: &str) -> Place {
    Place { key: key.clone(), channel: Some(ChannelName::parse(name).expect("a channel")) }
}

/// Stands for a session.
pub(super) struct Probe {
    pub(super) session: SessionId,
    pub(super) outbox: Arc<Outbox>,
    hears: mpsc::UnboundedReceiver<String>,
    /// The answers to its joins; a stuck probe does not take even those.
    answers: Option<Mutex<mpsc::UnboundedReceiver<Answer>>>,
}

/// The answer to a join.
pub(super) type Answer = Result<Joined, SubscribeError>;

impl Probe {
    /// Waits for the answer to its next join.
    pub(super) async fn joined(&self) -> Answer {
        let answered = async {
            match &self.answers {
                Some(answers) => answers.lock().await.recv().await.expect("a live probe"),
                None => answer(self.outbox.take().expect("an answer")).expect("an answer"),
            }
        };
        timeout(DEADLINE, answered).await.expect("in time")
    }

    /// Waits for the next item in its outbox: a frame as it is, anything else in words.
    pub(super) async fn next(&mut self) -> String {
        timeout(DEADLINE, self.hears.recv()).await.expect("in time").expect("a live probe")
    }

    /// The number of received items that were not looked at yet.
    pub(super) fn unread(&self) -> usize {
        self.hears.len()
    }

    /// Returns whether nothing was received that was not looked at yet, and nothing waits in the outbox.
    pub(super) fn has_heard_nothing(&mut self) -> bool {
        self.hears.is_empty() && self.outbox.load() == Load::default()
    }
}

/// Takes whatever comes out of an outbox, and tells it in words.
async fn take_all(
    outbox: Arc<Outbox>,
    heard: mpsc::UnboundedSender<String>,
    answered: mpsc::UnboundedSender<Answer>,
) {
    loop {
        let told = match poll_fn(|cx| outbox.poll_take(cx)).await {
            ToSession::Frame(Frame::Text(text), _) => text.to_string(),
            ToSession::Frame(Frame::Binary(bytes), _) => format!("{bytes:?}"),
            ToSession::Frame(Frame::Split(split), _) => format!("{split:?}"),
            ToSession::News(News::Joined(_, outcome)) => {
                let outcome = outcome.map(|joined| *joined);
                let members = outcome.as_ref().ok().and_then(|joined| joined.members.clone());
                let _ = answered.send(outcome);
                match members {
                    Some(members) => members.to_string(),
                    None => continue,
                }
            }
            ToSession::News(News::AppChanged(app)) => format!("app {} changed", app.0),
            ToSession::News(News::Disconnect(ended)) => format!("disconnect: {:?}", ended.joins),
            ToSession::News(News::Interrupted(places)) => {
                let channel = |place: &Arc<Place>| {
                    place.channel.as_ref().map_or("*", |c| c.as_str()).to_owned()
                };
                format!("interrupted: {}", places.iter().map(channel).collect::<Vec<_>>().join(" "))
            }
            ToSession::News(News::Confirmed) => "confirmed".to_owned(),
            ToSession::News(News::Silent) => "silent".to_owned(),
            ToSession::News(News::End(ending)) => format!("end: {ending:?}"),
        };
        // A test that has ended listens no more.
        let _ = heard.send(told);
    }
}

/// The answer to a join, if it is one.
fn answer(what: ToSession) -> Option<Answer> {
    match what {
        ToSession::News(News::Joined(_, outcome)) => Some(outcome.map(|joined| *joined)),
        _ => None,
    }
}

/// Keeps an actor from its messages until the other end of this is dropped, or told to let go.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Stall(pub(super) oneshot::Receiver<()>);

impl Handler<Stall> for Fanout {
    type Result = ();

    fn handle(&mut self, Stall(end): Stall, ctx: &mut Self::Context) {
        ctx.wait(wrap_future(async { drop(end.await) }));
    }
}

impl Handler<Stall> for Tracker {
    type Result = ();

    fn handle(&mut self, Stall(end): Stall, ctx: &mut Self::Context) {
        ctx.wait(wrap_future(async { drop(end.await) }));
    }
}

impl Topics {
    /// Takes a permit of app 1, if it may have one now.
    pub(super) fn permit_at_once(&self) -> Option<Permit> {
        self.permits().take_at_once(AppId(1))
    }
}

impl ThreadFanout {
    /// Keeps the fan-out from its messages until the other end of `until` is dropped, or told to let
    /// go.
    pub(crate) async fn stall(&self, until: oneshot::Receiver<()>) {
        self.addr.send(Stall(until)).await.expect("a fan-out");
    }
}

/// Makes an actor panic.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Break;

impl Handler<Break> for Fanout {
    type Result = ();

    fn handle(&mut self, _: Break, _: &mut Self::Context) {
        panic!("on purpose");
    }
}

impl Handler<Break> for Tracker {
    type Result = ();

    fn handle(&mut self, _: Break, _: &mut Self::Context) {
        panic!("on purpose");
    }
}
