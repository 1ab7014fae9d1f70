//! The retention ledger: the amount that each app may retain, and the amount that it retains, over all its
//! scopes.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
};

use crate::{
    app::{AppDirectory, AppId},
    settings::{AppHistory, HistorySettings},
};

use super::{
    history::{History, Retention},
    last_events::{LastEventLimits, LastEvents},
};

/// The accounts of all apps: how much each of them retains. Clones share it.
#[derive(Clone)]
pub(super) struct RetentionLedger(Arc<Shared>);

struct Shared {
    apps: AppDirectory,
    limits: HistorySettings,
    last_events: LastEvents,
    bytes: AtomicUsize,
    publications: AtomicUsize,
    /// The number of interruptions of all streams.
    interruptions: AtomicU64,
}

impl RetentionLedger {
    /// The number of interruptions of all streams so far. They share it, because a scope may get another stream while
    /// an interruption of the earlier one is on its way to a thread.
    pub(super) fn interruptions(&self) -> u64 {
        self.0.interruptions.load(SeqCst)
    }

    /// Counts an interruption, and returns their number.
    pub(super) fn note_interruption(&self) -> u64 {
        self.0.interruptions.fetch_add(1, SeqCst) + 1
    }

    /// A ledger without accounts.
    pub(super) fn new(
        apps: AppDirectory,
        limits: HistorySettings,
        last_events: LastEventLimits,
    ) -> Self {
        Self(Arc::new(Shared {
            apps,
            limits,
            last_events: LastEvents::new(last_events),
            bytes: AtomicUsize::new(0),
            publications: AtomicUsize::new(0),
            interruptions: AtomicU64::new(0),
        }))
    }

    /// The bounds.
    pub(super) fn limits(&self) -> &HistorySettings {
        &self.0.limits
    }

    /// The present retention of each scope of an app.
    pub(super) fn retention(&self, app: AppId) -> Retention {
        let Self(shared) = self;
        let apps = shared.apps.load();
        let AppHistory { publications, age } = match apps.by_id(app) {
            Some(app) => shared.limits.of(&app.settings),
            None => AppHistory::NONE,
        };
        match publications {
            0 => Retention::NONE,
            publications_max => Retention {
                publications_max,
                age_max: age,
                channels_max: shared.limits.channels_max,
            },
        }
    }

    /// The last events of cache channels.
    pub(super) fn last_events(&self) -> &LastEvents {
        &self.0.last_events
    }

    /// Drops expired last events, and those of apps that do not exist or are inactive.
    pub(super) fn sweep_last_events(&self, now_ms: u64) {
        let apps = self.0.apps.load();
        let is_active = |app| apps.by_id(app).is_some_and(|app| app.settings.active);
        self.0.last_events.sweep(now_ms, is_active);
    }

    /// Drops the expired last events of an app, or all of them if the app does not exist or is inactive.
    pub(super) fn review_last_events(&self, app: AppId, now_ms: u64) {
        let apps = self.0.apps.load();
        let is_active = apps.by_id(app).is_some_and(|app| app.settings.active);
        self.0.last_events.sweep_app(app, now_ms, is_active);
    }

    /// Returns whether the app exists.
    pub(super) fn has(&self, app: AppId) -> bool {
        self.0.apps.load().by_id(app).is_some()
    }

    /// The time at which an app was created, in Unix microseconds; `None` if there is no such app.
    pub(super) fn created_us(&self, app: AppId) -> Option<i64> {
        self.0.apps.load().by_id(app).map(|app| app.inserted_at.timestamp_micros())
    }

    /// The bytes of memory that all apps retain.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Relaxed)
    }

    /// The number of publications that all apps retain.
    pub(super) fn publications(&self) -> usize {
        self.0.publications.load(Relaxed)
    }

    /// The account of an app that retains nothing yet.
    pub(super) fn open(&self, app: AppId) -> Arc<Account> {
        Arc::new(Account { app, bytes: AtomicUsize::new(0), ledger: self.clone() })
    }
}

/// An amount of retained publications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RetainedTotals {
    /// The bytes of memory.
    pub(super) bytes: usize,
    /// The number of publications.
    pub(super) publications: usize,
}

impl RetainedTotals {
    /// The amount that a history retains.
    pub(super) fn by(history: &History) -> Self {
        Self { bytes: history.bytes(), publications: history.len() }
    }
}

/// The amount that one app retains, over all its scopes.
pub(super) struct Account {
    app: AppId,
    bytes: AtomicUsize,
    pub(super) ledger: RetentionLedger,
}

impl Account {
    /// The present retention of each scope of the app.
    pub(super) fn retention(&self) -> Retention {
        self.ledger.retention(self.app)
    }

    /// Notes the amount that a scope of the app retained before, and the amount that it retains
    /// now.
    pub(super) fn note(&self, before: RetainedTotals, now: RetainedTotals) {
        let shared = &self.ledger.0;
        // The difference wraps if it is negative, so adding it subtracts.
        let bytes = now.bytes.wrapping_sub(before.bytes);
        self.bytes.fetch_add(bytes, Relaxed);
        shared.bytes.fetch_add(bytes, Relaxed);
        shared.publications.fetch_add(now.publications.wrapping_sub(before.publications), Relaxed);
    }

    /// Returns whether the app, or all apps together, retain more than they may.
    pub(super) fn is_exceeded(&self) -> bool {
        let limits = self.ledger.limits();
        self.bytes() > limits.app_bytes_max || self.ledger.bytes() > limits.bytes_max
    }

    /// The bytes of memory that the app retains.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }
}
