//! Idempotency keys: a publisher that repeats a request with the same key publishes nothing twice.
//!
//! A key is claimed before its publications are accepted and holds their outcome afterwards. A claim
//! that is dropped without an outcome leaves the key free, so a publisher that gives up, or is
//! refused, never blocks the repetition. Keys are remembered in memory, for [`REMEMBERED`] after the
//! outcome is known, and only as many as the limit allows.
//!
//! Nothing here reads a clock: every call takes the time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::app::{AppId, subject::Subject};

use super::publication::{Destination, NameError, Payload, Publication};

/// How long a key is remembered after its publications were accepted.
pub const REMEMBERED: Duration = Duration::from_secs(300);

/// A SHA-256.
type Digest = [u8; 32];

/// Whose a key is. The same text is another key for another owner, so that no owner can take the keys
/// of another, whether it guesses them or meets them by chance.
#[derive(Debug, Clone, Copy)]
pub enum KeyOwner<'a> {
    /// The web application, which has the app's secret.
    Application,
    /// The holder of a token that the web application minted for itself. Such tokens without a
    /// subject have one owner.
    TriggerToken(Option<&'a Subject>),
    /// A visitor whom the token names.
    Visitor(&'a Subject),
    /// A visitor whom the token, which is given here, does not name. Each such token is an owner.
    Anonymous(&'a [u8]),
}

impl KeyOwner<'_> {
    fn party(&self) -> Party {
        match self {
            Self::Application | Self::TriggerToken(_) => Party::Application,
            Self::Visitor(_) | Self::Anonymous(_) => Party::Visitors,
        }
    }

    /// Adds what only this owner has: a tag and, of fixed length, who it is.
    fn add_to(&self, hasher: &mut Sha256) {
        let (tag, who) = match self {
            Self::Application => (0, Digest::default()),
            Self::TriggerToken(None) => (1, Digest::default()),
            Self::TriggerToken(Some(subject)) => (2, Sha256::digest(subject.digest()).into()),
            Self::Visitor(subject) => (3, Sha256::digest(subject.digest()).into()),
            Self::Anonymous(token) => (4, Sha256::digest(token).into()),
        };
        hasher.update([tag]);
        hasher.update(who);
    }
}

/// The owners that share a limit: visitors cannot make the keys of the application be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Party {
    Application,
    Visitors,
}

/// An idempotency key with its owner, kept as a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    party: Party,
    digest: Digest,
}

impl IdempotencyKey {
    /// The most bytes a key may have.
    pub const BYTES_MAX: usize = 128;

    /// Reads a key: any text of 1 to 128 bytes.
    ///
    /// # Errors
    /// [`NameError::Empty`], [`NameError::TooLong`].
    pub fn parse(raw: &str, owner: KeyOwner<'_>) -> Result<Self, NameError> {
        match raw.len() {
            0 => Err(NameError::Empty),
            bytes if bytes > Self::BYTES_MAX => Err(NameError::TooLong),
            _ => {
                let mut hasher = Sha256::new();
                owner.add_to(&mut hasher);
                hasher.update(raw);
                Ok(Self { party: owner.party(), digest: hasher.finalize().into() })
            }
        }
    }
}

/// What a request publishes, kept as a digest. It does not depend on how the request was spelled, nor
/// on the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content(Digest);

impl Content {
    /// The content of publications, in their order.
    pub(super) fn of(publications: &[Publication]) -> Self {
        let mut hasher = Sha256::new();
        for Publication { app: _, scope, destination, event, payload } in publications {
            // Only a channel's name does not begin with `#`.
            let destination: &str = match destination {
                Destination::General => Destination::GENERAL,
                Destination::Channel(channel) => channel.as_str(),
            };
            let (kind, payload): (&[u8], &[u8]) = match payload {
                Payload::Object(object) => (b"object", object.as_str().as_bytes()),
                Payload::Bytes(bytes) => (b"bytes", bytes),
            };
            let [scope, event] = [scope.as_str(), event.as_str()].map(str::as_bytes);
            for part in [scope, destination.as_bytes(), event, kind, payload] {
                // With the length before each part, no two contents are the same bytes.
                hasher.update((part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        Self(hasher.finalize().into())
    }
}

/// What is known of a key that a publisher wants to use.
pub(super) enum Claim<T> {
    /// Nothing: the publisher has claimed it, and shall publish.
    First(Claimed<T>),
    /// Another publisher has claimed it with the same content. The key is to be claimed again once
    /// that publisher has ended.
    UnderWay(Other),
    /// The same content was published with it, with this outcome.
    Done(T),
    /// Other content was published with it, or is under way.
    OtherContent,
}

/// The publisher that has claimed a key.
#[derive(Clone)]
pub(super) struct Other(watch::Receiver<()>);

impl Other {
    /// Waits until the publisher has published or given up.
    pub(super) async fn ended(mut self) {
        // Nothing is ever sent: the channel closes.
        while self.0.changed().await.is_ok() {}
    }
}

/// The keys of all apps, each with the outcome of its publications. Clones share them.
#[derive(Clone)]
pub(super) struct Keys<T>(Arc<Inner<T>>);

struct Inner<T> {
    /// The finished keys of one party of one app that are remembered.
    keys_max: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    books: HashMap<(AppId, Party), Book<T>>,
    /// The claims so far.
    claims: u64,
}

/// The keys of one party of one app.
struct Book<T> {
    entries: HashMap<Digest, Entry<T>>,
    /// The keys that are done and the times at which they were, oldest first.
    done: VecDeque<(Instant, Digest)>,
}

struct Entry<T> {
    content: Content,
    progress: Progress<T>,
}

enum Progress<T> {
    UnderWay { claim: u64, publisher: Other },
    Done(T),
}

/// The right to publish with a key. Dropped without an outcome, it leaves the key free.
pub(super) struct Claimed<T> {
    keys: Keys<T>,
    app: AppId,
    key: IdempotencyKey,
    claim: u64,
    /// Tells the publishers that wait for this one, when it is dropped.
    _ended: watch::Sender<()>,
}

impl<T: Clone> Keys<T> {
    /// Remembers at most `keys_max` keys of each app's own, and as many of its visitors.
    pub(super) fn new(keys_max: usize) -> Self {
        let state = State { books: HashMap::new(), claims: 0 };
        Self(Arc::new(Inner { keys_max, state: Mutex::new(state) }))
    }

    /// Claims a key of an app for this content, or says what is known of it.
    pub(super) fn claim(
        &self,
        app: AppId,
        key: IdempotencyKey,
        content: Content,
        now: Instant,
    ) -> Claim<T> {
        let mut state = self.state();
        state.claims += 1;
        let claim = state.claims;
        let book = state.books.entry((app, key.party)).or_default();
        book.expire(now);
        match book.entries.get(&key.digest) {
            Some(entry) if entry.content != content => Claim::OtherContent,
            Some(Entry { progress: Progress::Done(outcome), .. }) => Claim::Done(outcome.clone()),
            Some(Entry { progress: Progress::UnderWay { publisher, .. }, .. }) => {
                Claim::UnderWay(publisher.clone())
            }
            None => {
                let (ended, receiver) = watch::channel(());
                let progress = Progress::UnderWay { claim, publisher: Other(receiver) };
                book.entries.insert(key.digest, Entry { content, progress });
                Claim::First(Claimed { keys: self.clone(), app, key, claim, _ended: ended })
            }
        }
    }

    /// Forgets the keys that have expired. A claim forgets only those beside its own key.
    pub(super) fn expire(&self, now: Instant) {
        self.state().books.retain(|_, book| {
            book.expire(now);
            !book.entries.is_empty()
        });
    }

    /// Forgets the keys of an app that is gone. A publisher that has claimed one publishes all the same.
    pub(super) fn forget_app(&self, app: AppId) {
        let mut state = self.state();
        for party in [Party::Application, Party::Visitors] {
            state.books.remove(&(app, party));
        }
    }
}

impl<T> Keys<T> {
    /// The state; no code that may panic holds the lock over a change that is half done.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), done: VecDeque::new() }
    }
}

impl<T> Book<T> {
    fn expire(&mut self, now: Instant) {
        let is_over = |at: Instant| now.saturating_duration_since(at) >= REMEMBERED;
        while self.done.front().is_some_and(|(at, _)| is_over(*at)) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, digest)) = self.done.pop_front() {
            self.entries.remove(&digest);
        }
    }
}

impl<T> Claimed<T> {
    /// Remembers the outcome. Answers whether the oldest key was forgotten early to make room for it.
    pub(super) fn complete(self, outcome: T, now: Instant) -> bool {
        let mut state = self.keys.state();
        let Some(book) = state.books.get_mut(&(self.app, self.key.party)) else { return false };
        let Some(entry) = book.entries.get_mut(&self.key.digest) else { return false };
        if !entry.progress.is_of(self.claim) {
            return false;
        }
        entry.progress = Progress::Done(outcome);
        book.done.push_back((now, self.key.digest));
        let is_full = book.done.len() > self.keys.0.keys_max;
        if is_full {
            book.forget_oldest();
        }
        is_full
        // `self` takes the lock again when it is dropped, after `state` has given it back.
    }
}

impl<T> Drop for Claimed<T> {
    fn drop(&mut self) {
        let mut state = self.keys.state();
        let Some(book) = state.books.get_mut(&(self.app, self.key.party)) else { return };
        let is_own = |entry: &Entry<T>| entry.progress.is_of(self.claim);
        if book.entries.get(&self.key.digest).is_some_and(is_own) {
            book.entries.remove(&self.key.digest);
        }
        // `_ended` is dropped after this, so those who wait find the key free, or done.
    }
}

impl<T> Progress<T> {
    /// Whether the key is under way by this claim.
    fn is_of(&self, own: u64) -> bool {
        matches!(self, Self::UnderWay { claim, .. } if *claim == own)
    }
}

#[cfg(test)]
mod tests;
