//! Disconnects in the log.
//!
//! A disconnect is a question to all live nodes, and then a record in each partition whose scopes it may concern. A
//! node that was cut off from Redis is not asked once its lease has expired, and keeps its sessions. When it returns,
//! it reads the record before all publications that were appended after the disconnect was answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future;
use hashlink::LinkedHashSet;
use parking_lot::Mutex;

use crate::{
    broker::{
        disconnection::Disconnection,
        fanout::EndJoins,
        subscriber::{Disconnect, ScopeKey},
        topics::{Topics, Unanswered},
    },
    engine::{Append, Partition, Record},
};

use super::{
    Cluster,
    record::{self, DisconnectRecord, Entry},
};

/// The number of disconnects that a node remembers. The record of a disconnect is in several partitions, which a node
/// reads one after another, so it meets the same disconnect again after all that it has missed meanwhile. A node
/// carries out a forgotten disconnect a second time; a client that has rejoined since then must join once more.
const REMEMBERED_MAX: usize = 65_536;

/// The newest disconnects that this node has carried out.
#[derive(Debug, Default)]
pub(super) struct RecentDisconnects(Mutex<LinkedHashSet<u64>>);

impl RecentDisconnects {
    /// Notes a disconnect. Returns whether it is new.
    fn note(&self, id: u64) -> bool {
        let mut recent = self.0.lock();
        // An insertion would make a known one the newest.
        if recent.contains(&id) {
            return false;
        }
        recent.insert(id);
        if recent.len() > REMEMBERED_MAX {
            recent.pop_front();
        }
        true
    }
}

impl Cluster {
    /// Notes that this node carries out a disconnect as the answer to a question, so that it ignores the records.
    pub(in crate::broker) fn note_disconnect(&self, id: u64) {
        self.disconnects.note(id);
    }

    /// Appends a disconnect to the log, for the nodes that could not be asked.
    ///
    /// # Errors
    /// [`Unanswered`] if it may be missing in a partition; a retry is safe.
    pub(in crate::broker) async fn append_disconnect(
        &self,
        id: u64,
        joins: Disconnect,
        wait_max: Duration,
    ) -> Result<(), Unanswered> {
        let of_scope = |key: &ScopeKey| self.heads.partition_of(key);
        let only = match &joins {
            Disconnect::Place(place) => Some(of_scope(&place.key)),
            _ => None,
        };
        // The record belongs to no scope: nodes that do not know such records skip it.
        let (scope, body) = (Bytes::new(), DisconnectRecord { id, joins }.write());
        let append = Append::records(vec![Record { scope, body }]);
        let deadline = Instant::now() + wait_max;
        let partitions = (0..self.engine.partitions()).map(Partition);
        let concerned = partitions.filter(|each| only.is_none_or(|only| only == *each));
        let appends = concerned.map(|each| self.engine.append(each, append.clone(), deadline));
        let appended = future::try_join_all(appends.collect::<Vec<_>>()).await;
        appended.map(drop).map_err(|_| Unanswered)
    }

    /// Ends the joins that a record names, unless this node has done so already.
    pub(super) fn read_disconnect(&self, topics: &Topics, body: &Bytes) {
        if let Some(Entry::Disconnect(DisconnectRecord { id, joins })) = record::read(body)
            && self.disconnects.note(id)
        {
            topics.fanouts().tell(&EndJoins(Arc::new(Disconnection::new(joins))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_disconnects_are_remembered() {
        let recent = RecentDisconnects::default();
        assert!((0..=REMEMBERED_MAX as u64).all(|id| recent.note(id)));
        assert!(!recent.note(1) && !recent.note(REMEMBERED_MAX as u64));
        assert!(recent.note(0), "the oldest one is forgotten");
        let recent = RecentDisconnects::default();
        let of_all_partitions = || (0..16).flat_map(|_| 0..3_000);
        assert_eq!(of_all_partitions().filter(|id| recent.note(*id)).count(), 3_000);
    }
}
