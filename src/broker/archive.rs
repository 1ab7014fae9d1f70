//! The archive: the history and the idempotency keys, as bytes that outlive the process.
//!
//! This module opens no file and reads no clock. An archive is a preamble, then a flat sequence of [`Item`]s,
//! then an end that holds a checksum of everything before it. All numbers are little-endian.
//!
//! ```text
//! preamble     magic (16 bytes), version u16, kind u8
//!   in use     run u128
//!   saved      at_ms u64, items, end
//!
//! key          5u8, app i32, created_us i64, key (33 bytes), content (32 bytes), accepted_ms u64,
//!              skipped u64, number of positions u16, each position: epoch u128, offset u64
//! stream       1u8, app i32, created_us i64, used_ms u64, epoch u128, offset u64,
//!              forgotten u64, evicted u64, general_evicted u64, scope
//! channel      2u8, evicted u64, name
//! publication  3u8, offset u64, length u32, bytes as `Retained` packs them
//! end          4u8, number of the items before it u64, CRC-32 u32
//! ```
//!
//! A name is its length as a byte, then its text. Keys come before the first stream; a channel and a
//! publication belong to the last stream before them. `skipped` is 0 for [`Skipped::Nobody`], 1 for
//! [`Skipped::Unknown`], otherwise 2 more than the count. Version 1 had no keys, and is read as well.
//!
//! A reader must not use any item before it has read the end, because only the checksum there proves that
//! the archive is whole. It detects any change of a single byte, and any truncation.

use std::io::{self, Read, Write};

use crc32fast::Hasher;

use crate::app::AppId;

use super::{
    history::Evicted,
    idempotency::{ContentDigest, IdempotencyKey},
    position::{Epoch, StreamPosition},
    retained::Retained,
    subscriber::ScopeKey,
    topic_name::{ChannelName, Scope},
};

/// The first bytes of every archive.
pub const MAGIC: [u8; 16] = *b"HERALD HISTORY\0\n";

/// The version of the format, raised whenever an older Herald would misread an archive. From
/// version 2 on an archive may have idempotency keys, and a publication has its publisher and may
/// have any JSON as its payload.
const VERSION: u16 = 2;

/// The oldest version that can be read.
const VERSION_MIN: u16 = 1;

const IN_USE: u8 = 0;
const SAVED: u8 = 1;

const STREAM: u8 = 1;
const CHANNEL: u8 = 2;
const PUBLICATION: u8 = 3;
const END: u8 = 4;
const KEY: u8 = 5;

/// The preamble of an archive, which says what the archive contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// The archive is empty: the server with this random id is running, or did not stop in order.
    InUse(u128),
    /// The archive contains what a server has saved.
    Saved {
        /// The time at which it was saved, in Unix milliseconds.
        at_ms: u64,
    },
}

/// A part of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An idempotency key, and the receipt of its publications.
    Key(KeyItem),
    /// A stream; its channels and publications follow.
    Stream(StreamItem),
    /// A channel that the stream remembers.
    Channel {
        /// Its name.
        name: ChannelName,
        /// The highest offset that was evicted from it.
        evicted: u64,
    },
    /// A publication that the stream retains.
    Publication {
        /// Its offset.
        offset: u64,
        /// The publication.
        retained: Retained,
    },
}

/// An idempotency key, and the receipt of the publisher that used it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyItem {
    /// The app.
    pub app: AppId,
    /// The time at which the app was created, in Unix microseconds, as in a [`StreamItem`].
    pub created_us: i64,
    /// The key.
    pub key: IdempotencyKey,
    /// The digest of the publications.
    pub content: ContentDigest,
    /// The time of the publication, in Unix milliseconds.
    pub accepted_ms: u64,
    /// The position of each publication; at most 65,535.
    pub positions: Vec<StreamPosition>,
    /// The subscribers that could not be sent the publications.
    pub skipped: Skipped,
}

/// The number of subscribers that could not be sent some publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// No subscriber was skipped, because every format can carry the publications.
    Nobody,
    /// The count was not known in time.
    Unknown,
    /// This number of subscribers was skipped.
    Counted(u64),
}

impl Skipped {
    fn to_number(self) -> u64 {
        match self {
            Self::Nobody => 0,
            Self::Unknown => 1,
            Self::Counted(count) => count.saturating_add(2),
        }
    }

    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Nobody,
            1 => Self::Unknown,
            _ => Self::Counted(number - 2),
        }
    }
}

/// A stream without its retained publications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamItem {
    /// The scope.
    pub key: ScopeKey,
    /// The time at which the app was created, in Unix microseconds. It distinguishes the app from one to which
    /// another database has given the same id.
    pub created_us: i64,
    /// The last use of the stream, in Unix milliseconds.
    pub used_ms: u64,
    /// The position of its newest publication.
    pub head: StreamPosition,
    /// The publications that are not retained any more.
    pub evicted: Evicted,
}

/// The reason why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The first bytes are not those of an archive.
    #[error("it is not a history file")]
    Foreign,
    /// A version of Herald wrote it whose format this one does not read.
    #[error("it has version {0} of the format, and this Herald reads up to version {VERSION}")]
    Version(u16),
    /// The archive ends too early.
    #[error("it is truncated")]
    Truncated,
    /// The archive was saved so long ago that all of its content has expired.
    #[error("it was saved longer ago than history.age_max")]
    Old,
    /// A part of the archive is invalid, or contradicts another.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The archive cannot be read.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// Reads the preamble.
///
/// # Errors
/// [`ArchiveError`].
pub fn read_preamble(source: &mut impl Read) -> Result<Preamble, ArchiveError> {
    read_preamble_of(&mut Summed::new(source))
}

/// The bytes of an archive that is in use by the server with the random id `run`.
pub fn in_use(run: u128) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &[IN_USE], &run.to_le_bytes()].concat()
}

fn read_preamble_of(source: &mut Summed<impl Read>) -> Result<Preamble, ArchiveError> {
    source.magic()?;
    let version = u16::from_le_bytes(source.array()?);
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Err(ArchiveError::Version(version));
    }
    match source.array()? {
        [IN_USE] => Ok(Preamble::InUse(u128::from_le_bytes(source.array()?))),
        [SAVED] => Ok(Preamble::Saved { at_ms: source.number()? }),
        _ => Err(ArchiveError::Damaged("an unknown kind")),
    }
}

/// Writes an archive.
pub struct ArchiveWriter<W> {
    target: W,
    sum: Hasher,
    items: u64,
    /// The item that is being encoded.
    item: Vec<u8>,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive of the state at `at_ms`, in Unix milliseconds. The writer makes many small writes,
    /// so `target` should be buffered.
    ///
    /// # Errors
    /// The errors of `target`, as for all other functions here. [`key`](Self::key) and
    /// [`publication`](Self::publication) also fail if their item is too large for the format.
    pub fn begin(target: W, at_ms: u64) -> io::Result<Self> {
        let mut writer = Self { target, sum: Hasher::new(), items: 0, item: Vec::new() };
        writer.item.extend(MAGIC);
        writer.item.extend(VERSION.to_le_bytes());
        writer.item.push(SAVED);
        writer.item.extend(at_ms.to_le_bytes());
        writer.flush_item()?;
        Ok(writer)
    }

    /// Writes an idempotency key. All keys must be written before the first stream.
    pub fn key(&mut self, key: &KeyItem) -> io::Result<()> {
        let KeyItem { app, created_us, key, content, accepted_ms, positions, skipped } = key;
        let count = u16::try_from(positions.len())
            .map_err(|_| io::Error::other("a key has more than 65,535 positions"))?;
        self.begin_item(KEY);
        self.item.extend(app.0.to_le_bytes());
        self.item.extend(created_us.to_le_bytes());
        self.item.extend(key.to_bytes());
        self.item.extend(content.to_bytes());
        self.number(*accepted_ms);
        self.number(skipped.to_number());
        self.item.extend(count.to_le_bytes());
        positions.iter().for_each(|position| self.position(*position));
        self.flush_item()
    }

    /// Writes a stream. Its channels and publications must follow.
    pub fn stream(&mut self, stream: &StreamItem) -> io::Result<()> {
        let StreamItem { key, created_us, used_ms, head, evicted } = stream;
        self.begin_item(STREAM);
        self.item.extend(key.app.0.to_le_bytes());
        self.item.extend(created_us.to_le_bytes());
        self.number(*used_ms);
        self.position(*head);
        self.number(evicted.forgotten);
        self.number(evicted.all);
        self.number(evicted.general);
        self.name(key.scope.as_str());
        self.flush_item()
    }

    /// Writes a channel that the stream remembers.
    pub fn channel(&mut self, name: &ChannelName, evicted: u64) -> io::Result<()> {
        self.begin_item(CHANNEL);
        self.number(evicted);
        self.name(name.as_str());
        self.flush_item()
    }

    /// Writes a publication that the stream retains.
    pub fn publication(&mut self, offset: u64, retained: &Retained) -> io::Result<()> {
        let bytes = retained.as_bytes();
        let length = u32::try_from(bytes.len())
            .map_err(|_| io::Error::other("a publication is longer than 4 GB"))?;
        self.begin_item(PUBLICATION);
        self.number(offset);
        self.item.extend(length.to_le_bytes());
        self.item.extend(bytes);
        self.flush_item()
    }

    /// Writes the end, and returns the target.
    pub fn finish(mut self) -> io::Result<W> {
        let items = self.items;
        self.begin_item(END);
        self.number(items);
        self.flush_item()?;
        self.target.write_all(&self.sum.finalize().to_le_bytes())?;
        Ok(self.target)
    }

    fn begin_item(&mut self, kind: u8) {
        self.items += 1;
        self.item.push(kind);
    }

    fn number(&mut self, number: u64) {
        self.item.extend(number.to_le_bytes());
    }

    fn position(&mut self, StreamPosition { epoch, offset }: StreamPosition) {
        self.item.extend(epoch.to_bits().to_le_bytes());
        self.number(offset);
    }

    fn name(&mut self, name: &str) {
        debug_assert!(name.len() <= usize::from(u8::MAX), "the naming rules bound names");
        self.item.push(name.len() as u8);
        self.item.extend(name.as_bytes());
    }

    fn flush_item(&mut self) -> io::Result<()> {
        self.sum.update(&self.item);
        self.target.write_all(&self.item)?;
        self.item.clear();
        Ok(())
    }
}

/// Reads an archive item by item.
pub struct ArchiveReader<R> {
    source: Summed<R>,
    at_ms: u64,
    publication_bytes_max: usize,
    items: u64,
    is_in_stream: bool,
    /// The bytes of the publication that is being read.
    bytes: Vec<u8>,
}

impl<R: Read> ArchiveReader<R> {
    /// Begins to read. The reader makes many small reads, so `source` should be buffered. It allocates
    /// memory for one publication at a time, and no more than `source` really has of it.
    ///
    /// # Errors
    /// [`ArchiveError`]; also if a publication is longer than `publication_bytes_max`, or if the archive
    /// holds nothing because it is in use.
    pub fn begin(source: R, publication_bytes_max: usize) -> Result<Self, ArchiveError> {
        let mut source = Summed::new(source);
        let Preamble::Saved { at_ms } = read_preamble_of(&mut source)? else {
            return Err(ArchiveError::Damaged("it holds nothing"));
        };
        let (items, is_in_stream, bytes) = (0, false, Vec::new());
        Ok(Self { source, at_ms, publication_bytes_max, items, is_in_stream, bytes })
    }

    /// The time at which the archive was saved, in Unix milliseconds.
    pub fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// Reads the next item; `None` at the end of an archive that is whole.
    ///
    /// # Errors
    /// [`ArchiveError`]: the items that were read before must not be used.
    pub fn next_item(&mut self) -> Result<Option<Item>, ArchiveError> {
        let [kind] = self.source.array()?;
        let item = match kind {
            END => return self.end().map(|()| None),
            KEY if self.is_in_stream => {
                return Err(ArchiveError::Damaged("a key behind a stream"));
            }
            KEY => Item::Key(self.key()?),
            STREAM => Item::Stream(self.stream()?),
            CHANNEL | PUBLICATION if !self.is_in_stream => {
                return Err(ArchiveError::Damaged("an item outside a stream"));
            }
            CHANNEL => {
                let evicted = self.source.number()?;
                let name = ChannelName::parse(self.source.name()?.as_str());
                let name = name.map_err(|_| ArchiveError::Damaged("the name of a channel"))?;
                Item::Channel { name, evicted }
            }
            PUBLICATION => self.publication()?,
            _ => return Err(ArchiveError::Damaged("an unknown item")),
        };
        self.items += 1;
        self.is_in_stream = kind != KEY;
        Ok(Some(item))
    }

    fn key(&mut self) -> Result<KeyItem, ArchiveError> {
        let source = &mut self.source;
        let app = AppId(i32::from_le_bytes(source.array()?));
        let created_us = i64::from_le_bytes(source.array()?);
        let key = IdempotencyKey::from_bytes(source.array()?);
        let key = key.ok_or(ArchiveError::Damaged("the owner of a key"))?;
        let content = ContentDigest::from_bytes(source.array()?);
        let accepted_ms = source.number()?;
        let skipped = Skipped::from_number(source.number()?);
        let count = u16::from_le_bytes(source.array()?);
        let positions = (0..count).map(|_| source.position()).collect::<Result<_, _>>()?;
        Ok(KeyItem { app, created_us, key, content, accepted_ms, positions, skipped })
    }

    fn stream(&mut self) -> Result<StreamItem, ArchiveError> {
        let source = &mut self.source;
        let app = AppId(i32::from_le_bytes(source.array()?));
        let created_us = i64::from_le_bytes(source.array()?);
        let used_ms = source.number()?;
        let head = source.position()?;
        let (forgotten, all, general) = (source.number()?, source.number()?, source.number()?);
        let evicted = Evicted { forgotten, all, general };
        let scope = Scope::restore(&source.name()?);
        let scope = scope.map_err(|_| ArchiveError::Damaged("the name of a scope"))?;
        let key = ScopeKey { app, scope };
        if !head.epoch.can_be_of(&key) {
            return Err(ArchiveError::Damaged("the epoch of another scope"));
        }
        Ok(StreamItem { key, created_us, used_ms, head, evicted })
    }

    fn publication(&mut self) -> Result<Item, ArchiveError> {
        let offset = self.source.number()?;
        let length = u32::from_le_bytes(self.source.array()?);
        if usize::try_from(length).is_ok_and(|length| length <= self.publication_bytes_max) {
            self.source.bytes(length, &mut self.bytes)?;
            let retained = Retained::parse(&self.bytes);
            let retained = retained.ok_or(ArchiveError::Damaged("the bytes of a publication"))?;
            return Ok(Item::Publication { offset, retained });
        }
        Err(ArchiveError::Damaged("a publication that is larger than what may be retained"))
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        if self.source.number()? != self.items {
            return Err(ArchiveError::Damaged("the number of its items"));
        }
        let expected = self.source.sum.clone().finalize();
        if u32::from_le_bytes(self.source.array()?) != expected {
            return Err(ArchiveError::Damaged("its checksum"));
        }
        match self.source.source.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(ArchiveError::Damaged("something behind its end")),
        }
    }
}

/// A source, and the checksum of the bytes that were read from it.
struct Summed<R> {
    source: R,
    sum: Hasher,
}

impl<R: Read> Summed<R> {
    fn new(source: R) -> Self {
        Self { source, sum: Hasher::new() }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ArchiveError> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, ArchiveError> {
        self.array().map(u64::from_le_bytes)
    }

    fn position(&mut self) -> Result<StreamPosition, ArchiveError> {
        let epoch = Epoch::from_bits(u128::from_le_bytes(self.array()?));
        Ok(StreamPosition { epoch, offset: self.number()? })
    }

    fn name(&mut self) -> Result<String, ArchiveError> {
        let [length] = self.array()?;
        let mut bytes = Vec::new();
        self.bytes(length.into(), &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| ArchiveError::Damaged("a name that is not UTF-8"))
    }

    fn bytes(&mut self, length: u32, into: &mut Vec<u8>) -> Result<(), ArchiveError> {
        into.clear();
        let read = (&mut self.source).take(length.into()).read_to_end(into)?;
        if read < length as usize {
            return Err(ArchiveError::Truncated);
        }
        self.sum.update(into);
        Ok(())
    }

    /// Reads the magic. An archive that ends within it is truncated, and one that differs from it is foreign.
    fn magic(&mut self) -> Result<(), ArchiveError> {
        let mut bytes = Vec::with_capacity(MAGIC.len());
        (&mut self.source).take(MAGIC.len() as u64).read_to_end(&mut bytes)?;
        self.sum.update(&bytes);
        match bytes.len() {
            _ if !MAGIC.starts_with(&bytes) => Err(ArchiveError::Foreign),
            length if length < MAGIC.len() => Err(ArchiveError::Truncated),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
