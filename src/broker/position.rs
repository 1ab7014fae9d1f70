//! Positions: the points in the one order of a scope at which its publications are.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

use crate::engine::LogEpoch;

use super::subscriber::ScopeKey;

/// The id of one unbroken numbering of a scope's publications.
///
/// A scope whose numbering begins anew gets another epoch, so a position of an earlier numbering is
/// recognised and never mistaken for one of the present numbering. An epoch also says which scope
/// it belongs to. The default is never given to a scope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Epoch(u128);

/// The number of bits of an epoch that distinguish the numberings of one scope. The bits above them are a
/// hash of the scope.
const NUMBERING_BITS: u32 = 96;

impl Epoch {
    fn new(key: &ScopeKey, numbering: u128) -> Self {
        let numbering = numbering & ((1 << NUMBERING_BITS) - 1);
        Self((u128::from(hash_of(key)) << NUMBERING_BITS) | numbering)
    }

    /// The epoch of a scope whose offsets are those of a log, while the log has this epoch. It is the
    /// same on all nodes.
    pub(super) fn of_log(key: &ScopeKey, LogEpoch(epoch): LogEpoch) -> Self {
        Self::new(key, u128::from(epoch))
    }

    /// The epoch with these bits, as [`Epoch::to_bits`] returns them.
    pub(super) fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The epoch as a number, for [`Epoch::from_bits`] of another process.
    pub(super) fn to_bits(self) -> u128 {
        self.0
    }

    /// Returns whether this epoch can belong to a scope. The answer is wrong for one of four billion other
    /// scopes, whose hash is the same.
    pub fn can_be_of(self, key: &ScopeKey) -> bool {
        self.0 >> NUMBERING_BITS == u128::from(hash_of(key))
    }
}

/// The FNV-1a hash of a scope, which is the same in every process and every version of Herald.
fn hash_of(ScopeKey { app, scope }: &ScopeKey) -> u32 {
    const BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let bytes = app.0.to_le_bytes().into_iter().chain(scope.as_str().bytes());
    bytes.fold(BASIS, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME))
}

/// The point in the order of its scope at which a publication is.
///
/// Offsets grow within an epoch and begin above zero; offset 0 precedes the first publication. A gap
/// between two offsets does not mean that a publication is missing.
///
/// As text it is `<epoch>:<offset>`: 22 characters of base64 for URLs, a colon and a decimal number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StreamPosition {
    /// The numbering that the offset belongs to.
    pub epoch: Epoch,
    /// The number within the numbering.
    pub offset: u64,
}

impl StreamPosition {
    /// The most bytes that the text of a position has.
    pub const BYTES_MAX: usize = 22 + 1 + 20;
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut epoch = [0; 22];
        // 16 bytes always fit, and all characters are ASCII.
        let written = URL_SAFE_NO_PAD.encode_slice(self.epoch.0.to_be_bytes(), &mut epoch);
        written.map_err(|_| fmt::Error)?;
        let epoch = str::from_utf8(&epoch).map_err(|_| fmt::Error)?;
        write!(f, "{epoch}:{}", self.offset)
    }
}

/// The error of a text that is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a position")]
pub struct NoPosition;

impl FromStr for StreamPosition {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (epoch, offset) = text.split_once(':').ok_or(NoPosition)?;
        // Each number has exactly one spelling, without a sign and without leading zeros.
        let is_number =
            offset == "0" || offset.starts_with(|first: char| matches!(first, '1'..='9'));
        if !is_number {
            return Err(NoPosition);
        }
        let offset = offset.parse().map_err(|_| NoPosition)?;
        let epoch = URL_SAFE_NO_PAD.decode(epoch).map_err(|_| NoPosition)?;
        let epoch = u128::from_be_bytes(epoch.try_into().map_err(|_| NoPosition)?);
        Ok(Self { epoch: Epoch(epoch), offset })
    }
}

/// The source of epochs, which gives none of them twice: they begin at a random value for each process and
/// count up from there.
#[derive(Debug)]
pub struct Epochs {
    first: u128,
    given: AtomicU64,
}

impl Default for Epochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Epochs {
    /// Begins at a random value.
    pub fn new() -> Self {
        Self { first: Uuid::new_v4().as_u128(), given: AtomicU64::new(0) }
    }

    /// Gives the next epoch to a scope.
    pub fn give(&self, key: &ScopeKey) -> Epoch {
        Epoch::new(key, self.first.wrapping_add(self.given.fetch_add(1, Relaxed).into()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::testing::key;
    use super::*;

    #[test]
    fn no_epoch_is_given_twice() {
        let processes = [Epochs::new(), Epochs::new()];
        let key = key(1, "public");
        let given = processes.iter().flat_map(|process| (0..1_000).map(|_| process.give(&key)));
        assert_eq!(given.collect::<HashSet<_>>().len(), 2_000);
    }

    #[test]
    fn an_epoch_belongs_to_one_scope() {
        let keys = [key(1, "public"), key(1, "private"), key(2, "public"), key(256, "public")];
        let epochs = Epochs::new();
        for (nth, own) in keys.iter().enumerate() {
            let epoch = epochs.give(own);
            let of: Vec<_> = keys.iter().map(|key| epoch.can_be_of(key)).collect();
            assert_eq!(of, (0..keys.len()).map(|other| other == nth).collect::<Vec<_>>());
        }
        let fixed = Epoch::new(&key(1, "public"), 7);
        let position = StreamPosition { epoch: fixed, offset: 12 };
        assert_eq!(position.to_string(), "cBnkRQAAAAAAAAAAAAAABw:12", "in every version of Herald");
    }

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let epoch = Epochs::new().give(&key(1, "public"));
        for offset in [0, 1, 10, u64::MAX] {
            let position = StreamPosition { epoch, offset };
            let text = position.to_string();
            assert!(text.len() <= StreamPosition::BYTES_MAX, "{text}");
            assert_eq!(text.parse(), Ok(position));
        }
    }

    #[test]
    fn an_invalid_position_is_not_parsed() {
        let epoch = "AAAAAAAAAAAAAAAAAAAABw";
        assert!(format!("{epoch}:12").parse::<StreamPosition>().is_ok());
        for text in [
            "",
            ":",
            "12",
            epoch,
            ":12",
            &format!("{epoch}:"),
            &format!("{epoch}:-1"),
            &format!("{epoch}:+1"),
            &format!("{epoch}:012"),
            &format!("{epoch}: 1"),
            &format!("{epoch}:1.5"),
            &format!("{epoch}:12:1"),
            &format!("{epoch}:18446744073709551616"),
            &format!(" {epoch}:12"),
            &format!("{epoch}=:12"),
            &format!("{epoch}A:12"),
            "AAAAAAAAAAAAAAAAAAAABx:12",
            "AAAA/AAAAAAAAAAAAAAABw:12",
            "\u{e9}AAAAAAAAAAAAAAAAAAABw:12",
        ] {
            assert_eq!(text.parse::<StreamPosition>(), Err(NoPosition), "{text}");
        }
    }
}
