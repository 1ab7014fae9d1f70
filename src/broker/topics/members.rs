//! The members that are tracked on a channel: the actors that track them, and questions about them.

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::Instant,
};

use actix::prelude::*;
use bytestring::ByteString;
use tokio::time::timeout;

use super::{PublishError, Topics, Unanswered};
use crate::{
    broker::{
        cluster::{Cluster, MemberValue},
        numbering::scope_bytes,
        presence::{Member, Roster},
        publication::JsonText,
        stream::Stream,
        subscriber::{Place, ScopeKey, SessionId},
        topic_name::ChannelName,
        tracker::{Tracker, UpdateMember, WhoIsThere},
    },
    engine::EngineState,
};

impl Topics {
    /// Changes the custom data of a tracked session. Does nothing if the session is not tracked.
    ///
    /// # Errors
    /// [`PublishError::Busy`] if the tracker did not take the change in time.
    pub async fn update(
        &self,
        key: &ScopeKey,
        channel: ChannelName,
        session: SessionId,
        custom: JsonText,
    ) -> Result<(), PublishError> {
        let Some(tracker) = self.tracker(key) else { return Ok(()) };
        let update = tracker.send(UpdateMember { channel, session, custom });
        // If the tracker has ended, its sessions have ended, too. They rejoin with the data of their next
        // join.
        timeout(self.0.limits.wait_max, update).await.map_or(Err(PublishError::Busy), |_| Ok(()))
    }

    /// The members that are tracked on a channel now.
    ///
    /// # Errors
    /// [`Unanswered`] if the tracker does not answer in time.
    pub async fn members(
        &self,
        key: &ScopeKey,
        channel: &ChannelName,
    ) -> Result<Roster, Unanswered> {
        if let Some(cluster) = self.cluster() {
            return self.members_in_log(cluster, key, channel).await;
        }
        let Some(tracker) = self.tracker(key) else { return Ok(Roster::default()) };
        let asked = tracker.send(WhoIsThere(channel.clone()));
        let members = timeout(self.0.limits.wait_max, asked).await.map_err(|_| Unanswered)?;
        // A tracker that has just ended has no members.
        Ok(members.unwrap_or_default())
    }

    async fn members_in_log(
        &self,
        cluster: &Cluster,
        key: &ScopeKey,
        channel: &ChannelName,
    ) -> Result<Roster, Unanswered> {
        if cluster.state() != EngineState::Up {
            return Err(Unanswered);
        }
        let (partition, place) = (cluster.heads().partition_of(key), place_bytes(key, channel));
        let deadline = Instant::now() + self.0.limits.wait_max;
        let snapshot = cluster.engine().members(partition, place.into(), deadline).await;
        let snapshot = snapshot.map_err(|_| Unanswered)?;
        let mut members: Vec<_> = snapshot
            .members
            .iter()
            .filter_map(|member| {
                let value = MemberValue::read(&member.value)?;
                let (reference, previous) = (value.reference.as_str().into(), None);
                let member_of = Member { persona: value.persona()?, reference, previous };
                Some((member.member.clone(), Arc::new(member_of)))
            })
            .collect();
        // The names are the ids of the sessions, so this is the order in which the sessions began.
        members.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(members.iter().map(|(_, member)| member).collect())
    }

    /// The keys of the members that are tracked on a channel now, each once.
    ///
    /// # Errors
    /// [`Unanswered`] if the tracker does not answer in time.
    pub async fn users(&self, place: &Place) -> Result<BTreeSet<ByteString>, Unanswered> {
        let Some(channel) = &place.channel else { return Ok(BTreeSet::new()) };
        let members = self.members(&place.key, channel).await?;
        Ok(members.iter().map(|(key, _)| key.into()).collect())
    }

    /// The actor that tracks the members in a scope, if there is one.
    pub(in crate::broker) fn tracker(&self, key: &ScopeKey) -> Option<Addr<Tracker>> {
        self.0.directory.with(key, Stream::tracker).flatten()
    }

    /// Starts the tracker of a stream on the worker thread to which the hash of its key maps; `None` if no
    /// thread is left.
    pub(in crate::broker) fn start_tracker(&self, stream: &Arc<Stream>) -> Option<Addr<Tracker>> {
        let key = stream.key();
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let hash = hasher.finish();
        let mut workers = self.0.workers.write();
        loop {
            let nth = usize::try_from(hash % u64::try_from(workers.len()).ok()?.max(1)).ok()?;
            let worker = workers.get(nth)?;
            if worker.spawn_fn(|| ()) {
                let (key, stream, topics) = (key.clone(), Arc::downgrade(stream), self.clone());
                // The tracker is created on its own thread, because dropping it here would lock its stream, whose
                // lock is held.
                let tracker = move |_: &mut Context<Tracker>| Tracker::new(key, stream, topics);
                return Some(Tracker::start_in_arbiter(worker, tracker));
            }
            // This thread has ended.
            workers.swap_remove(nth);
        }
    }
}

/// The bytes that identify in the log a channel where members are tracked.
pub(in crate::broker) fn place_bytes(key: &ScopeKey, channel: &ChannelName) -> Vec<u8> {
    let mut bytes = scope_bytes(key);
    bytes.push(b':');
    bytes.extend_from_slice(channel.as_str().as_bytes());
    bytes
}
