//! Saving: writes what all streams retain to an archive, and takes it up again in another process.
//!
//! Streams that retain nothing are saved as well: a client that knows the newest position is told
//! later that it missed nothing. An archive is taken up as a whole or not at all, within the bounds
//! that hold then: what is too old or too much is evicted, and so its absence is known.

use std::{
    io::{self, Read, Write},
    mem,
};

use super::{
    archive::{ArchiveError, Item, Reader, StreamItem, Writer},
    directory::Directory,
    history::{Contradiction, History, Retention},
};

/// How much was saved or taken up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Streams, also those that retain nothing.
    pub streams: usize,
    /// Publications that they retain.
    pub publications: usize,
    /// The memory that all this takes, in bytes.
    pub bytes: usize,
}

impl Totals {
    fn add(&mut self, history: &History) {
        self.streams += 1;
        self.publications += history.publications().len();
        self.bytes += history.bytes();
    }
}

impl From<Contradiction> for ArchiveError {
    fn from(Contradiction: Contradiction) -> Self {
        Self::Damaged("its offsets contradict each other")
    }
}

/// Writes what is retained at `now_ms`, in Unix milliseconds. Nothing may be published meanwhile.
pub(super) fn save(directory: &Directory, target: impl Write, now_ms: u64) -> io::Result<Totals> {
    let mut totals = Totals::default();
    let mut writer = Writer::begin(target, now_ms)?;
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

/// Takes up what was saved; `now_ms` is the time, in Unix milliseconds.
///
/// # Errors
/// [`ArchiveError`]: the directory is empty.
pub(super) fn load(
    directory: &Directory,
    source: impl Read,
    now_ms: u64,
) -> Result<Totals, ArchiveError> {
    let undo = Undo(directory);
    let totals = load_all(directory, source, now_ms)?;
    mem::forget(undo);
    Ok(totals)
}

/// Forgets everything when it is dropped, also by a panic.
struct Undo<'a>(&'a Directory);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.0.forget_all();
    }
}

fn load_all(directory: &Directory, source: impl Read, now_ms: u64) -> Result<Totals, ArchiveError> {
    let limits = directory.limits();
    let mut reader = Reader::begin(source, limits.app_bytes_max)?;
    let age_max_ms = u64::try_from(limits.age_max.as_millis()).unwrap_or(u64::MAX);
    if now_ms.saturating_sub(reader.at_ms()) > age_max_ms {
        return Err(ArchiveError::Old);
    }
    let mut resuming: Option<Resuming> = None;
    while let Some(item) = reader.next_item()? {
        match (item, &mut resuming) {
            (Item::Stream(stream), _) => {
                if let Some(complete) = resuming.take() {
                    complete.finish(directory, now_ms)?;
                }
                resuming = Resuming::begin(directory, stream)?;
            }
            // Of an app that is gone, or retains nothing any more.
            (_, None) => {}
            (Item::Channel { name, evicted }, Some(Resuming { history, retention, .. })) => {
                history.remember(&name, evicted, retention.channels_max)?;
            }
            (Item::Publication { offset, retained }, Some(Resuming { history, .. })) => {
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
    Ok(totals)
}

/// A stream of which not everything has been read.
struct Resuming {
    stream: StreamItem,
    retention: Retention,
    history: History,
}

impl Resuming {
    /// `None` if its app is gone or retains nothing.
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
        // Now and not at the end: more than the bounds is never held at the same time.
        directory.relieve(app);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
