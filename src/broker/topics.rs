//! The entry point of the broker: every publication passes through it, and whatever concerns all
//! threads is asked and told here.
//!
//! An engine that carries publications between nodes will stand behind [`Topics::publish`] one day.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    io, mem,
    rc::Rc,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use bytestring::ByteString;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use log::warn;
use tokio::{
    sync::oneshot,
    time::{self, timeout, timeout_at},
};

use crate::{
    app::{AppDirectory, AppId},
    metrics::{Metrics, labels::Limit},
    settings::HistorySettings,
};

use super::{
    archive::ArchiveError,
    backlog::Backlog,
    directory::{Directory, TooManyScopes},
    disconnection::Disconnection,
    fanout::{EndAll, EndJoins, EndSome, Fanout, ThreadFanout, WorkerId},
    fanouts::{Asked, Fanouts},
    idempotency::{Claim, Claimed, Content, IdempotencyKey, Keys},
    ledger::Ledger,
    listeners::Listeners,
    now_ms,
    permits::{Permit, Permits},
    placed::Accepted,
    position::StreamPosition,
    presence::Roster,
    publication::{JsonObject, Publication},
    recovery::{HistoryPage, Incomplete, Since},
    reference::References,
    saving::{self, Totals},
    stream::Stream,
    subscriber::{Disconnect, ScopeKey, SessionId, SubscribeError},
    topic_name::ChannelName,
    tracker::{Tracker, Update, WhoIsThere},
};

/// How often publications that are too old are evicted. Until then they are not replayed either.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// Why a publication was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Too much is under way; nothing was published. Trying again later helps.
    #[error("too many publications are under way")]
    Busy,
}

/// Why publications with an idempotency key were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OnceError {
    /// Too much is under way, or the first with this key still is; nothing was published. Trying
    /// again later helps.
    #[error(transparent)]
    Busy(#[from] PublishError),
    /// Other content was published with this key, or is being published.
    #[error("the idempotency key was used with other content")]
    OtherContent,
}

/// What became of publications with an idempotency key.
#[derive(Debug)]
pub enum Published {
    /// They were published.
    Now(Receipt),
    /// They had been published before, with this receipt.
    Before(Receipt),
}

/// Not every thread answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a thread did not answer in time")]
pub struct Unanswered;

/// What a publisher can learn about publications that were taken: their places in the order, and
/// how many subscribers they were kept from. Only the latter has to be waited for. All clones of a
/// receipt say the same.
#[derive(Debug, Clone)]
pub struct Receipt {
    positions: Vec<StreamPosition>,
    /// Absent if everybody can be sent all of them.
    skipped: Option<Shared<BoxFuture<'static, Option<usize>>>>,
}

impl Receipt {
    /// The place of each publication in the order of its scope, as they were handed in.
    ///
    /// A publication that nobody hears and that is not retained is the first of an order that ends
    /// with it.
    pub fn positions(&self) -> &[StreamPosition] {
        &self.positions
    }

    /// Whether there are bytes among them: everybody can be sent anything else.
    pub fn may_skip(&self) -> bool {
        self.skipped.is_some()
    }

    /// How many subscribers could not be sent them, over all, once all have been handed out;
    /// `None` if that takes too long.
    pub async fn skipped(self) -> Option<usize> {
        match self.skipped {
            Some(skipped) => skipped.await,
            None => Some(0),
        }
    }

    fn new(
        positions: Vec<StreamPosition>,
        skipped: Vec<oneshot::Receiver<usize>>,
        wait_max: Duration,
    ) -> Self {
        let is_any_skipped = !skipped.is_empty();
        let count = async move {
            let mut all = 0;
            for skipped in skipped {
                all += skipped.await.ok()?;
            }
            Some(all)
        };
        let count = async move { timeout(wait_max, count).await.ok().flatten() };
        Self { positions, skipped: is_any_skipped.then(|| count.boxed().shared()) }
    }
}

/// The bounds of the directory.
#[derive(Debug, Clone, Copy)]
pub struct TopicLimits {
    /// Publications of one app between their publisher and the last fan-out; there may be twice as
    /// many of all apps together.
    pub publications_in_flight_max: usize,
    /// Scopes with subscribers per app.
    pub scopes_per_app_max: usize,
    /// Bytes of all frames that wait for clients.
    pub outboxes_bytes_max: usize,
    /// Members tracked on one channel.
    pub presence_members_max: usize,
    /// How long a channel's changes of members are gathered before they are announced together.
    pub presence_interval: Duration,
    /// Idempotency keys that are remembered of an app, and as many of its visitors.
    pub idempotency_keys_max: usize,
    /// How long a publisher or a join may wait.
    pub wait_max: Duration,
    /// What is retained and replayed.
    pub history: HistorySettings,
}

/// Accepts publications and has streams hand them out; asks and tells what concerns all threads.
/// Cheap to clone; shared by all threads.
#[derive(Clone)]
pub struct Topics(Arc<Inner>);

struct Inner {
    limits: TopicLimits,
    permits: Permits,
    directory: Directory,
    workers: RwLock<Vec<ArbiterHandle>>,
    fanouts: Fanouts,
    next_worker: AtomicU64,
    /// Batches published so far.
    batches: AtomicU64,
    references: References,
    backlog: Backlog,
    keys: Keys<Receipt>,
    metrics: Arc<Metrics>,
}

impl Topics {
    /// The mailbox capacity of trackers and fan-outs: more than permits and joins ever fill.
    pub(super) const MAILBOX_CAPACITY: usize = 1 << 16;

    /// Nothing is published yet. What is retained depends on the settings of the apps.
    pub fn new(limits: TopicLimits, apps: AppDirectory, metrics: Arc<Metrics>) -> Self {
        let backlog = Backlog::new(limits.outboxes_bytes_max);
        let ledger = Ledger::new(apps, limits.history);
        Self(Arc::new(Inner {
            limits,
            permits: Permits::new(limits.publications_in_flight_max),
            directory: Directory::new(limits.scopes_per_app_max, backlog.clone(), ledger),
            workers: RwLock::default(),
            fanouts: Fanouts::default(),
            next_worker: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            references: References::new(),
            backlog,
            keys: Keys::new(limits.idempotency_keys_max),
            metrics,
        }))
    }

    /// All frames that wait for clients.
    pub fn backlog(&self) -> &Backlog {
        &self.0.backlog
    }

    /// What counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Lets trackers be placed on the calling worker thread.
    pub fn add_worker(&self) {
        if let Some(arbiter) = Arbiter::try_current() {
            self.workers_mut().push(arbiter);
        }
    }

    /// Has trackers that do not exist yet placed on the calling thread, and on no other.
    #[cfg(test)]
    pub(crate) fn place_here_only(&self) {
        *self.workers_mut() = vec![Arbiter::current()];
    }

    /// Starts a fan-out for the sessions of the calling worker thread.
    pub fn start_fanout(&self) -> ThreadFanout {
        let worker = WorkerId(self.0.next_worker.fetch_add(1, Relaxed));
        let handed = Rc::default();
        let addr = Fanout::new(worker, self.clone(), Rc::clone(&handed)).start();
        self.0.fanouts.add(addr.clone());
        ThreadFanout { worker, addr, handed }
    }

    /// Ends every session of all threads, for the server stops; at most so long is waited for a
    /// thread to hear of it. Answers how many sessions there were.
    pub async fn end_all(&self, wait_max: Duration) -> usize {
        let ended =
            self.0.fanouts.ask(EndAll, wait_max).await.into_iter().map(|asked| match asked {
                Asked::Answered(sessions) => sessions,
                // Its sessions are ended already.
                Asked::Lost => 0,
                Asked::Late => {
                    warn!("a thread did not hear in time that its sessions are to end");
                    0
                }
            });
        ended.sum()
    }

    /// Ends so many sessions, over all threads together, for the server stops; answers how many are
    /// left, as far as threads answer within so long.
    pub async fn end_some(&self, sessions_max: usize, wait_max: Duration) -> usize {
        let (mut to_end, mut left) = (sessions_max, 0);
        for fanout in self.0.fanouts.all() {
            if let Ok(Ok(done)) = timeout(wait_max, fanout.send(EndSome(to_end))).await {
                to_end -= done.ended;
                left += done.left;
            }
        }
        left
    }

    /// Ends joins of an app on all threads. What is published from now on does not reach them.
    ///
    /// # Errors
    /// [`Unanswered`] if a thread may not have heard of it; it can be asked for again.
    pub async fn disconnect(&self, disconnect: Disconnect) -> Result<(), Unanswered> {
        self.end_joins(Disconnection::new(disconnect)).await
    }

    /// Ends joins as [`disconnect`](Self::disconnect) does, and says how many those were; `None` if
    /// that takes too long. A session too slow to be told is ended as a whole, and not counted.
    ///
    /// # Errors
    /// Those of [`disconnect`](Self::disconnect).
    pub async fn disconnect_counted(
        &self,
        disconnect: Disconnect,
    ) -> Result<Option<usize>, Unanswered> {
        let (disconnection, count) = Disconnection::counted(disconnect);
        self.end_joins(disconnection).await?;
        Ok(timeout(self.0.limits.wait_max, count).await.ok().and_then(Result::ok))
    }

    async fn end_joins(&self, disconnection: Disconnection) -> Result<(), Unanswered> {
        let end = EndJoins(disconnection.into());
        let told = self.0.fanouts.ask(end, self.0.limits.wait_max).await;
        // A thread that was lost has ended all its sessions.
        if told.contains(&Asked::Late) { Err(Unanswered) } else { Ok(()) }
    }

    /// Gives a publication its place in the order of its scope. Where nobody listens it is dropped.
    ///
    /// # Errors
    /// [`PublishError::Busy`] if there is no room for it in time; it is not published then.
    pub async fn publish(&self, publication: Publication) -> Result<Receipt, PublishError> {
        self.publish_all(vec![publication]).await
    }

    /// Publishes all, in order, or none. They are counted for the app of the first.
    ///
    /// Once it holds its permits it hands over everything without a pause: a caller that is dropped
    /// while it waits has published all or nothing.
    ///
    /// # Errors
    /// [`PublishError::Busy`]: none was published.
    pub async fn publish_all(
        &self,
        publications: Vec<Publication>,
    ) -> Result<Receipt, PublishError> {
        let permits = self.take_permits(&publications).await?;
        let mut positions = Vec::with_capacity(publications.len());
        let mut all_skipped = Vec::new();
        let taken_at = Instant::now();
        let mut batch: Vec<Accepted> = Vec::with_capacity(publications.len());
        for (publication, permit) in publications.into_iter().zip(permits) {
            if batch.last().is_some_and(|last| !last.shares_scope_with(&publication)) {
                self.hand_over(mem::take(&mut batch), &mut positions);
            }
            let (accepted, skipped) = Accepted::new(publication, taken_at, permit);
            all_skipped.extend(skipped);
            batch.push(accepted);
        }
        self.hand_over(batch, &mut positions);
        Ok(Receipt::new(positions, all_skipped, self.0.limits.wait_max))
    }

    /// Publishes all, in order, or none, unless they were published with this key before. While
    /// another caller publishes them with this key, this one waits, and answers like it.
    ///
    /// A caller that is dropped while it waits has either published nothing and left the key free, or
    /// published all and left the key with its receipt.
    ///
    /// # Errors
    /// [`OnceError`]: none was published.
    pub async fn publish_once(
        &self,
        key: IdempotencyKey,
        publications: Vec<Publication>,
    ) -> Result<Published, OnceError> {
        let Some(first) = publications.first() else {
            return Ok(Published::Now(self.publish_all(publications).await?));
        };
        let (app, content) = (first.app, Content::of(&publications));
        let deadline = time::Instant::now() + self.0.limits.wait_max;
        loop {
            match self.0.keys.claim(app, key, content, Instant::now()) {
                Claim::First(claimed) => return self.publish_with(claimed, publications).await,
                Claim::Done(receipt) => return Ok(Published::Before(receipt)),
                Claim::OtherContent => return Err(OnceError::OtherContent),
                Claim::UnderWay(first) => {
                    let ended = timeout_at(deadline, first.ended()).await;
                    ended.map_err(|_| PublishError::Busy)?;
                }
            }
        }
    }

    async fn publish_with(
        &self,
        claimed: Claimed<Receipt>,
        publications: Vec<Publication>,
    ) -> Result<Published, OnceError> {
        let receipt = self.publish_all(publications).await?;
        // Nothing is awaited between the last publication and here, so the key is always completed
        // if they were published.
        if claimed.complete(receipt.clone(), Instant::now()) {
            self.0.metrics.hit(Limit::IdempotencyKeys);
        }
        Ok(Published::Now(receipt))
    }

    /// Keeps to what may be remembered of an app as of now, after it was changed or deleted.
    pub(super) fn review(&self, app: AppId) {
        self.0.directory.review(app, now_ms());
        if !self.0.directory.has(app) {
            self.0.keys.forget_app(app);
        }
    }

    /// Has publications of one scope placed in its order and handed to the threads that hear it.
    /// Nobody need wait until the fan-outs get to them: the permits bound what is under way.
    fn hand_over(&self, accepted: Vec<Accepted>, positions: &mut Vec<StreamPosition>) {
        let Some(Accepted { publication, .. }) = accepted.first() else { return };
        let key = ScopeKey { app: publication.app, scope: publication.scope.clone() };
        let count = accepted.len();
        let directory = &self.0.directory;
        let mut accepted = Some(accepted);
        let mut publish = |stream: &Stream| {
            let number = self.0.batches.fetch_add(1, Relaxed) + 1;
            stream.publish(number, accepted.take().unwrap_or_default(), now_ms(), positions)
        };
        let published = directory.with(&key, &mut publish);
        let retained = || directory.ensure(&key).then(|| directory.with(&key, publish)).flatten();
        let Some(exceeded) = published.or_else(retained) else {
            return positions.extend(directory.unheard(&key, count));
        };
        let channels = exceeded.channels.then_some(Limit::HistoryChannels);
        let bytes = exceeded.bytes.then(|| directory.relieve(key.app)).flatten();
        channels.into_iter().chain(bytes).for_each(|limit| self.0.metrics.hit(limit));
    }

    /// Evicts publications that are too old and forgets idempotency keys that have expired, for as long
    /// as this runs.
    pub async fn keep_history(self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.0.directory.sweep(now_ms());
            self.0.keys.expire(Instant::now());
        }
    }

    /// The newest position of a scope, for whoever wants to hear everything that is published from
    /// now on. `None` if the app has subscribers in as many scopes as it may, and in this one none.
    pub fn head(&self, key: &ScopeKey) -> Option<StreamPosition> {
        let directory = &self.0.directory;
        let head = || directory.with(key, Stream::head);
        head().or_else(|| directory.ensure(key).then(head).flatten())
    }

    /// What is retained for a channel after a position, the oldest first; without a position the newest.
    /// At most `publications_max`.
    pub fn history(
        &self,
        key: &ScopeKey,
        channel: &ChannelName,
        since: Since,
        publications_max: usize,
    ) -> HistoryPage {
        let directory = &self.0.directory;
        let page = |stream: &Stream| stream.page(channel, since, publications_max, now_ms());
        let page = || directory.with(key, page);
        page().or_else(|| directory.ensure(key).then(page).flatten()).unwrap_or_else(|| {
            let incomplete = (since != Since::Now).then_some(Incomplete::Off);
            HistoryPage { incomplete, position: None, publications: Vec::new() }
        })
    }

    /// Bytes that all apps retain.
    pub fn retained_bytes(&self) -> usize {
        self.0.directory.retained().bytes
    }

    /// Ends publishing: waits, at most so long, until every accepted publication has reached the
    /// outboxes of its subscribers; from then on whoever publishes is told [`PublishError::Busy`].
    pub async fn finish(&self, wait_max: Duration) {
        self.0.permits.finish(wait_max).await;
    }

    /// Waits until [`finish`](Self::finish) was called and nothing is under way: from then on no
    /// publication is accepted, and none takes a place in an order.
    pub async fn finished(&self) {
        self.0.permits.finished().await;
    }

    /// Writes what is retained, as of now. Blocks.
    ///
    /// # Errors
    /// Those of `target`.
    pub fn save(&self, target: impl io::Write) -> io::Result<Totals> {
        saving::save(&self.0.directory, target, now_ms())
    }

    /// Takes up what was saved, as far as it may still be retained. Blocks. Must be called before
    /// anything is published or joined.
    ///
    /// # Errors
    /// [`ArchiveError`]: nothing was taken up.
    pub fn load(&self, source: impl io::Read) -> Result<Totals, ArchiveError> {
        saving::load(&self.0.directory, source, now_ms())
    }

    /// What bounds the publications and announcements that are under way.
    pub(super) fn permits(&self) -> &Permits {
        &self.0.permits
    }

    /// A name that nothing else has.
    pub(super) fn reference(&self) -> ByteString {
        self.0.references.give()
    }

    /// The bounds.
    pub(super) fn limits(&self) -> &TopicLimits {
        &self.0.limits
    }

    /// Whether publications may be on their way to a thread: there are newer ones, of whatever app,
    /// than those that its fan-out has begun to hand out, and not all have reached their outboxes.
    pub fn has_more_for(&self, thread: &ThreadFanout) -> bool {
        self.0.batches.load(Relaxed) > thread.handed.get() && self.0.permits.is_any_held()
    }

    /// Takes a permit for each of these publications within the time limit.
    async fn take_permits(
        &self,
        publications: &[Publication],
    ) -> Result<Vec<Permit>, PublishError> {
        let Some(first) = publications.first() else { return Ok(Vec::new()) };
        let taken = self.0.permits.take(first.app, publications.len());
        let taken = timeout(self.0.limits.wait_max, taken).await.map_err(|_| {
            self.0.metrics.hit(Limit::PublicationsInFlight);
            PublishError::Busy
        })?;
        taken.map(Permit::into_singles).ok_or(PublishError::Busy)
    }

    /// Has a tracked session show another meta; nothing happens where it is not tracked.
    ///
    /// # Errors
    /// [`PublishError::Busy`] if the tracker did not take it in time.
    pub async fn update(
        &self,
        key: &ScopeKey,
        channel: ChannelName,
        session: SessionId,
        meta: JsonObject,
    ) -> Result<(), PublishError> {
        let Some(tracker) = self.tracker(key) else { return Ok(()) };
        let update = tracker.send(Update { channel, session, meta });
        // A tracker that is gone has lost its sessions: they come back with the meta they join with.
        timeout(self.0.limits.wait_max, update).await.map_or(Err(PublishError::Busy), |_| Ok(()))
    }

    /// Who is tracked on a channel right now.
    ///
    /// # Errors
    /// [`Unanswered`] if the tracker does not answer in time.
    pub async fn members(
        &self,
        key: &ScopeKey,
        channel: &ChannelName,
    ) -> Result<Roster, Unanswered> {
        let Some(tracker) = self.tracker(key) else { return Ok(Roster::default()) };
        let asked = tracker.send(WhoIsThere(channel.clone()));
        let members = timeout(self.0.limits.wait_max, asked).await.map_err(|_| Unanswered)?;
        // Nobody is there whose tracker has just ended.
        Ok(members.unwrap_or_default())
    }

    /// The streams.
    pub(super) fn directory(&self) -> &Directory {
        &self.0.directory
    }

    /// Opens a scope for a thread whose first listener comes: all that is published from now on is
    /// handed to its fan-out.
    ///
    /// # Errors
    /// [`SubscribeError::TooManyScopes`].
    pub(super) fn open(
        &self,
        key: &ScopeKey,
        worker: WorkerId,
        fanout: Addr<Fanout>,
        now_ms: u64,
    ) -> Result<Listeners, SubscribeError> {
        let opened = self.0.directory.open(key, worker, fanout, now_ms);
        let (stream, head) = opened.map_err(|TooManyScopes| SubscribeError::TooManyScopes)?;
        Ok(Listeners::new(stream, head, self.0.metrics.app(key.app.0)))
    }

    /// The actor that tracks members in a scope, if there has been one to track.
    pub(super) fn tracker(&self, key: &ScopeKey) -> Option<Addr<Tracker>> {
        self.0.directory.with(key, Stream::tracker).flatten()
    }

    /// Starts the tracker of a stream on the worker thread that its key hashes to; `None` if there is
    /// no thread left.
    pub(super) fn start_tracker(&self, stream: &Arc<Stream>) -> Option<Addr<Tracker>> {
        let key = stream.key();
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let hash = hasher.finish();
        let mut workers = self.workers_mut();
        loop {
            let nth = usize::try_from(hash % u64::try_from(workers.len()).ok()?.max(1)).ok()?;
            let worker = workers.get(nth)?;
            if worker.spawn_fn(|| ()) {
                let (key, stream, topics) = (key.clone(), Arc::downgrade(stream), self.clone());
                // Made over there: were it dropped here, it would look for its stream, whose lock is
                // held.
                let tracker = move |_: &mut Context<Tracker>| Tracker::new(key, stream, topics);
                return Some(Tracker::start_in_arbiter(worker, tracker));
            }
            // This thread has ended.
            workers.swap_remove(nth);
        }
    }

    /// How long anything that is asked may take.
    pub fn wait_max(&self) -> Duration {
        self.0.limits.wait_max
    }

    /// The fan-outs of all threads.
    pub(super) fn fanouts(&self) -> &Fanouts {
        &self.0.fanouts
    }

    fn workers_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<ArbiterHandle>> {
        self.0.workers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(skipped: Vec<oneshot::Receiver<usize>>, wait_max: Duration) -> Receipt {
        Receipt::new(Vec::new(), skipped, wait_max)
    }

    #[tokio::test]
    async fn a_receipt_adds_up_what_it_is_told_and_waits_only_so_long() {
        let (mut tell, mut skipped) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (told, heard) = oneshot::channel();
            tell.push(told);
            skipped.push(heard);
        }
        let (late, never) = oneshot::channel::<usize>();
        for (told, count) in tell.into_iter().zip([2, 3]) {
            told.send(count).expect("somebody waits");
        }
        let receipt = about(skipped, Duration::from_secs(10));
        assert!(receipt.may_skip());
        let clone = receipt.clone();
        assert_eq!(receipt.skipped().await, Some(5));
        assert_eq!(clone.skipped().await, Some(5));
        let receipt = about(vec![never], Duration::from_millis(10));
        assert_eq!(receipt.skipped().await, None);
        drop(late);
        let nothing = about(Vec::new(), Duration::ZERO);
        assert!(!nothing.may_skip());
    }
}
