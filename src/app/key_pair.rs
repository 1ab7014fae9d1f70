//! The key pairs of an app: the current one, and the previous one while it is valid, too.
//!
//! A key pair is a key and its secret. A rotation makes a new pair and keeps the previous one until
//! an *overlap* has passed, so that the web application can change its configuration without an
//! outage. Both pairs do the same until then.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{
    App,
    fields::{Faults, random},
    settings::{Setting, UpTo},
};

/// One of an app's two pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// The pair of the last rotation or change.
    Current,
    /// The pair before it.
    Previous,
}

/// A pair that is valid until its overlap has passed.
#[derive(Debug, Clone)]
pub struct PreviousPair {
    /// User name of HTTP Basic auth.
    pub key: String,
    /// Its password, and a key that signs tokens.
    pub secret: SecretString,
    /// The time at which the pair ends.
    pub expires_at: DateTime<Utc>,
    /// The time at which the pair was last used.
    pub last_use: Arc<LastUse>,
}

impl PreviousPair {
    /// Returns whether the overlap has passed.
    pub fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.expires_at <= now
    }

    /// Returns whether both are the same pair with the same end.
    pub fn is_same(&self, other: &Self) -> bool {
        self.key == other.key
            && self.secret.expose_secret() == other.secret.expose_secret()
            && self.expires_at == other.expires_at
    }
}

/// A new pair that an app is going to have, or that a change has just given to it.
#[derive(Debug, Clone)]
pub struct NewPair {
    /// User name of HTTP Basic auth.
    pub key: String,
    /// Its password, and the key that signs tokens.
    pub secret: SecretString,
}

impl NewPair {
    /// Makes a random pair.
    pub fn random() -> Self {
        Self { key: random(), secret: random().into() }
    }
}

/// The time for which the previous pair stays valid after a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap(Duration);

impl Overlap {
    /// The longest overlap, in seconds: 30 days.
    pub const SECONDS_MAX: u32 = 30 * 24 * 60 * 60;

    /// No overlap: the rotation ends the old pair at once.
    pub const NONE: Self = Self(Duration::ZERO);

    /// Reads `overlap_seconds` of a request; absent, null and an empty string stand for the
    /// default.
    ///
    /// # Errors
    /// The faults of the field.
    pub fn read(given: Option<&Value>) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let seconds: Option<Option<UpTo<{ Self::SECONDS_MAX }>>> = match given {
            Some(given) => faults.keep("overlap_seconds", Setting::read(given)),
            None => Some(None),
        };
        let seconds = seconds.ok_or(faults)?;
        Ok(seconds
            .map_or_else(Self::default, |seconds| Self(Duration::from_secs(seconds.get().into()))))
    }

    /// The end of the overlap that begins now; `None` if there is no overlap.
    pub fn end(self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        (!self.0.is_zero()).then(|| now + self.0)
    }
}

impl Default for Overlap {
    /// One day.
    fn default() -> Self {
        Self(Duration::from_secs(24 * 60 * 60))
    }
}

/// The minute in which a pair was last used. It is shared by all snapshots that know the pair.
#[derive(Default)]
pub struct LastUse {
    /// Unix time in minutes; 0 if the pair was never used.
    minute: AtomicU32,
    /// The last minute that is known to be in the database.
    written: AtomicU32,
}

impl LastUse {
    /// Takes the time that the database has.
    pub fn of_database(at: Option<DateTime<Utc>>) -> Arc<Self> {
        let minute = at.map_or(0, minute_of);
        Arc::new(Self { minute: minute.into(), written: minute.into() })
    }

    /// Records a use now.
    pub fn note(&self) {
        self.note_at(minute_of(Utc::now()));
    }

    fn note_at(&self, minute: u32) {
        // Only the first use within a minute writes. All other uses read a cache line that the
        // threads share.
        if self.minute.load(Relaxed) < minute {
            self.minute.fetch_max(minute, Relaxed);
        }
    }

    /// The time at which the pair was last used, rounded down to the minute.
    pub fn at(&self) -> Option<DateTime<Utc>> {
        time_of(self.minute.load(Relaxed))
    }

    /// The time of the last use, if the database does not have it yet.
    pub fn unwritten(&self) -> Option<DateTime<Utc>> {
        let minute = self.minute.load(Relaxed);
        time_of(minute).filter(|_| minute > self.written.load(Relaxed))
    }

    /// Records that the database has this time.
    pub fn is_written(&self, at: DateTime<Utc>) {
        self.written.fetch_max(minute_of(at), Relaxed);
    }

    /// Takes over the later times of `other`.
    fn merge(&self, other: &Self) {
        self.minute.fetch_max(other.minute.load(Relaxed), Relaxed);
        self.written.fetch_max(other.written.load(Relaxed), Relaxed);
    }
}

impl fmt::Debug for LastUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LastUse").field(&self.at()).finish()
    }
}

fn minute_of(time: DateTime<Utc>) -> u32 {
    u32::try_from(time.timestamp().div_euclid(60)).unwrap_or_default()
}

fn time_of(minute: u32) -> Option<DateTime<Utc>> {
    if minute == 0 { None } else { DateTime::from_timestamp(i64::from(minute) * 60, 0) }
}

/// A use of a pair that the database lacks.
#[derive(Debug)]
pub struct PairUse {
    /// The app's primary key.
    pub app: super::AppId,
    /// The pair's key.
    pub key: String,
    /// The pair's secret.
    pub secret: SecretString,
    /// The time at which the pair was last used, rounded down to the minute.
    pub at: DateTime<Utc>,
    /// The place in which to record that the database has this time.
    pub last_use: Arc<LastUse>,
}

impl App {
    /// Records a use of one of the app's pairs.
    pub fn note_use(&self, pair: Pair) {
        match (pair, &self.previous) {
            (Pair::Current, _) => self.last_use.note(),
            (Pair::Previous, Some(previous)) => previous.last_use.note(),
            (Pair::Previous, None) => {}
        }
    }

    /// The pair with this key, and its secret. A pair whose secret is empty is not found, because
    /// everybody knows that secret.
    pub fn pair_with_key(&self, key: &str) -> Option<(Pair, &SecretString)> {
        let mut pairs = [Pair::Current, Pair::Previous].into_iter().zip(self.pairs());
        let found = pairs.find(|(_, (its_key, secret, _))| {
            *its_key == key && !secret.expose_secret().is_empty()
        });
        found.map(|(pair, (_, secret, _))| (pair, secret))
    }

    /// Both pairs with the record of their last use.
    fn pairs(&self) -> impl Iterator<Item = (&str, &SecretString, &Arc<LastUse>)> {
        let previous = self.previous.as_ref();
        let previous = previous.map(|pair| (pair.key.as_str(), &pair.secret, &pair.last_use));
        [Some((self.key.as_str(), &self.secret, &self.last_use)), previous].into_iter().flatten()
    }

    /// Shares the records of `known`, an older state of the same app, for every pair that both have.
    pub fn share_uses_of(&mut self, known: &Self) {
        let record = |key: &str, secret: &SecretString, newer: &LastUse| {
            let is_same = |known: &(&str, &SecretString, &Arc<LastUse>)| {
                known.0 == key && known.1.expose_secret() == secret.expose_secret()
            };
            let shared = known.pairs().find(is_same)?.2;
            shared.merge(newer);
            Some(shared.clone())
        };
        if let Some(shared) = record(&self.key, &self.secret, &self.last_use) {
            self.last_use = shared;
        }
        if let Some(previous) = &mut self.previous
            && let Some(shared) = record(&previous.key, &previous.secret, &previous.last_use)
        {
            previous.last_use = shared;
        }
    }

    /// The uses of the app's pairs that the database lacks.
    pub fn unwritten_uses(&self) -> impl Iterator<Item = PairUse> {
        self.pairs().filter_map(|(key, secret, last_use)| {
            let (key, secret, last_use) = (key.to_owned(), secret.clone(), last_use.clone());
            let at = last_use.unwritten()?;
            Some(PairUse { app: self.id, key, secret, at, last_use })
        })
    }

    /// Removes the previous pair if its overlap has passed.
    pub fn end_overlap(&mut self, now: DateTime<Utc>) {
        self.previous = self.previous.take().filter(|pair| !pair.is_over(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_use_keeps_the_latest_minute() {
        let last_use = LastUse::default();
        assert_eq!((last_use.at(), last_use.unwritten()), (None, None));
        for (minute, expected) in [(5, 5), (4, 5), (5, 5), (6, 6)] {
            last_use.note_at(minute);
            assert_eq!(last_use.at(), time_of(expected), "{minute}");
        }
        let at = last_use.unwritten().expect("a time");
        assert_eq!(at.timestamp(), 360);
        last_use.note_at(7);
        last_use.is_written(at);
        assert_eq!(last_use.unwritten(), time_of(7), "used meanwhile");
        last_use.is_written(time_of(7).expect("a time"));
        assert_eq!(last_use.unwritten(), None);
        last_use.merge(&LastUse::of_database(time_of(9)));
        assert_eq!((last_use.at(), last_use.unwritten()), (time_of(9), None));
        last_use.merge(&LastUse::of_database(None));
        assert_eq!(last_use.at(), time_of(9));
    }

    #[test]
    fn a_time_is_rounded_down_to_the_minute() {
        let time = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        for (given, expected) in [
            ("2026-11-28T10:00:59.999999Z", Some("2026-11-28T10:00:00Z")),
            ("2026-11-28T10:01:00Z", Some("2026-11-28T10:01:00Z")),
            ("1969-12-31T23:59:00Z", None),
        ] {
            let last_use = LastUse::of_database(Some(time(given)));
            assert_eq!(last_use.at(), expected.map(time), "{given}");
        }
    }
}
