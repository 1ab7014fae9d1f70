//! Idempotency keys: a publisher that repeats a request with the same key publishes nothing twice.
//!
//! A publisher claims a key before its publications are accepted, and the key has their outcome
//! afterwards. A claim that is dropped without an outcome leaves the key free, so a publisher that gives
//! up, or is refused, never blocks its own repetition. Keys are kept in memory for [`REMEMBERED`] after
//! the outcome is known, up to a limit. A graceful stop saves them for the next start.
//!
//! Nothing here reads a clock: every call takes the time.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::app::{AppId, subject::Subject};

use super::publication::{Destination, NameError, Payload, Publication};

/// The time for which a key is remembered after its publications were accepted.
pub const REMEMBERED: Duration = Duration::from_secs(300);

/// A SHA-256.
type Digest = [u8; 32];

/// The owner of a key. The same text is another key for another owner, so that no owner can take
/// the keys of another, neither by guessing nor by chance.
#[derive(Debug, Clone, Copy)]
pub enum KeyOwner<'a> {
    /// The web application, which has the app's secret.
    Application,
    /// The holder of a token that the web application minted for itself. All such tokens without a
    /// subject have the same owner.
    TriggerToken(Option<&'a Subject>),
    /// A visitor that the token names.
    Visitor(&'a Subject),
    /// A visitor that its token does not name. Each such token is an owner.
    Anonymous(&'a [u8]),
}

impl KeyOwner<'_> {
    fn party(&self) -> Party {
        match self {
            Self::Application | Self::TriggerToken(_) => Party::Application,
            Self::Visitor(_) | Self::Anonymous(_) => Party::Visitors,
        }
    }

    /// Adds the bytes that distinguish this owner: a tag and an identity of fixed length.
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

/// The owners that share a limit, so that visitors cannot displace the keys of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Party {
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
    /// The most bytes that a key may have.
    pub const BYTES_MAX: usize = 128;

    /// Reads a key: any text of 1 to 128 bytes.
    ///
    /// # Errors
    /// [`NameError::Empty`], [`NameError::TooLong`].
    pub fn parse(raw: &str, owner: KeyOwner<'_>) -> Result<Self, NameError> {
        match raw.len() {
            0 => Err(NameError::Empty),
            bytes if bytes > Self::BYTES_MAX => Err(NameError::TooLong(Self::BYTES_MAX)),
            _ => {
                let mut hasher = Sha256::new();
                owner.add_to(&mut hasher);
                hasher.update(raw);
                Ok(Self { party: owner.party(), digest: hasher.finalize().into() })
            }
        }
    }

    /// The owners with which this key shares a limit.
    pub(super) fn party(self) -> Party {
        self.party
    }

    /// The key, for [`IdempotencyKey::from_bytes`] of another process.
    pub(super) fn to_bytes(self) -> [u8; 33] {
        let mut bytes = [0; 33];
        bytes[0] = match self.party {
            Party::Application => 0,
            Party::Visitors => 1,
        };
        bytes[1..].copy_from_slice(&self.digest);
        bytes
    }

    /// The key with these bytes; `None` if they are not those of a key.
    pub(super) fn from_bytes([party, digest @ ..]: [u8; 33]) -> Option<Self> {
        let party = match party {
            0 => Party::Application,
            1 => Party::Visitors,
            _ => return None,
        };
        Some(Self { party, digest })
    }
}

/// A digest of the publications of a request. It depends neither on the spelling of the request nor
/// on the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentDigest(Digest);

impl ContentDigest {
    /// The content of publications, in their order.
    pub(super) fn of(publications: &[Publication]) -> Self {
        let mut hasher = Sha256::new();
        for Publication { scope, destination, event, payload, .. } in publications {
            // Only a channel's name does not begin with `#`.
            let destination: &str = match destination {
                Destination::General => Destination::GENERAL,
                Destination::Channel(channel) => channel.as_str(),
            };
            let (kind, payload): (&[u8], &[u8]) = match payload {
                Payload::Json(json) => (b"json", json.as_str().as_bytes()),
                Payload::Bytes(bytes) => (b"bytes", bytes),
            };
            let [scope, event] = [scope.as_str(), event.as_str()].map(str::as_bytes);
            for part in [scope, destination.as_bytes(), event, kind, payload] {
                // Each part is preceded by its length, so that no two contents yield the same bytes.
                hasher.update((part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        Self(hasher.finalize().into())
    }

    /// The digest, for [`ContentDigest::from_bytes`] of another process.
    pub(super) fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// The content with this digest.
    pub(super) fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

/// A key whose outcome is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RememberedKey<T> {
    pub(super) app: AppId,
    pub(super) key: IdempotencyKey,
    pub(super) content: ContentDigest,
    pub(super) outcome: T,
    /// The time since the outcome became known.
    pub(super) age: Duration,
}

/// The state of a key that a publisher wants to use.
pub(super) enum Claim<T> {
    /// The key was free: the publisher has claimed it, and publishes.
    First(Claimed<T>),
    /// Another publisher has claimed it with the same content. The key is to be claimed again once
    /// that publisher has ended.
    UnderWay(Other),
    /// The same content was published with the key, with this outcome.
    Done(T),
    /// Other content was published with the key, or is under way.
    OtherContent,
}

/// The publisher that has claimed a key.
#[derive(Clone)]
pub(super) struct Other(watch::Receiver<()>);

impl Other {
    /// Waits until the publisher has published or given up.
    pub(super) async fn ended(mut self) {
        // Nothing is ever sent on the channel; it only closes.
        while self.0.changed().await.is_ok() {}
    }
}

/// The keys of all apps, each with the outcome of its publications. Clones share them.
#[derive(Clone)]
pub(super) struct IdempotencyKeys<T>(Arc<Inner<T>>);

struct Inner<T> {
    /// The most finished keys of one party of one app that are remembered.
    keys_max: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    books: HashMap<(AppId, Party), PartyBook<T>>,
    /// The number of claims so far.
    claims: u64,
}

/// The keys of one party of one app.
struct PartyBook<T> {
    entries: HashMap<Digest, KeyEntry<T>>,
    /// The finished keys and the times of their outcomes, oldest first.
    done: VecDeque<(Instant, Digest)>,
}

struct KeyEntry<T> {
    content: ContentDigest,
    progress: KeyProgress<T>,
}

enum KeyProgress<T> {
    UnderWay { claim: u64, publisher: Other },
    Done(T),
}

/// The right to publish with a key. Dropped without an outcome, it leaves the key free.
pub(super) struct Claimed<T> {
    keys: IdempotencyKeys<T>,
    app: AppId,
    key: IdempotencyKey,
    claim: u64,
    /// Wakes the publishers that wait for this one when it is dropped.
    _ended: watch::Sender<()>,
}

impl<T: Clone> IdempotencyKeys<T> {
    /// Remembers for each app at most `keys_max` keys of the application, and as many of its visitors.
    pub(super) fn new(keys_max: usize) -> Self {
        let state = State { books: HashMap::new(), claims: 0 };
        Self(Arc::new(Inner { keys_max, state: Mutex::new(state) }))
    }

    /// Claims a key of an app for this content, or returns the state that prevents it.
    pub(super) fn claim(
        &self,
        app: AppId,
        key: IdempotencyKey,
        content: ContentDigest,
        now: Instant,
    ) -> Claim<T> {
        let mut state = self.0.state.lock();
        state.claims += 1;
        let claim = state.claims;
        let book = state.books.entry((app, key.party)).or_default();
        book.expire(now);
        match book.entries.get(&key.digest) {
            Some(entry) if entry.content != content => Claim::OtherContent,
            Some(KeyEntry { progress: KeyProgress::Done(outcome), .. }) => {
                Claim::Done(outcome.clone())
            }
            Some(KeyEntry { progress: KeyProgress::UnderWay { publisher, .. }, .. }) => {
                Claim::UnderWay(publisher.clone())
            }
            None => {
                let (ended, receiver) = watch::channel(());
                let progress = KeyProgress::UnderWay { claim, publisher: Other(receiver) };
                book.entries.insert(key.digest, KeyEntry { content, progress });
                Claim::First(Claimed { keys: self.clone(), app, key, claim, _ended: ended })
            }
        }
    }

    /// Waits until each key that is claimed now is done or free again.
    pub(super) async fn settled(&self) {
        for publisher in self.under_way() {
            publisher.ended().await;
        }
    }

    /// The publishers that have claimed a key.
    fn under_way(&self) -> Vec<Other> {
        let state = self.0.state.lock();
        let entries = state.books.values().flat_map(|book| book.entries.values());
        let publisher = |entry: &KeyEntry<T>| match &entry.progress {
            KeyProgress::UnderWay { publisher, .. } => Some(publisher.clone()),
            KeyProgress::Done(_) => None,
        };
        entries.filter_map(publisher).collect()
    }

    /// The finished keys. Those of one party of one app are consecutive, oldest first.
    pub(super) fn remembered(&self, now: Instant) -> Vec<RememberedKey<T>> {
        self.expire(now);
        let state = self.0.state.lock();
        let of_book = |((app, party), book): (&(AppId, Party), &PartyBook<T>)| {
            let remembered = |(at, digest): &(Instant, Digest)| {
                let KeyEntry { content, progress } = book.entries.get(digest)?;
                let KeyProgress::Done(outcome) = progress else { return None };
                let key = IdempotencyKey { party: *party, digest: *digest };
                let (content, outcome) = (*content, outcome.clone());
                let age = now.saturating_duration_since(*at);
                Some(RememberedKey { app: *app, key, content, outcome, age })
            };
            book.done.iter().filter_map(remembered).collect::<Vec<_>>()
        };
        state.books.iter().flat_map(of_book).collect()
    }

    /// Restores keys, in the order in which [`remembered`](Self::remembered) returns them. It must be called
    /// before any publication. Returns the number of restored keys.
    pub(super) fn remember_again(
        &self,
        keys: impl IntoIterator<Item = RememberedKey<T>>,
        now: Instant,
    ) -> usize {
        let mut state = self.0.state.lock();
        let keys = keys.into_iter().filter(|remembered| remembered.age < REMEMBERED);
        for RememberedKey { app, key, content, outcome, age } in keys {
            let book = state.books.entry((app, key.party)).or_default();
            let entry = KeyEntry { content, progress: KeyProgress::Done(outcome) };
            if book.entries.insert(key.digest, entry).is_none() {
                let at = now.checked_sub(age).unwrap_or(now);
                let at = book.done.back().map_or(at, |(before, _)| at.max(*before));
                book.done.push_back((at, key.digest));
            }
            if book.done.len() > self.0.keys_max {
                book.forget_oldest();
            }
        }
        state.books.values().map(|book| book.done.len()).sum()
    }

    /// Forgets the keys that have expired. A claim does so only for the keys of its own party.
    pub(super) fn expire(&self, now: Instant) {
        self.0.state.lock().books.retain(|_, book| {
            book.expire(now);
            !book.entries.is_empty()
        });
    }

    /// Forgets the keys of an app that is gone. A publisher that has claimed one still publishes.
    pub(super) fn forget_app(&self, app: AppId) {
        let mut state = self.0.state.lock();
        for party in [Party::Application, Party::Visitors] {
            state.books.remove(&(app, party));
        }
    }
}

impl<T> Default for PartyBook<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), done: VecDeque::new() }
    }
}

impl<T> PartyBook<T> {
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
    /// Remembers the outcome. Returns whether the oldest key was forgotten early to make room for it.
    pub(super) fn complete(self, outcome: T, now: Instant) -> bool {
        let mut state = self.keys.0.state.lock();
        let Some(book) = state.books.get_mut(&(self.app, self.key.party)) else { return false };
        let Some(entry) = book.entries.get_mut(&self.key.digest) else { return false };
        if !entry.progress.is_of(self.claim) {
            return false;
        }
        entry.progress = KeyProgress::Done(outcome);
        book.done.push_back((now, self.key.digest));
        let is_full = book.done.len() > self.keys.0.keys_max;
        if is_full {
            book.forget_oldest();
        }
        is_full
        // `self` takes the lock again when it is dropped, which is after `state` has released it.
    }
}

impl<T> Drop for Claimed<T> {
    fn drop(&mut self) {
        let mut state = self.keys.0.state.lock();
        let Some(book) = state.books.get_mut(&(self.app, self.key.party)) else { return };
        let is_own = |entry: &KeyEntry<T>| entry.progress.is_of(self.claim);
        if book.entries.get(&self.key.digest).is_some_and(is_own) {
            book.entries.remove(&self.key.digest);
        }
        // `_ended` is dropped after this, so waiting publishers find the key free, or done.
    }
}

impl<T> KeyProgress<T> {
    /// Returns whether the key is claimed by this claim.
    fn is_of(&self, own: u64) -> bool {
        matches!(self, Self::UnderWay { claim, .. } if *claim == own)
    }
}

#[cfg(test)]
mod tests;
