//! The broker's follower of the log: passes the records that this node reads to its streams and trackers.
//!
//! All functions run on the engine's thread, one at a time, and wait only for locks that are held briefly.

use std::{sync::Weak, time::Instant};

use bytes::Bytes;
use futures_util::future::{self, BoxFuture, FutureExt};

use crate::{
    broker::{
        cluster::{
            Cluster,
            record::{self, Entry, PublicationEntry},
        },
        feed::Extent,
        now_ms,
        numbering::{Following, read_scope},
        placed::{Accepted, ReadPublication},
        position::StreamPosition,
        subscriber::ScopeKey,
        topics::{Topics, TopicsInner},
        tracker::{MembersLeft, MembersRead, Reincarnated},
    },
    engine::{
        Flow, Follower, Incarnation, LogEpoch, LogPosition, Logged, NodeId, NodeInfo, Partition,
    },
};

/// Passes the records of the log to the broker, for as long as the broker exists.
pub(super) struct BrokerFollower(Weak<TopicsInner>);

impl BrokerFollower {
    pub(super) fn new(topics: &Topics) -> Self {
        Self(topics.downgrade())
    }

    fn topics(&self) -> Option<Topics> {
        Topics::upgrade(&self.0)
    }
}

impl Follower for BrokerFollower {
    fn records(&self, partition: Partition, _: LogEpoch, records: &[Logged]) -> Flow {
        let Some(topics) = self.topics() else { return Flow::Continue };
        let Some(cluster) = topics.cluster() else { return Flow::Continue };
        let mut following = cluster.heads.lock(partition);
        let mut rest = records;
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|record| record.scope == first.scope).count();
            let (of_scope, others) = rest.split_at(same);
            rest = others;
            match read_scope(&first.scope) {
                Some(key) => topics.read(cluster, &key, &mut following, of_scope),
                None => of_scope
                    .iter()
                    .for_each(|record| cluster.read_disconnect(&topics, &record.body)),
            }
            if let Some(last) = of_scope.last() {
                following.read(last.offset);
            }
        }
        drop(following);
        if cluster.remote_flights.pauses(partition) { Flow::Pause } else { Flow::Continue }
    }

    fn new_epoch(&self, partition: Partition, epoch: LogEpoch, next_offset: u64) {
        if let Some(topics) = self.topics() {
            topics.interrupt(partition, epoch, next_offset);
        }
    }

    fn lost(&self, partition: Partition, epoch: LogEpoch, first: u64, next: u64) {
        let Some(topics) = self.topics() else { return };
        log::error!(
            "{} records of partition {} could not be read: the joins of its scopes end, and clients that \
             rejoin are told `expired`",
            next.saturating_sub(first),
            partition.0
        );
        topics.interrupt(partition, epoch, next);
    }

    fn members_left(&self, partition: Partition, at: LogPosition, node: NodeId, _: Incarnation) {
        let Some(topics) = self.topics() else { return };
        let Some(cluster) = topics.cluster() else { return };
        let mut following = cluster.heads.lock(partition);
        for stream in topics.directory().of_partition(&cluster.heads, partition) {
            stream.tell_tracker(MembersLeft { offset: at.offset, node });
        }
        following.read(at.offset);
    }

    fn reincarnated(&self, _: Incarnation) {
        let Some(topics) = self.topics() else { return };
        log::warn!("the lease of this node had expired, and its members had left: they join again");
        for stream in topics.directory().all() {
            stream.tell_tracker(Reincarnated);
        }
    }

    fn told(&self, _: NodeId, message: Bytes) {
        if let Some(topics) = self.topics()
            && let Some(cluster) = topics.cluster()
        {
            cluster.peers.told(&message);
        }
    }

    fn told_lost(&self) {
        if let Some(topics) = self.topics()
            && let Some(cluster) = topics.cluster()
        {
            cluster.peers.told_lost();
        }
    }

    fn asked(&self, _: NodeId, question: Bytes) -> BoxFuture<'static, Bytes> {
        let topics = self.topics();
        let cluster = topics.as_ref().and_then(Topics::cluster);
        match cluster {
            Some(cluster) => cluster.peers.asked(&question),
            None => future::ready(Bytes::new()).boxed(),
        }
    }

    fn nodes_changed(&self, live: &[NodeInfo]) {
        let nodes: Vec<_> = live.iter().map(|info| info.node.0).collect();
        log::info!("live nodes: {nodes:?}");
        if let Some(topics) = self.topics()
            && let Some(cluster) = topics.cluster()
        {
            cluster.counts.tell_all();
        }
    }
}

impl Topics {
    /// Passes the publications of one scope to its stream, and changes of its members to its tracker.
    fn read(
        &self,
        cluster: &Cluster,
        key: &ScopeKey,
        following: &mut Following<'_>,
        records: &[Logged],
    ) {
        let (mut publications, mut unreadable) = (Vec::new(), None);
        let created_us = self.directory().ledger().created_us(key.app);
        for Logged { offset, body, .. } in records {
            match record::read(body) {
                Some(Entry::Publication(entry)) if entry.is_foreign(created_us) => {
                    // The permit that this node may hold for the publication is given back. Streams that begin later
                    // tell clients with older positions that they may have missed some.
                    drop(self.take_own(cluster, key, &entry));
                    following.skip(key.app, *offset);
                    cluster.tell_foreign_records(key.app);
                }
                Some(Entry::Publication(entry)) => publications.push((*offset, entry)),
                Some(Entry::Members(entry)) => {
                    let read = MembersRead { offset: *offset, entry };
                    self.directory().with(key, |stream| stream.tell_tracker(read));
                }
                Some(Entry::Disconnect(_)) => {}
                None if record::is_of_another_version(body) => unreadable = Some(*offset),
                None => {}
            }
        }
        if let Some(offset) = unreadable {
            for (_, entry) in publications {
                // The permit that this node holds for the publication is given back.
                drop(self.take_own(cluster, key, &entry));
            }
            return self.leave_out(
                key,
                following,
                records.last().map_or(offset, |last| last.offset),
            );
        }
        let Some((last, _)) = publications.last() else { return };
        let last = *last;
        let directory = self.directory();
        let is_wanted =
            directory.with(key, |_| ()).is_some() || directory.ensure_following(key, following);
        if !is_wanted {
            // The scope has no subscribers here, and the app retains nothing. The permits that this node holds for
            // the publications are given back.
            for (offset, entry) in publications {
                self.keep_last(key, &entry, following.position(key, offset));
                if let Some(Accepted { publication, .. }) = self.take_own(cluster, key, &entry)
                    && self.feed().is_watched()
                {
                    let position = following.position(key, offset);
                    self.feed().published(&publication, position, Extent::Whole, 0);
                }
            }
            return following.skip(key.app, last);
        }
        let read = publications.into_iter();
        let read =
            read.filter_map(|(offset, entry)| self.read_publication(cluster, key, offset, &entry));
        let mut read = Some(read.collect::<Vec<_>>());
        let exceeded = directory
            .with(key, |stream| stream.place_read(read.take().unwrap_or_default(), now_ms()));
        match exceeded {
            Some(exceeded) => self.note_exceeded(key.app, exceeded),
            // The stream was forgotten at this moment.
            None => following.skip(key.app, last),
        }
    }

    /// Ends the joins of a scope that has records up to this offset which this version cannot read. Clients
    /// that rejoin with a position are told that publications are missing, and the last events of its cache
    /// channels are dropped.
    fn leave_out(&self, key: &ScopeKey, following: &mut Following<'_>, last: u64) {
        log::warn!(
            "another version of Herald wrote records of the app with the number {} that this one cannot \
             read: the joins of their scope end, and clients that rejoin are told `expired`",
            key.app.0
        );
        following.skip(key.app, last);
        self.drop_last_events(|scope| scope == key);
        let next = following.position(key, last);
        self.directory().with(key, |stream| stream.interrupt(next, now_ms()));
    }

    /// Keeps the last event of a cache channel in a scope that has no stream.
    fn keep_last(&self, key: &ScopeKey, entry: &PublicationEntry, position: StreamPosition) {
        // Nearly all publications are skipped here without being decoded.
        let Some(publication) = entry.may_be_cached().then(|| entry.read(key)).flatten() else {
            return;
        };
        let exceeded =
            self.directory().ledger().last_events().note(&publication, position, entry.at_ms());
        exceeded.into_iter().for_each(|limit| self.metrics().hit(limit));
    }

    /// A publication with its position, and with its permit if this node has appended it.
    fn read_publication(
        &self,
        cluster: &Cluster,
        key: &ScopeKey,
        offset: u64,
        entry: &PublicationEntry,
    ) -> Option<ReadPublication> {
        let at_ms = entry.at_ms();
        if let Some(accepted) = self.take_own(cluster, key, entry) {
            return Some(ReadPublication { offset, at_ms, accepted });
        }
        let publication = entry.read(key)?;
        let watched = self.feed().deliveries(publication.app, Extent::Part);
        let hold = cluster.remote_flights.enter().into();
        let (accepted, _) = Accepted::new(publication, Instant::now(), Some(hold));
        Some(ReadPublication { offset, at_ms, accepted: accepted.watched(watched) })
    }

    /// Takes the publication that this node has accepted and appended as this record, with its permit and its counts,
    /// and counts it; `None` if another node has appended it, or if its caller has given up. It is counted even then:
    /// it is delivered, whatever its caller was answered.
    fn take_own(
        &self,
        cluster: &Cluster,
        key: &ScopeKey,
        entry: &PublicationEntry,
    ) -> Option<Accepted> {
        let ticket = entry.ticket.filter(|ticket| cluster.pending.has_reserved(*ticket))?;
        let accepted = cluster.pending.take(ticket);
        match &accepted {
            Some(Accepted { publication, .. }) => self.count_appended(publication),
            None => entry.read(key).iter().for_each(|publication| self.count_appended(publication)),
        }
        accepted
    }

    /// Counts a publication that the log has acknowledged and that this node will not read, and gives it up.
    pub(super) fn leave_unread(&self, accepted: Accepted) {
        self.count_appended(&accepted.publication);
        accepted.give_up();
    }

    /// Continues a partition at an offset. Records before the offset may be missing: the publications of this
    /// node among them are given up, and joins and last events that may lack some end here.
    fn interrupt(&self, partition: Partition, epoch: LogEpoch, next: u64) {
        let Some(cluster) = self.cluster() else { return };
        for left_out in cluster.pending.interrupt(partition, LogPosition { epoch, offset: next }) {
            self.leave_unread(left_out);
        }
        let mut following = cluster.heads.lock(partition);
        following.go_on(epoch, next);
        let is_of_partition = |key: &ScopeKey| cluster.heads.partition_of(key) == partition;
        self.drop_last_events(is_of_partition);
        let streams = self.directory().of_partition(&cluster.heads, partition);
        for stream in streams {
            stream.interrupt(following.head(stream.key()), now_ms());
        }
    }
}
