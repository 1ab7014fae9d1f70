//! The feed: the events of apps, for the consoles that watch them.
//!
//! While no console watches, a publication, a join or a refusal costs one relaxed load. For an app
//! that is watched, events are collected up to a bound, and counted beyond it; nothing ever waits
//! for the feed. The console takes the collected events, and publishes them to the watchers like
//! any other publication, in topics of the reserved app. No payload is ever collected.
//!
//! In a cluster, each node collects its own events for the watchers of all nodes. Several nodes may deliver
//! one publication: the node that accepted it collects it as a whole event, and each other node collects
//! its own deliveries as a part of that event.
//!
//! A topic of the reserved app names the watched app by its number, because a slug may pass to another
//! app while the first one is watched.

use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytestring::ByteString;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{app::AppId, metrics::labels::Source};

use super::{
    now_ms,
    position::StreamPosition,
    publication::{Destination, EventName, Publication},
    subscriber::SessionId,
    topic_name::Scope,
};

/// The most events that are collected of one app until they are taken.
pub const EVENTS_MAX: usize = 100;

/// The most characters of a client's text that the event of a refusal shows. Such a text may be a name that is
/// longer than any valid one.
const TEXT_CHARS_MAX: usize = 255;

/// The time for which an app is still watched after its last watcher has left, so that a page whose
/// connection was cut misses nothing.
const LINGER: Duration = Duration::from_secs(30);

/// The events of watched apps. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Feed(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_watched: AtomicBool,
    begun: Notify,
    watches: Mutex<HashMap<AppId, AppWatch>>,
}

/// An app that is watched.
#[derive(Debug, Default)]
struct AppWatch {
    watchers: usize,
    /// The time at which the last watcher left.
    left_at: Option<Instant>,
    collected: Collected,
}

/// The events and counts of one app since the feed was taken last.
#[derive(Debug, Default)]
pub struct Collected {
    /// The first events.
    pub events: Vec<FeedEvent>,
    /// The number of later events, which were left out.
    pub dropped: u64,
    /// The number of publications.
    pub publications: u64,
    /// The number of deliveries on this node.
    pub deliveries: u64,
}

/// An app that is watched, and its collected events.
#[derive(Debug)]
pub struct Watched {
    /// The app, which may have been deleted.
    pub app: AppId,
    /// The events and counts.
    pub collected: Collected,
}

/// An event of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEvent {
    /// The time of the event, in Unix milliseconds.
    pub at_ms: u64,
    /// The kind and the details of the event.
    pub what: What,
}

/// The kinds of events, with their details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A publication was delivered on this node.
    Published {
        /// The scope.
        scope: Scope,
        /// The channel, or `#general`.
        destination: Destination,
        /// The name of the event.
        event: EventName,
        /// Its position in the order of the scope.
        position: StreamPosition,
        /// The size of its payload, in bytes.
        bytes: usize,
        /// The number of subscribers on this node to which it was delivered.
        deliveries: usize,
        /// Whether this node or another one has accepted it.
        extent: Extent,
        /// The kind of publisher.
        source: Source,
    },
    /// A session joined a topic.
    Joined(TopicSession),
    /// A session left a topic.
    Left(TopicSession),
    /// A client was refused.
    Refused(RefusedAttempt),
}

/// The part of a publication's event that a node contributes to the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The whole event: the node has accepted the publication.
    Whole,
    /// Only its own deliveries: another node has accepted the publication.
    Part,
}

/// A session that joined or left a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSession {
    /// The topic, as the client spelled it.
    pub topic: ByteString,
    /// The session.
    pub session: SessionId,
    /// The `sub` of the join's token, as far as it can be shown.
    pub sub: Option<ByteString>,
}

/// An attempt of a client that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedAttempt {
    /// The kind of attempt.
    pub kind: AttemptKind,
    /// The topic, if the attempt names one. It is the client's own text, valid or not.
    pub topic: Option<ByteString>,
    /// The label of the reason in the metrics.
    pub reason: &'static str,
    /// The client's address.
    pub address: IpAddr,
}

impl RefusedAttempt {
    fn cut(self) -> Self {
        let kind = match self.kind {
            AttemptKind::Call(call) => AttemptKind::Call(cut(call)),
            kind => kind,
        };
        Self { kind, topic: self.topic.map(cut), ..self }
    }
}

/// The first [`TEXT_CHARS_MAX`] characters of a text.
fn cut(text: ByteString) -> ByteString {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        // A slice would keep the whole text in memory.
        Some((end, _)) => text[..end].into(),
        None => text,
    }
}

/// The kinds of attempts that are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptKind {
    /// An attempt to join a topic.
    Join,
    /// An attempt to publish to a topic that the client has joined.
    Push,
    /// A call of the API, with the method and the path, without the query.
    Call(ByteString),
}

/// Counts the deliveries of a publication that is watched.
#[derive(Debug)]
pub(super) struct Deliveries {
    feed: Feed,
    extent: Extent,
    count: AtomicUsize,
}

impl Deliveries {
    /// Adds subscribers to which the publication was delivered.
    pub(super) fn add(&self, count: u64) {
        self.count.fetch_add(usize::try_from(count).unwrap_or(usize::MAX), Relaxed);
    }

    /// Adds the event of the publication to the feed, once it has been delivered.
    pub(super) fn told(&mut self, publication: &Publication, position: StreamPosition) {
        let count = *self.count.get_mut();
        if self.extent == Extent::Whole || count > 0 {
            self.feed.published(publication, position, self.extent, count);
        }
    }
}

impl Feed {
    /// Returns whether any app is watched.
    pub fn is_watched(&self) -> bool {
        self.0.is_watched.load(Relaxed)
    }

    /// Waits until an app is watched.
    pub async fn watched(&self) {
        while !self.is_watched() {
            self.0.begun.notified().await;
        }
    }

    /// Begins to watch the app that a topic of the reserved app names.
    pub fn watch(&self, topic: &str) {
        let Some(app) = watched_app(topic) else { return };
        let mut watches = self.0.watches.lock();
        let watch = watches.entry(app).or_default();
        watch.watchers += 1;
        watch.left_at = None;
        self.begin();
    }

    /// Notes that one watcher has left the app that a topic of the reserved app names.
    pub fn unwatch(&self, topic: &str) {
        let Some(app) = watched_app(topic) else { return };
        let mut watches = self.0.watches.lock();
        let Some(watch) = watches.get_mut(&app) else { return };
        watch.watchers = watch.watchers.saturating_sub(1);
        if watch.watchers == 0 {
            watch.left_at = Some(Instant::now());
        }
    }

    /// Continues to watch the apps that these channels of the reserved app name, after a restart: their
    /// watchers are about to reconnect.
    pub(super) fn resume<'a>(&self, channels: impl Iterator<Item = &'a str>) {
        self.linger(channels.filter_map(app_of));
    }

    /// Watches apps for a while, as if their last watcher had left just now.
    pub fn linger(&self, apps: impl Iterator<Item = AppId>) {
        let mut watches = self.0.watches.lock();
        for app in apps {
            let watch = watches.entry(app).or_default();
            if watch.watchers == 0 {
                watch.left_at = Some(Instant::now());
            }
            self.begin();
        }
    }

    /// The apps that have watchers on this node, in order.
    pub fn watched_here(&self) -> Vec<AppId> {
        let watches = self.0.watches.lock();
        let watched = watches.iter().filter(|(_, watch)| watch.watchers > 0);
        let mut apps: Vec<_> = watched.map(|(app, _)| *app).collect();
        apps.sort_unstable();
        apps
    }

    fn begin(&self) {
        self.0.is_watched.store(true, Relaxed);
        self.0.begun.notify_one();
    }

    /// Forgets the apps that have had no watcher for a while.
    pub fn forget_unwatched(&self, now: Instant) {
        let mut watches = self.0.watches.lock();
        watches.retain(|_, watch| {
            watch.left_at.is_none_or(|left| now.saturating_duration_since(left) < LINGER)
        });
        if watches.is_empty() {
            self.0.is_watched.store(false, Relaxed);
        }
    }

    /// Takes the collected events of each app, and forgets the apps that have had no watcher for a
    /// while.
    pub fn take(&self, now: Instant) -> Vec<Watched> {
        self.forget_unwatched(now);
        let mut watches = self.0.watches.lock();
        let taken = watches.iter_mut().map(|(app, watch)| {
            let collected = mem::take(&mut watch.collected);
            Watched { app: *app, collected }
        });
        taken.collect()
    }

    /// Begins to count the deliveries of a publication; `None` if its app is not watched.
    pub(super) fn deliveries(&self, app: AppId, extent: Extent) -> Option<Box<Deliveries>> {
        let is_wanted = self.is_watched() && self.watches(app);
        is_wanted.then(|| {
            Box::new(Deliveries { feed: self.clone(), extent, count: AtomicUsize::new(0) })
        })
    }

    /// Notes a publication that has been delivered.
    pub(super) fn published(
        &self,
        publication: &Publication,
        position: StreamPosition,
        extent: Extent,
        deliveries: usize,
    ) {
        let Publication { app, scope, destination, event, payload, origin, .. } = publication;
        self.collect(*app, |collected| {
            collected.deliveries += deliveries as u64;
            match extent {
                Extent::Whole => collected.publications += 1,
                // A part beyond the bound is not counted as dropped: the node that accepted the publication does
                // so.
                Extent::Part if collected.events.len() >= EVENTS_MAX => return,
                Extent::Part => {}
            }
            collected.add(|| What::Published {
                scope: scope.clone(),
                destination: destination.clone(),
                event: event.clone(),
                position,
                bytes: payload.size_bytes(),
                deliveries,
                extent,
                source: origin.source(),
            });
        });
    }

    /// Notes that a session has joined a topic of an app. `sub` is shown as the `sub` of its token.
    pub fn joined(&self, app: AppId, topic: &str, session: SessionId, sub: Option<&str>) {
        let what = || What::Joined(TopicSession::of(topic, session, sub));
        self.collect(app, |collected| collected.add(what));
    }

    /// Notes that a session has left a topic of an app. `sub` is shown as the `sub` of its token.
    pub fn left(&self, app: AppId, topic: &str, session: SessionId, sub: Option<&str>) {
        let what = || What::Left(TopicSession::of(topic, session, sub));
        self.collect(app, |collected| collected.add(what));
    }

    /// Notes that a client of an app was refused. The client's texts are cut, so that the events which are taken
    /// together are never large.
    pub fn refused(&self, app: AppId, refusal: impl FnOnce() -> RefusedAttempt) {
        self.collect(app, |collected| collected.add(|| What::Refused(refusal().cut())));
    }

    fn collect(&self, app: AppId, collect: impl FnOnce(&mut Collected)) {
        if let Some(watch) = self.0.watches.lock().get_mut(&app) {
            collect(&mut watch.collected);
        }
    }

    fn watches(&self, app: AppId) -> bool {
        self.0.watches.lock().contains_key(&app)
    }
}

impl Collected {
    fn add(&mut self, what: impl FnOnce() -> What) {
        if self.events.len() >= EVENTS_MAX {
            self.dropped += 1;
            return;
        }
        self.events.push(FeedEvent { at_ms: now_ms(), what: what() });
    }
}

impl TopicSession {
    fn of(topic: &str, session: SessionId, sub: Option<&str>) -> Self {
        Self { topic: topic.into(), session, sub: sub.map(Into::into) }
    }
}

/// The app that a topic of the reserved app names.
fn watched_app(topic: &str) -> Option<AppId> {
    topic.splitn(3, ':').nth(2).and_then(app_of)
}

/// The app that a channel of the reserved app names; never the reserved app, which is not watched
/// itself.
fn app_of(channel: &str) -> Option<AppId> {
    let app = AppId(channel.parse().ok()?);
    (app != AppId::CONSOLE).then_some(app)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            position::Epochs,
            testing::{key, publication},
        },
        *,
    };

    #[test]
    fn events_beyond_the_bound_are_counted_and_none_are_collected_while_nobody_watches() {
        let feed = Feed::default();
        let app = key(1, "public");
        let topic = "console:_console:1";
        let position = StreamPosition { epoch: Epochs::new().give(&app), offset: 7 };
        let publish = |count| {
            for _ in 0..count {
                feed.published(&publication(&app, "room", "msg"), position, Extent::Whole, 3);
            }
        };
        let deliveries = |app| feed.deliveries(app, Extent::Whole);
        assert!(!feed.is_watched() && deliveries(app.app).is_none());
        publish(1);
        feed.watch(topic);
        assert!(feed.is_watched() && deliveries(app.app).is_some());
        assert!(deliveries(AppId(2)).is_none(), "another app is not watched");
        publish(500);
        let taken = feed.take(Instant::now());
        let [Watched { collected, .. }] = &taken[..] else { panic!("{taken:?}") };
        assert_eq!((collected.events.len(), collected.dropped), (EVENTS_MAX, 400));
        assert_eq!((collected.publications, collected.deliveries), (500, 1_500));
        let What::Published { bytes, deliveries, .. } = &collected.events[0].what else {
            panic!("{:?}", collected.events[0]);
        };
        assert_eq!((*bytes, *deliveries), (2, 3));

        feed.unwatch(topic);
        publish(1);
        let now = Instant::now();
        let lingers = feed.take(now);
        assert_eq!(lingers[0].collected.events.len(), 1, "a page that comes back misses nothing");
        assert!(feed.take(now + LINGER).is_empty() && !feed.is_watched());
    }

    #[test]
    fn a_publication_of_another_node_counts_there_and_its_deliveries_count_here() {
        let feed = Feed::default();
        let key = key(1, "public");
        let position = StreamPosition { epoch: Epochs::new().give(&key), offset: 7 };
        let publication = publication(&key, "room", "msg");
        feed.linger([key.app].into_iter());
        assert!(feed.watched_here().is_empty(), "it is watched elsewhere");
        let handed_out = |count| {
            let mut deliveries = feed.deliveries(key.app, Extent::Part).expect("it is watched");
            deliveries.add(count);
            deliveries.told(&publication, position);
        };
        let taken = || feed.take(Instant::now()).pop().expect("the app").collected;
        (0..200).for_each(|_| handed_out(2));
        let collected = taken();
        assert_eq!((collected.events.len(), collected.dropped), (EVENTS_MAX, 0));
        assert_eq!((collected.publications, collected.deliveries), (0, 400));
        handed_out(0);
        assert!(taken().events.is_empty(), "nobody here has heard it");
        feed.watch("console:_console:1");
        assert_eq!(feed.watched_here(), [key.app]);
        feed.linger([key.app].into_iter());
        feed.forget_unwatched(Instant::now() + LINGER);
        assert!(feed.is_watched(), "who watches here goes on");
    }

    #[test]
    fn an_app_that_was_watched_before_a_restart_is_watched_for_a_while_after_it() {
        let feed = Feed::default();
        feed.resume(["1", "no number", "_console"].into_iter());
        assert!(feed.is_watched());
        feed.joined(AppId(1), "public:foo-app", SessionId(7), Some("User:1"));
        let now = Instant::now();
        let taken = feed.take(now);
        let [Watched { app: AppId(1), collected }] = &taken[..] else { panic!("{taken:?}") };
        let (topic, sub) = ("public:foo-app".into(), Some("User:1".into()));
        let joined = TopicSession { topic, session: SessionId(7), sub };
        assert_eq!(collected.events[0].what, What::Joined(joined));
        assert!(feed.take(now + LINGER).is_empty() && !feed.is_watched());
    }

    #[test]
    fn a_refusal_shows_the_beginning_of_a_text_that_is_longer_than_any_name() {
        let feed = Feed::default();
        feed.linger([AppId(1)].into_iter());
        let longest = "\u{e9}".repeat(TEXT_CHARS_MAX);
        let refused = |kind, topic: Option<&str>| {
            let (topic, address) = (topic.map(Into::into), IpAddr::from([127, 0, 0, 1]));
            RefusedAttempt { kind, topic, reason: "unmatched_topic", address }
        };
        for (topic, call) in [("room".to_owned(), "GET /"), (longest.clone(), "GET /")] {
            let given = || refused(AttemptKind::Call(call.into()), Some(&topic));
            feed.refused(AppId(1), given);
            let taken = feed.take(Instant::now());
            assert_eq!(taken[0].collected.events[0].what, What::Refused(given()));
        }
        let huge = longest.repeat(4_000);
        feed.refused(AppId(1), || refused(AttemptKind::Join, Some(&huge)));
        feed.refused(AppId(1), || refused(AttemptKind::Call(huge.as_str().into()), None));
        let taken = feed.take(Instant::now());
        let found: Vec<_> =
            taken[0].collected.events.iter().map(|event| event.what.clone()).collect();
        let expected = [
            refused(AttemptKind::Join, Some(&longest)),
            refused(AttemptKind::Call(longest.as_str().into()), None),
        ];
        assert_eq!(found, expected.map(What::Refused));
    }

    #[test]
    fn the_reserved_app_is_not_watched_itself() {
        let feed = Feed::default();
        feed.watch(&format!("console:_console:{}", AppId::CONSOLE.0));
        feed.watch("console:_console:_console");
        feed.watch("console:_console");
        assert!(feed.take(Instant::now()).is_empty() && !feed.is_watched());
    }
}
