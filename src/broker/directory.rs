//! The directory: finds the stream of each scope that somebody hears.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use actix::prelude::*;

use crate::app::AppId;

use super::{
    backlog::Backlog,
    fanout::{Fanout, WorkerId},
    position::{Epochs, StreamPosition},
    stream::Stream,
    subscriber::ScopeKey,
    topic_name::Scope,
};

/// An app has subscribers in as many scopes as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyScopes;

/// The streams of all apps.
///
/// A stream is made for the first thread that hears its scope, and forgotten under the lock for
/// writing. A stream that is found under the lock for reading is therefore the one of its scope for
/// as long as that lock is held.
pub(super) struct Directory {
    streams: RwLock<Streams>,
    epochs: Epochs,
    backlog: Backlog,
    scopes_per_app_max: usize,
}

type Streams = HashMap<AppId, HashMap<Scope, Arc<Stream>>>;

impl Directory {
    /// An empty directory, in which each app may have so many scopes.
    pub(super) fn new(scopes_per_app_max: usize, backlog: Backlog) -> Self {
        let (streams, epochs) = (RwLock::default(), Epochs::new());
        Self { streams, epochs, backlog, scopes_per_app_max }
    }

    /// Uses the stream of a scope while it cannot be forgotten; `None` if nobody hears the scope.
    pub(super) fn with<R>(
        &self,
        app: AppId,
        scope: &Scope,
        with: impl FnOnce(&Stream) -> R,
    ) -> Option<R> {
        let streams = self.read();
        streams.get(&app)?.get(scope).map(|stream| with(stream))
    }

    /// The position of a publication that nobody hears: the first `offset` of an order that is
    /// forgotten at once.
    pub(super) fn unheard(&self, publications: usize) -> impl Iterator<Item = StreamPosition> {
        let epoch = self.epochs.give();
        (1..).take(publications).map(move |offset| StreamPosition { epoch, offset })
    }

    /// Has everything that is published to a scope from now on handed to the fan-out of a thread.
    /// Answers the scope's stream, and the last position that the thread is not handed.
    ///
    /// # Errors
    /// [`TooManyScopes`].
    pub(super) fn open(
        &self,
        key: &ScopeKey,
        worker: WorkerId,
        fanout: Addr<Fanout>,
    ) -> Result<(Arc<Stream>, StreamPosition), TooManyScopes> {
        let mut streams = self.write();
        let scopes = streams.entry(key.app).or_default();
        if let Some(stream) = scopes.get(&key.scope) {
            return Ok((stream.clone(), stream.open(worker, fanout)));
        }
        if scopes.len() >= self.scopes_per_app_max {
            return Err(TooManyScopes);
        }
        let stream = Arc::new(Stream::new(key.clone(), self.epochs.give(), self.backlog.clone()));
        let head = stream.open(worker, fanout);
        scopes.insert(key.scope.clone(), stream.clone());
        Ok((stream, head))
    }

    /// Hands a thread nothing of a scope any more. A stream that is needed no longer is forgotten.
    pub(super) fn close(&self, key: &ScopeKey, worker: WorkerId) {
        let mut streams = self.write();
        let Some(scopes) = streams.get_mut(&key.app) else { return };
        if scopes.get(&key.scope).is_some_and(|stream| stream.close(worker)) {
            scopes.remove(&key.scope);
        }
        if scopes.is_empty() {
            streams.remove(&key.app);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Streams> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Streams> {
        self.streams.write().unwrap_or_else(PoisonError::into_inner)
    }
}
