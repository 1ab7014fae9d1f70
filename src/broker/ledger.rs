//! The ledger: how much each app may retain, and how much it does, over all its scopes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{
    app::{AppDirectory, AppId},
    settings::{AppHistory, HistorySettings},
};

use super::history::Retention;

/// What all apps retain. Clones share it.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Shared>);

struct Shared {
    apps: AppDirectory,
    limits: HistorySettings,
    bytes: AtomicUsize,
}

impl Ledger {
    /// Nothing is retained yet.
    pub(super) fn new(apps: AppDirectory, limits: HistorySettings) -> Self {
        Self(Arc::new(Shared { apps, limits, bytes: AtomicUsize::new(0) }))
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

    /// The account of an app that retains nothing yet.
    pub(super) fn open(&self, app: AppId) -> Arc<Account> {
        Arc::new(Account { app, bytes: AtomicUsize::new(0), ledger: self.clone() })
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

    /// Notes that a scope of the app retains so many bytes, and no longer so many.
    pub(super) fn note(&self, before: usize, now: usize) {
        for count in [&self.bytes, &self.ledger.0.bytes] {
            // Wraps, if it is less: what was added before is subtracted.
            count.fetch_add(now.wrapping_sub(before), Relaxed);
        }
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
