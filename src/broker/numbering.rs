//! The numbering of publications: the source of the epoch and the offsets of a scope.
//!
//! A server without a cluster numbers the publications of each scope itself. In a cluster, a publication
//! has the offset of its record in the log's partition, which is the same on all nodes. In that case this
//! node notes the position up to which it has read each partition, and the offsets of publications that it
//! has not retained.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    app::AppId,
    engine::{LogEpoch, Partition},
};

use super::{
    history::History,
    position::{Epoch, Epochs, StreamPosition},
    subscriber::ScopeKey,
    topic_name::Scope,
};

/// The most apps for which a partition notes separately the offsets that were not retained. Beyond it, they
/// are noted for all apps together.
const APPS_MAX: usize = 10_000;

/// The source of epochs and offsets. Clones share it.
#[derive(Clone)]
pub(super) enum Numbering {
    /// This server.
    Own(Arc<Epochs>),
    /// The log of a cluster.
    Log(Arc<Heads>),
}

/// The positions up to which this node has read each partition.
pub(super) struct Heads(Box<[Followed]>);

struct Followed {
    head: Mutex<PartitionHead>,
    /// The missing offsets. The lock is never held across an await.
    gaps: Mutex<Gaps>,
}

/// The position up to which this node has read one partition.
pub(super) struct PartitionHead {
    epoch: LogEpoch,
    /// The offset of the next record.
    next: u64,
}

/// The offsets of one partition up to and including which publications may be missing here.
#[derive(Default)]
struct Gaps {
    /// The offset for publications of any app.
    all: u64,
    /// The offsets for publications of single apps, which were not retained, or are not retained any more.
    apps: HashMap<AppId, u64>,
}

/// The numbering of one scope, while its partition of the log is locked.
pub(super) enum ScopeNumbering<'a> {
    /// This server.
    Own(&'a Epochs),
    /// The log of a cluster.
    Log(Following<'a>),
}

/// A partition, which is locked against further reading.
pub(super) struct Following<'a> {
    head: MutexGuard<'a, PartitionHead>,
    gaps: &'a Mutex<Gaps>,
}

/// The bytes that identify a scope in the log: the id of the app and the name.
pub(super) fn scope_bytes(ScopeKey { app, scope }: &ScopeKey) -> Vec<u8> {
    [&app.0.to_le_bytes()[..], scope.as_str().as_bytes()].concat()
}

/// The scope that these bytes identify in the log; `None` if there is no such scope.
pub(super) fn read_scope(bytes: &[u8]) -> Option<ScopeKey> {
    let (app, scope) = bytes.split_first_chunk()?;
    let scope = Scope::restore(str::from_utf8(scope).ok()?).ok()?;
    Some(ScopeKey { app: AppId(i32::from_le_bytes(*app)), scope })
}

impl Numbering {
    /// The numbering of a server without a cluster.
    pub(super) fn own() -> Self {
        Self::Own(Arc::new(Epochs::new()))
    }

    /// The numbering of a scope. Until this is dropped, no record of its partition is read.
    pub(super) fn of(&self, key: &ScopeKey) -> ScopeNumbering<'_> {
        match self {
            Self::Own(epochs) => ScopeNumbering::Own(epochs),
            Self::Log(heads) => ScopeNumbering::Log(heads.lock(heads.partition_of(key))),
        }
    }

    /// Notes that the history of a scope was dropped, whose newest publication had this position.
    pub(super) fn forgotten(&self, key: &ScopeKey, head: StreamPosition) {
        if let Self::Log(heads) = self {
            heads.followed(heads.partition_of(key)).gaps.lock().add(key.app, head.offset);
        }
    }
}

impl ScopeNumbering<'_> {
    /// The history of a scope that has none yet.
    pub(super) fn begin(&self, key: &ScopeKey) -> History {
        match self {
            Self::Own(epochs) => History::new(epochs.give(key)),
            Self::Log(log) => log.begin(key),
        }
    }

    /// The position up to which this node has read the log, as a position of the scope; `None` without a log.
    pub(super) fn head(&self, key: &ScopeKey) -> Option<StreamPosition> {
        match self {
            Self::Own(_) => None,
            Self::Log(log) => Some(log.head(key)),
        }
    }
}

impl Heads {
    /// A number of partitions, of which no record has been read.
    pub(super) fn new(partitions: u16) -> Self {
        let new = || Followed {
            head: Mutex::new(PartitionHead { epoch: LogEpoch(0), next: 1 }),
            gaps: Mutex::default(),
        };
        Self((0..partitions.max(1)).map(|_| new()).collect())
    }

    /// The partition of a scope.
    pub(super) fn partition_of(&self, key: &ScopeKey) -> Partition {
        Partition::of(&scope_bytes(key), self.0.len() as u16)
    }

    /// A partition, which is locked against further reading.
    pub(super) fn lock(&self, partition: Partition) -> Following<'_> {
        let Followed { head, gaps } = self.followed(partition);
        Following { head: head.lock(), gaps }
    }

    fn followed(&self, Partition(nth): Partition) -> &Followed {
        // An engine delivers no partition beyond the number that was requested.
        &self.0[usize::from(nth) % self.0.len()]
    }
}

impl Following<'_> {
    /// Notes that the record at this offset has been read.
    pub(super) fn read(&mut self, offset: u64) {
        self.head.next = offset + 1;
    }

    /// Notes that the publication of an app at this offset was not retained.
    pub(super) fn skip(&mut self, app: AppId, offset: u64) {
        self.gaps.lock().add(app, offset);
    }

    /// Continues at an offset of an epoch. Publications below it may be missing here.
    pub(super) fn go_on(&mut self, epoch: LogEpoch, next: u64) {
        *self.head = PartitionHead { epoch, next };
        *self.gaps.lock() = Gaps { all: next.saturating_sub(1), apps: HashMap::new() };
    }

    /// The history of a scope that has none yet.
    pub(super) fn begin(&self, key: &ScopeKey) -> History {
        History::of_log(self.head(key), self.gap(key.app))
    }

    /// The position of the newest record that is read, as a position of a scope.
    pub(super) fn head(&self, key: &ScopeKey) -> StreamPosition {
        self.position(key, self.head.next.saturating_sub(1))
    }

    /// An offset of this partition, as a position of a scope.
    pub(super) fn position(&self, key: &ScopeKey, offset: u64) -> StreamPosition {
        StreamPosition { epoch: Epoch::of_log(key, self.head.epoch), offset }
    }

    fn gap(&self, app: AppId) -> u64 {
        let gaps = self.gaps.lock();
        gaps.all.max(gaps.apps.get(&app).copied().unwrap_or_default())
    }
}

impl Gaps {
    fn add(&mut self, app: AppId, offset: u64) {
        if self.apps.len() >= APPS_MAX && !self.apps.contains_key(&app) {
            let most = self.apps.drain().map(|(_, offset)| offset).max();
            self.all = self.all.max(most.unwrap_or_default());
        }
        let gap = self.apps.entry(app).or_default();
        *gap = offset.max(*gap);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::key;
    use super::*;

    #[test]
    fn a_new_history_knows_what_was_read_before_it_and_was_not_retained() {
        let heads = Arc::new(Heads::new(1));
        let (one, other) = (key(1, "public"), key(2, "public"));
        let mut log = heads.lock(Partition(0));
        log.go_on(LogEpoch(7), 10);
        log.read(10);
        log.skip(AppId(1), 10);
        log.read(11);
        drop(log);
        let numbering = Numbering::Log(heads.clone());
        let begin = |key: &ScopeKey| {
            let history = numbering.of(key).begin(key);
            (history.head().offset, history.evicted().all)
        };
        assert_eq!(begin(&one), (11, 10), "what the app did not retain is missing");
        assert_eq!(begin(&other), (11, 9), "nothing of it has come since this node began to read");
        let head = numbering.of(&other).head(&other).expect("a head");
        numbering.forgotten(&other, head);
        assert_eq!(begin(&other), (11, 11));
        heads.lock(Partition(0)).go_on(LogEpoch(8), 1);
        assert_eq!(begin(&other), (0, 0), "all of the new epoch is known");
    }

    #[test]
    fn of_too_many_apps_it_is_only_known_that_something_may_be_missing() {
        let heads = Heads::new(1);
        let mut log = heads.lock(Partition(0));
        log.go_on(LogEpoch(7), 1);
        for app in 0..APPS_MAX {
            log.skip(AppId(app as i32), 1 + app as u64);
        }
        assert_eq!((log.gap(AppId(3)), log.gap(AppId(-1))), (4, 0));
        log.skip(AppId(-1), 20_000);
        assert_eq!((log.gap(AppId(3)), log.gap(AppId(-1))), (10_000, 20_000));
    }

    #[test]
    fn a_scope_is_read_as_it_was_written_and_no_other_bytes_are_a_scope() {
        for scope in [key(1, "public"), key(-1, "x"), key(i32::MAX, "a_-9")] {
            assert_eq!(read_scope(&scope_bytes(&scope)), Some(scope));
        }
        for bytes in [&b""[..], b"\x01\0\0\0", b"\x01\0\0", b"\x01\0\0\0a b", b"\x01\0\0\0\xff"] {
            assert_eq!(read_scope(bytes), None, "{bytes:?}");
        }
    }
}
