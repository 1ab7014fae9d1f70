//! The ledger: how much each app may retain, and how much it does, over all its scopes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{
    app::{AppDirectory, AppId},
    settings::{AppHistory, HistorySettings},
};

use super::history::{History, Retention};

/// What all apps retain. Clones share it.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Shared>);

struct Shared {
    apps: AppDirectory,
    limits: HistorySettings,
    bytes: AtomicUsize,
    publications: AtomicUsize,
}

impl Ledger {
    /// Nothing is retained yet.
    pub(super) fn new(apps: AppDirectory, limits: HistorySettings) -> Self {
        Self(Arc::new(Shared {
            apps,
            limits,
            bytes: AtomicUsize::new(0),
            publications: AtomicUsize::new(0),
        }))
    }

    /// The bounds.
    pub(super) fn limits(&self) -> &HistorySettings {
        &self.0.limits
    }

    /// What an app retains of each scope, as of now.
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

    /// Whether there is such an app, as of now.
    pub(super) fn has(&self, app: AppId) -> bool {
        self.0.apps.load().by_id(app).is_some()
    }

    /// When an app was created, in Unix microseconds; `None` if there is no such app.
    pub(super) fn created_us(&self, app: AppId) -> Option<i64> {
        self.0.apps.load().by_id(app).map(|app| app.inserted_at.timestamp_micros())
    }

    /// Bytes that all apps retain.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Relaxed)
    }

    /// Publications that all apps retain.
    pub(super) fn publications(&self) -> usize {
        self.0.publications.load(Relaxed)
    }

    /// The account of an app that retains nothing yet.
    pub(super) fn open(&self, app: AppId) -> Arc<Account> {
        Arc::new(Account { app, bytes: AtomicUsize::new(0), ledger: self.clone() })
    }
}

/// How much is retained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// The memory that it takes.
    pub(super) bytes: usize,
    /// How many publications these are.
    pub(super) publications: usize,
}

impl Held {
    /// What a history retains.
    pub(super) fn by(history: &History) -> Self {
        Self { bytes: history.bytes(), publications: history.len() }
    }
}

/// What one app retains, over all its scopes.
pub(super) struct Account {
    app: AppId,
    bytes: AtomicUsize,
    ledger: Ledger,
}

impl Account {
    /// What the app retains of each scope, as of now.
    pub(super) fn retention(&self) -> Retention {
        self.ledger.retention(self.app)
    }

    /// The bounds that all apps share.
    pub(super) fn limits(&self) -> &HistorySettings {
        self.ledger.limits()
    }

    /// Notes what a scope of the app retained before, and what it retains now.
    pub(super) fn note(&self, before: Held, now: Held) {
        let shared = &self.ledger.0;
        // Wraps, if it is less: what was added before is subtracted.
        let bytes = now.bytes.wrapping_sub(before.bytes);
        self.bytes.fetch_add(bytes, Relaxed);
        shared.bytes.fetch_add(bytes, Relaxed);
        shared.publications.fetch_add(now.publications.wrapping_sub(before.publications), Relaxed);
    }

    /// Whether the app, or all apps together, retain more than they may.
    pub(super) fn is_exceeded(&self) -> bool {
        let limits = self.limits();
        self.bytes() > limits.app_bytes_max || self.ledger.bytes() > limits.bytes_max
    }

    /// Bytes that the app retains.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }
}
