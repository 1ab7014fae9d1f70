//! Saving: writes the retained publications of all streams to an archive, with the remembered
//! idempotency keys, and loads it in another process.
//!
//! Streams without retained publications are saved as well, so that a client with the newest position can
//! still be told that it missed nothing. An archive is loaded as a whole or not at all. Publications that
//! have expired or exceed the present bounds are evicted after loading, so that their absence is known.

use std::{
    io::{self, Read, Write},
    mem,
    time::Duration,
};

use super::{
    archive::{ArchiveError, ArchiveReader, ArchiveWriter, Item, KeyItem, StreamItem},
    directory::Directory,
    history::{Contradiction, History, Retention},
    idempotency::{REMEMBERED, RememberedKey},
    receipt::Receipt,
};

/// The most bytes of a publication in an archive that is loaded. No limit on a payload is as large. The bytes that
/// an app may retain are no measure, because the setting may have been lowered since the archive was saved.
const PUBLICATION_BYTES_MAX: usize = 1 << 30;

/// The amounts that were saved or loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// The number of streams, including those without retained publications.
    pub streams: usize,
    /// The number of retained publications.
    pub publications: usize,
    /// The bytes of memory of the streams and their publications.
    pub bytes: usize,
    /// The number of idempotency keys.
    pub keys: usize,
}

impl Totals {
    fn add(&mut self, history: &History) {
        self.streams += 1;
        self.publications += history.len();
        self.bytes += history.bytes();
    }
}

impl From<Contradiction> for ArchiveError {
    fn from(Contradiction: Contradiction) -> Self {
        Self::Damaged("its offsets contradict each other")
    }
}

/// Writes the publications that are retained at `now_ms`, in Unix milliseconds, and the idempotency keys of
/// existing apps. The caller must make sure that nothing is published meanwhile.
pub(super) fn save(
    directory: &Directory,
    keys: Vec<RememberedKey<Receipt>>,
    target: impl Write,
    now_ms: u64,
) -> io::Result<Totals> {
    let mut totals = Totals::default();
    let mut writer = ArchiveWriter::begin(target, now_ms)?;
    for key in keys.into_iter().filter_map(|key| key_item(directory, key, now_ms)) {
        writer.key(&key)?;
        totals.keys += 1;
    }
    for (created_us, stream) in directory.retaining() {
        let (history, used_ms) = stream.copy(now_ms);
        let (key, head, evicted) = (stream.key().clone(), history.head(), history.evicted());
        writer.stream(&StreamItem { key, created_us, used_ms, head, evicted })?;
        for (channel, evicted) in history.channels() {
            writer.channel(channel, evicted)?;
        }
        for (offset, retained) in history.publications() {
            writer.publication(offset, retained)?;
        }
        totals.add(&history);
    }
    writer.finish()?.flush()?;
    Ok(totals)
}

/// An idempotency key as it is saved; `None` if its app is gone.
fn key_item(
    directory: &Directory,
    remembered: RememberedKey<Receipt>,
    now_ms: u64,
) -> Option<KeyItem> {
    let RememberedKey { app, key, content, outcome, age } = remembered;
    let created_us = directory.ledger().created_us(app)?;
    let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let accepted_ms = now_ms.saturating_sub(age_ms);
    let (positions, skipped) = (outcome.positions().to_vec(), outcome.known_skipped());
    Some(KeyItem { app, created_us, key, content, accepted_ms, positions, skipped })
}

/// The key from which [`key_item`] made this item; `None` if its app no longer exists.
fn remembered(directory: &Directory, item: KeyItem, now_ms: u64) -> Option<RememberedKey<Receipt>> {
    let KeyItem { app, created_us, key, content, accepted_ms, positions, skipped } = item;
    let age = Duration::from_millis(now_ms.saturating_sub(accepted_ms));
    let outcome = Receipt::known(positions, skipped);
    (directory.ledger().created_us(app) == Some(created_us)).then_some(RememberedKey {
        app,
        key,
        content,
        outcome,
        age,
    })
}

/// The amounts that [`load`] has loaded, and the idempotency keys, which the caller must remember.
pub(super) struct Loaded {
    pub(super) totals: Totals,
    pub(super) keys: Vec<RememberedKey<Receipt>>,
}

/// Loads an archive; `now_ms` is the present time, in Unix milliseconds.
///
/// # Errors
/// [`ArchiveError`]. All streams of the directory have been forgotten then.
pub(super) fn load(
    directory: &Directory,
    source: impl Read,
    now_ms: u64,
) -> Result<Loaded, ArchiveError> {
    let undo = Undo(directory);
    let loaded = load_all(directory, source, now_ms)?;
    mem::forget(undo);
    Ok(loaded)
}

/// Forgets all streams when it is dropped, even by a panic.
struct Undo<'a>(&'a Directory);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.0.forget_all();
    }
}

fn load_all(directory: &Directory, source: impl Read, now_ms: u64) -> Result<Loaded, ArchiveError> {
    let limits = directory.ledger().limits();
    let mut reader = ArchiveReader::begin(source, PUBLICATION_BYTES_MAX)?;
    let age_max = limits.age_max.max(REMEMBERED);
    let age_max_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
    if now_ms.saturating_sub(reader.at_ms()) > age_max_ms {
        return Err(ArchiveError::Old);
    }
    let (mut keys, mut resuming): (Vec<_>, Option<ResumingStream>) = (Vec::new(), None);
    while let Some(item) = reader.next_item()? {
        match (item, &mut resuming) {
            (Item::Key(key), _) => keys.extend(remembered(directory, key, now_ms)),
            (Item::Stream(stream), _) => {
                if let Some(complete) = resuming.take() {
                    complete.finish(directory, now_ms)?;
                }
                resuming = ResumingStream::begin(directory, stream)?;
            }
            // The stream belongs to an app that is gone, or retains nothing any more.
            (_, None) => {}
            (Item::Channel { name, evicted }, Some(ResumingStream { history, retention, .. })) => {
                history.remember(&name, evicted, retention.channels_max)?;
            }
            (Item::Publication { offset, retained }, Some(ResumingStream { history, .. })) => {
                history.retain_again(offset, retained, limits.app_bytes_max)?;
            }
        }
    }
    if let Some(complete) = resuming {
        complete.finish(directory, now_ms)?;
    }
    let mut totals = Totals::default();
    for (_, stream) in directory.retaining() {
        stream.look(|history| totals.add(history));
    }
    Ok(Loaded { totals, keys })
}

/// A stream whose items are being read.
struct ResumingStream {
    stream: StreamItem,
    retention: Retention,
    history: History,
}

impl ResumingStream {
    /// Begins with a stream; `None` if its app is gone or retains nothing.
    fn begin(directory: &Directory, stream: StreamItem) -> Result<Option<Self>, Contradiction> {
        let retention = directory.retention_of(stream.key.app, stream.created_us);
        let history = History::resumed(stream.head, stream.evicted)?;
        Ok((!retention.is_none()).then_some(Self { stream, retention, history }))
    }

    fn finish(self, directory: &Directory, now_ms: u64) -> Result<(), Contradiction> {
        let Self { stream: StreamItem { key, used_ms, .. }, retention, mut history } = self;
        history.keep_to(now_ms, &retention);
        let app = key.app;
        directory.resume(key, history, used_ms)?;
        // Evicting after each stream, and not at the end, keeps the memory within the bounds all the time.
        directory.relieve(app);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
