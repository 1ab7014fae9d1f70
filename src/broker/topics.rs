//! The directory of topics: the single door through which every publication passes.
//!
//! An engine that carries publications between nodes will stand behind [`Topics::publish`] one day.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    mem,
    rc::Rc,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::prelude::*;
use bytestring::ByteString;
use log::warn;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use crate::{
    app::AppId,
    metrics::{Metrics, labels::Limit},
};

use super::{
    backlog::Backlog,
    disconnection::Disconnection,
    fanout::{EndAll, EndJoins, EndSome, Fanout, ThreadFanout, WorkerId},
    fanouts::{Asked, Fanouts},
    listeners::ListenersId,
    opened::Opened,
    placed::{Batch, Placed},
    presence::{Full, Roster},
    publication::{JsonObject, Publication},
    reference::References,
    subscriber::{Disconnect, ScopeKey, SessionId, Subscription, SubscriptionId},
    topic::{Close, Entrant, FanoutLost, Open, Publish, Topic, Untrack, Update, WhoIsThere},
    topic_name::{ChannelName, Scope},
};

/// Why a publication was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Too much is under way; nothing was published. Trying again later helps.
    #[error("too many publications are under way")]
    Busy,
}

/// Why a subscription was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The app has subscribers in as many scopes as it may.
    #[error("too many scopes")]
    TooManyScopes,
    /// As many are on the channel as may be tracked there.
    #[error("too many members")]
    TooManyMembers,
    /// The topic did not answer in time.
    #[error("the topic is unavailable")]
    Unavailable,
}

/// Not every thread answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a thread did not answer in time")]
pub struct Unanswered;

/// What a publisher can learn about publications that were taken: whom they were kept from.
///
/// Who does not ask waits for nothing.
#[derive(Debug)]
pub struct Receipt {
    skipped: Vec<oneshot::Receiver<usize>>,
    wait_max: Duration,
}

impl Receipt {
    /// Whether there are bytes among them: everybody can be sent anything else.
    pub fn may_skip(&self) -> bool {
        !self.skipped.is_empty()
    }

    /// How many subscribers could not be sent them, over all, once all have been handed out;
    /// `None` if that takes too long.
    pub async fn skipped(self) -> Option<usize> {
        let count = async {
            let mut all = 0;
            for skipped in self.skipped {
                all += skipped.await.ok()?;
            }
            Some(all)
        };
        timeout(self.wait_max, count).await.ok().flatten()
    }
}

/// The bounds of the directory.
#[derive(Debug, Clone, Copy)]
pub struct TopicLimits {
    /// Publications between their topic's mailbox and the last fan-out.
    pub publications_in_flight_max: usize,
    /// Scopes with subscribers per app.
    pub scopes_per_app_max: usize,
    /// Bytes of all frames that wait for clients.
    pub outboxes_bytes_max: usize,
    /// Members tracked on one channel.
    pub presence_members_max: usize,
    /// How long a channel's changes of members are gathered before they are announced together.
    pub presence_interval: Duration,
    /// How long a publisher or a join may wait.
    pub wait_max: Duration,
}

/// Who subscribes: a session, by way of the fan-out that it is attached to.
pub struct Subscriber<'a> {
    /// The session's worker thread.
    pub worker: WorkerId,
    /// The fan-out of that thread.
    pub fanout: &'a Addr<Fanout>,
    /// Among whom it is attached there.
    pub listeners: ListenersId,
    /// The session.
    pub session: SessionId,
    /// Under which id it is attached.
    pub id: SubscriptionId,
}

/// Finds topics, starts them, and hands them publications. Cheap to clone; shared by all threads.
///
/// The locks guard look-ups only; no fan-out passes through them.
#[derive(Clone)]
pub struct Topics(Arc<Inner>);

struct Inner {
    limits: TopicLimits,
    permits: Arc<Semaphore>,
    topics: RwLock<HashMap<AppId, HashMap<Scope, Listed>>>,
    workers: RwLock<Vec<ArbiterHandle>>,
    fanouts: Fanouts,
    next_worker: AtomicU64,
    /// Batches published so far.
    batches: AtomicU64,
    references: References,
    backlog: Backlog,
    metrics: Arc<Metrics>,
}

/// A topic as the directory has it.
#[derive(Clone)]
struct Listed {
    topic: Addr<Topic>,
    opened: Arc<Opened>,
}

impl Topics {
    /// The mailbox capacity of topics and fan-outs: more than permits and joins ever fill.
    pub(super) const MAILBOX_CAPACITY: usize = 1 << 16;

    /// An empty directory.
    pub fn new(limits: TopicLimits, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            limits,
            permits: Arc::new(Semaphore::new(limits.publications_in_flight_max)),
            topics: RwLock::default(),
            workers: RwLock::default(),
            fanouts: Fanouts::default(),
            next_worker: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            references: References::new(),
            backlog: Backlog::new(limits.outboxes_bytes_max),
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

    /// Lets topics be placed on the calling worker thread.
    pub fn add_worker(&self) {
        if let Some(arbiter) = Arbiter::try_current() {
            self.workers_mut().push(arbiter);
        }
    }

    /// Has topics that do not exist yet placed on the calling thread, and on no other.
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

    /// Gives a publication its place in its topic's order. Where nobody listens it is dropped.
    ///
    /// # Errors
    /// [`PublishError::Busy`] if there is no room for it in time; it is not published then.
    pub async fn publish(&self, publication: Publication) -> Result<Receipt, PublishError> {
        self.publish_all(vec![publication]).await
    }

    /// Publishes all, in order, or none.
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
        let permits = self.permits(publications.len()).await?;
        let mut receipt = Receipt { skipped: Vec::new(), wait_max: self.0.limits.wait_max };
        let mut batch: Vec<Placed> = Vec::with_capacity(publications.len());
        for (publication, permit) in publications.into_iter().zip(permits) {
            let (placed, skipped) = Placed::new(publication, permit, self.0.backlog.clone());
            receipt.skipped.extend(skipped);
            if batch.last().is_some_and(|last| last.key() != placed.key()) {
                self.hand_over(mem::take(&mut batch));
            }
            batch.push(placed);
        }
        self.hand_over(batch);
        Ok(receipt)
    }

    /// Hands what is of one scope to its topic. A place in the mailbox is a place in the order: nobody
    /// need wait until the topic gets to it. The permits bound what is under way.
    fn hand_over(&self, publications: Vec<Placed>) {
        let topic = publications.first().and_then(|placed| self.find_alive(placed.key()));
        if let Some(topic) = topic {
            let number = self.0.batches.fetch_add(1, Relaxed) + 1;
            topic.do_send(Publish(Arc::new(Batch { number, publications })));
        }
    }

    /// Ends publishing: waits, at most so long, until every accepted publication has reached the
    /// outboxes of its subscribers; from then on whoever publishes is told [`PublishError::Busy`].
    pub async fn finish(&self, wait_max: Duration) {
        let all = u32::try_from(self.0.limits.publications_in_flight_max).unwrap_or(u32::MAX);
        // Out of time: what is still under way is as lost as the server. The permits are kept until
        // the door is shut, or whoever waits behind would slip through.
        let permits = timeout(wait_max, self.0.permits.acquire_many(all)).await;
        self.0.permits.close();
        drop(permits);
    }

    /// Takes a permit for an announcement, if there is one.
    pub(super) fn permit_at_once(&self) -> Option<OwnedSemaphorePermit> {
        self.0.permits.clone().try_acquire_owned().ok()
    }

    /// Takes a permit for an announcement behind those who wait already; `None` once the server
    /// stops.
    pub(super) fn permit_in_turn(
        &self,
    ) -> impl Future<Output = Option<OwnedSemaphorePermit>> + use<> {
        let permit = self.0.permits.clone().acquire_owned();
        async { permit.await.ok() }
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
        self.0.batches.load(Relaxed) > thread.handed.get()
            && self.0.permits.available_permits() < self.0.limits.publications_in_flight_max
    }

    /// Takes `count` permits within the time limit.
    async fn permits(&self, count: usize) -> Result<Vec<OwnedSemaphorePermit>, PublishError> {
        let count = u32::try_from(count).map_err(|_| PublishError::Busy)?;
        let acquire = self.0.permits.clone().acquire_many_owned(count);
        let acquired = timeout(self.0.limits.wait_max, acquire).await.map_err(|_| {
            self.0.metrics.hit(Limit::PublicationsInFlight);
            PublishError::Busy
        })?;
        let mut all = acquired.map_err(|_| PublishError::Busy)?;
        Ok((0..count).filter_map(|_| all.split(1)).collect())
    }

    /// Makes sure that whatever is published to a scope from now on reaches the subscriber, and has
    /// it tracked if it has a persona.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing is left of the attempt but what was attached at the fan-out.
    pub async fn subscribe(
        &self,
        subscriber: Subscriber<'_>,
        subscription: &Subscription,
    ) -> Result<(), SubscribeError> {
        let (key, worker) = (&subscription.place.key, subscriber.worker);
        // Whom it tracks a topic must hear of one by one.
        if subscription.persona.is_none() && self.is_open(key, worker) {
            return Ok(());
        }
        let open = async {
            loop {
                let Listed { topic, opened } = self.find_or_start(key)?;
                let asked = opened.ask();
                let open = Open {
                    worker,
                    fanout: subscriber.fanout.clone(),
                    listeners: subscriber.listeners,
                    entrant: entrant(&subscriber, subscription),
                };
                if let Ok(outcome) = topic.send(open).await {
                    opened.open(worker, asked);
                    return outcome.map_err(|Full| {
                        self.0.metrics.hit(Limit::PresenceMembers);
                        SubscribeError::TooManyMembers
                    });
                }
                self.forget(key, &topic);
                // A thread that dies may answer at once, over and over: others must get their turn,
                // and the clock its say.
                tokio::task::yield_now().await;
            }
        };
        timeout(self.0.limits.wait_max, open).await.unwrap_or(Err(SubscribeError::Unavailable))
    }

    /// Has a tracked session show another meta; nothing happens where it is not tracked.
    ///
    /// # Errors
    /// [`PublishError::Busy`] if the topic did not take it in time.
    pub async fn update(
        &self,
        key: &ScopeKey,
        channel: ChannelName,
        session: SessionId,
        meta: JsonObject,
    ) -> Result<(), PublishError> {
        let Some(topic) = self.find(key) else { return Ok(()) };
        let update = topic.send(Update { channel, session, meta });
        // A topic that is gone has lost its sessions: they come back with the meta they join with.
        timeout(self.0.limits.wait_max, update).await.map_or(Err(PublishError::Busy), |_| Ok(()))
    }

    /// Who is tracked on a channel right now.
    ///
    /// # Errors
    /// [`Unanswered`] if its topic does not answer in time.
    pub async fn members(
        &self,
        key: &ScopeKey,
        channel: &ChannelName,
    ) -> Result<Roster, Unanswered> {
        let Some(topic) = self.find(key) else { return Ok(Roster::default()) };
        let asked = topic.send(WhoIsThere(channel.clone()));
        let members = timeout(self.0.limits.wait_max, asked).await.map_err(|_| Unanswered)?;
        // Where the topic has just retired nobody is there.
        Ok(members.unwrap_or_default())
    }

    /// Tells a topic that a tracked session has left a channel.
    pub(super) fn untrack(&self, key: &ScopeKey, channel: &ChannelName, session: SessionId) {
        if let Some(topic) = self.find(key) {
            topic.do_send(Untrack { channel: channel.clone(), session });
        }
    }

    /// Tells a topic that a thread's fan-out is gone.
    pub(super) fn fanout_lost(&self, key: &ScopeKey, worker: WorkerId) {
        if let Some(Listed { topic, opened }) = self.listed(key) {
            opened.close(worker);
            topic.do_send(FanoutLost { worker });
        }
    }

    /// Tells a topic that a thread has nobody left who listens.
    pub(super) fn close(&self, key: &ScopeKey, worker: WorkerId) {
        if let Some(Listed { topic, opened }) = self.listed(key) {
            opened.close(worker);
            topic.do_send(Close { worker });
        }
    }

    /// Removes a topic that is gone, unless another has taken its place.
    pub(super) fn forget(&self, key: &ScopeKey, topic: &Addr<Topic>) {
        let mut topics = self.0.topics.write().unwrap_or_else(PoisonError::into_inner);
        let Some(scopes) = topics.get_mut(&key.app) else { return };
        if scopes.get(&key.scope).is_some_and(|listed| listed.topic == *topic) {
            scopes.remove(&key.scope);
        }
        if scopes.is_empty() {
            topics.remove(&key.app);
        }
    }

    pub(super) fn find(&self, key: &ScopeKey) -> Option<Addr<Topic>> {
        self.look_up(key, |listed| listed.topic.clone())
    }

    fn listed(&self, key: &ScopeKey) -> Option<Listed> {
        self.look_up(key, Listed::clone)
    }

    /// Whether a topic is known to hand this thread all that is published.
    pub(super) fn is_open(&self, key: &ScopeKey, worker: WorkerId) -> bool {
        self.look_up(key, |listed| listed.opened.is_open(worker)).unwrap_or(false)
    }

    fn look_up<R>(&self, key: &ScopeKey, read: impl FnOnce(&Listed) -> R) -> Option<R> {
        let topics = self.0.topics.read().unwrap_or_else(PoisonError::into_inner);
        Some(read(topics.get(&key.app)?.get(&key.scope)?))
    }

    /// The topic of a scope; one that has died without a word is forgotten.
    fn find_alive(&self, key: &ScopeKey) -> Option<Addr<Topic>> {
        let topic = self.find(key)?;
        if topic.connected() {
            return Some(topic);
        }
        self.forget(key, &topic);
        None
    }

    fn find_or_start(&self, key: &ScopeKey) -> Result<Listed, SubscribeError> {
        if let Some(listed) = self.listed(key) {
            return Ok(listed);
        }
        let mut topics = self.0.topics.write().unwrap_or_else(PoisonError::into_inner);
        let scopes = topics.entry(key.app).or_default();
        if let Some(listed) = scopes.get(&key.scope) {
            return Ok(listed.clone());
        }
        if scopes.len() >= self.0.limits.scopes_per_app_max {
            return Err(SubscribeError::TooManyScopes);
        }
        let listed = self.start_topic(key).ok_or(SubscribeError::Unavailable)?;
        scopes.insert(key.scope.clone(), listed.clone());
        Ok(listed)
    }

    /// Starts a topic on the worker thread that its key hashes to.
    fn start_topic(&self, key: &ScopeKey) -> Option<Listed> {
        let mut workers = self.workers_mut();
        workers.retain(|worker| worker.spawn_fn(|| ()));
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let nth = usize::try_from(hasher.finish() % u64::try_from(workers.len()).ok()?).ok()?;
        let opened = Arc::new(Opened::default());
        let topic = Topic::new(key.clone(), self.clone(), opened.clone());
        Some(Listed { topic: Topic::start_in_arbiter(workers.get(nth)?, |_| topic), opened })
    }

    /// How long anything that is asked may take.
    pub(super) fn wait_max(&self) -> Duration {
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

/// The subscriber as its topic tracks it, if it does.
fn entrant(subscriber: &Subscriber<'_>, subscription: &Subscription) -> Option<Entrant> {
    let Subscription { place, format, persona, .. } = subscription;
    Some(Entrant {
        session: subscriber.session,
        id: subscriber.id,
        channel: place.channel.clone()?,
        persona: persona.clone()?,
        format: *format,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let receipt = Receipt { skipped, wait_max: Duration::from_secs(10) };
        assert!(receipt.may_skip());
        assert_eq!(receipt.skipped().await, Some(5));
        let receipt = Receipt { skipped: vec![never], wait_max: Duration::from_millis(10) };
        assert_eq!(receipt.skipped().await, None);
        drop(late);
        let nothing = Receipt { skipped: Vec::new(), wait_max: Duration::ZERO };
        assert!(!nothing.may_skip());
    }
}
