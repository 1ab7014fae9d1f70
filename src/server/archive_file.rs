//! The file in which a stop saves the retained publications for the next start.
//!
//! A client is told that it missed nothing only if its position belongs to the present epoch. An epoch must
//! therefore never be continued from a file if anything may have been published after the file was written.
//! Three rules guarantee this, whenever a process is killed:
//!
//! 1. While a server runs, the file contains only a mark with the random id of its run. A start replaces the
//!    saved file by this mark, by renaming, before it loads or accepts anything.
//! 2. A stop saves after the last publication was accepted, into another file that it then renames. It does so
//!    only if the file still has the mark of its own run: otherwise another server was started meanwhile, and
//!    has begun epochs of its own.
//! 3. A start and a stop both hold the lock of the file that they replace, so that they do not overlap.

use std::{
    fmt,
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io::{self, BufReader, BufWriter, ErrorKind, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use log::{info, warn};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::broker::{
    Topics,
    archive::{self, ArchiveError, Preamble},
    saving::Totals,
};

/// The size of the buffers for reading and writing.
const BUFFER_BYTES: usize = 1 << 20;

/// The time to wait for the lock of the file, which another server holds for milliseconds only.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// The interval at which the lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// The suffix of a file that is being written, after the name of the archive and the id of the run.
const PART: &str = ".part";

/// The suffix of a file that could not be read.
const REFUSED: &str = ".refused";

/// The file, for one run of the server.
pub(super) struct ArchiveFile {
    path: PathBuf,
    run: u128,
}

/// The reason why the file is not used.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("it is not a regular file")]
    NotAFile,
    #[error("another server is using it")]
    Taken,
    #[error("another process has locked it")]
    Locked,
    #[error("it is not there any more: somebody has removed it while this server ran")]
    Removed,
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("{0}; it is now named {1}")]
    PutAside(Box<Self>, String),
    #[error(
        "{0}, and it cannot be replaced; please remove it, because a later start would load it, which \
         would be wrong"
    )]
    Stays(Box<Self>),
    #[error("the stop had to end")]
    Late,
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The content of the file when the server started.
enum Found {
    Nothing,
    InUse,
    Saved(File),
}

impl ArchiveFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, run: Uuid::new_v4().as_u128() }
    }

    /// Loads the publications that the last stop saved, and marks the file as in use. Must be called before any
    /// publication or join. A fault of the file is logged, and every scope then begins a new epoch. Blocks.
    pub(super) fn load(&self, topics: &Topics) {
        let began = Instant::now();
        let loaded = self.take().and_then(|found| match found {
            Found::Nothing => Ok(None),
            Found::InUse => {
                info!("{self} is empty, because the last server did not save it; new epochs begin");
                Ok(None)
            }
            Found::Saved(file) => {
                let source = BufReader::with_capacity(BUFFER_BYTES, file);
                Ok(Some(topics.load(source)?))
            }
        });
        match loaded {
            Ok(None) => {}
            Ok(Some(totals)) => info!("loaded {}", self.shown(totals, began)),
            Err(why) => warn!("cannot use {self}: {why}; new epochs begin"),
        }
    }

    /// Empties the file if the last stop saved publications in it. A server whose history is elsewhere must call
    /// this before any publication: a later start would otherwise continue the epochs of the file, although other
    /// publications were accepted meanwhile. Blocks.
    pub(super) fn discard(&self) {
        let discarded = self.open_or_put_aside().and_then(|found| match found {
            None => Ok(Found::Nothing),
            Some(file) => self.take_over(file),
        });
        match discarded {
            Ok(Found::Saved(_)) => info!(
                "{self} is emptied, because a node of a cluster has its history in Redis; a later start \
                 without a cluster begins new epochs"
            ),
            // A file that is not an archive is never loaded.
            Ok(Found::Nothing | Found::InUse)
            | Err(FileError::Archive(_) | FileError::NotAFile) => {}
            Err(why) => warn!("cannot empty {self}: {why}"),
        }
    }

    /// Saves the retained publications once publishing has ended. Dropping the future cancels it.
    pub(super) async fn save(self: Arc<Self>, topics: Topics) {
        let mut giving_up = GiveUp { file: self.clone(), flag: Arc::default(), is_done: false };
        topics.finished().await;
        let (flag, began) = (giving_up.flag.clone(), Instant::now());
        let (done, saved) = oneshot::channel();
        // A runtime that ends does not wait for this thread, as it would wait for a blocking thread of its own.
        let save = move || {
            // After a timeout nothing waits for the outcome.
            let _ = done.send(self.save_now(&topics, &flag));
        };
        let spawned = thread::Builder::new().name("history".to_owned()).spawn(save);
        let saved = match spawned {
            Ok(_) => saved.await.unwrap_or_else(|_| Err(io::Error::other("a panic").into())),
            Err(error) => Err(error.into()),
        };
        giving_up.is_done = true;
        let file = &giving_up.file;
        match saved {
            Ok(totals) => info!("saved {}", file.shown(totals, began)),
            Err(why) => warn!("cannot save {file}: {why}; the next start begins new epochs"),
        }
    }

    fn shown(&self, totals: Totals, began: Instant) -> String {
        let Totals { streams, publications, bytes, keys } = totals;
        let ms = began.elapsed().as_millis();
        format!(
            "{self}: {publications} publications of {streams} scopes, {bytes} bytes, {keys} idempotency \
             keys, {ms} ms"
        )
    }

    /// Takes the content of the file, and marks the file as in use, so that it is not loaded again.
    fn take(&self) -> Result<Found, FileError> {
        match self.open_or_put_aside()? {
            Some(file) => self.take_over(file),
            None => self.mark().map(|()| Found::Nothing).map_err(FileError::from),
        }
    }

    /// Takes the content of a file that is locked, and marks the file as in use.
    fn take_over(&self, mut file: File) -> Result<Found, FileError> {
        let preamble = archive::read_preamble(&mut file);
        // A file that is not an archive is not changed.
        if let Err(ArchiveError::Foreign) = preamble {
            return Err(ArchiveError::Foreign.into());
        }
        self.mark().or_else(|error| self.invalidate(error))?;
        self.remove_leftovers();
        match preamble? {
            Preamble::InUse(_) => Ok(Found::InUse),
            Preamble::Saved { .. } => {
                file.rewind()?;
                Ok(Found::Saved(file))
            }
        }
    }

    /// Opens the file at the start, and locks it until the returned value is dropped; `None` if the file does not
    /// exist. A file that cannot be opened or locked is renamed, and a mark is put in its place: otherwise a later
    /// start, which can open it, would load it.
    fn open_or_put_aside(&self) -> Result<Option<File>, FileError> {
        self.open_locked().map_err(|why| match why {
            FileError::NotAFile => why,
            _ => self.put_aside(why),
        })
    }

    /// Opens the file and locks it until the returned value is dropped; `None` if the file does not exist.
    fn open_locked(&self) -> Result<Option<File>, FileError> {
        loop {
            let Some(found) = absent_is_none(fs::symlink_metadata(&self.path))? else {
                return Ok(None);
            };
            if !found.is_file() {
                return Err(FileError::NotAFile);
            }
            let file = match absent_is_none(File::open(&self.path)) {
                Ok(None) => continue,
                Ok(Some(file)) => file,
                Err(error) => return Err(FileError::Unreadable(error)),
            };
            lock(&file)?;
            let now = absent_is_none(fs::symlink_metadata(&self.path))?;
            let locked = identity(&file.metadata()?);
            // Another server may have replaced it before it was locked.
            if now.is_some_and(|now| identity(&now) == locked) {
                return Ok(Some(file));
            }
        }
    }

    /// Replaces the file by a mark of this run.
    fn mark(&self) -> io::Result<()> {
        let part = UnfinishedFile::create(self)?;
        (&part.file).write_all(&archive::in_use(self.run))?;
        part.file.sync_all()?;
        part.keep()
    }

    /// Renames a file that cannot be used, and puts a mark in its place. If another server is just starting with the
    /// file, that server goes on with the renamed file, which it has open, and puts a mark of its own in the place.
    fn put_aside(&self, why: FileError) -> FileError {
        // A file that is not an archive is not changed, whoever has locked it.
        let preamble = File::open(&self.path).map(|mut file| archive::read_preamble(&mut file));
        if let Ok(Err(ArchiveError::Foreign)) = preamble {
            return ArchiveError::Foreign.into();
        }
        let (refused, why) = (with_suffix(&self.path, REFUSED), Box::new(why));
        if fs::rename(&self.path, &refused).is_err() {
            return FileError::Stays(why);
        }
        // Without a mark no later start loads anything either; only the stop of this run saves nothing.
        self.mark().ok();
        FileError::PutAside(why, refused.display().to_string())
    }

    /// Empties a file that cannot be replaced because the disk is full or the folder is not writable. A mark of
    /// this run is written into it if there is room, so that the stop can save.
    fn invalidate(&self, error: io::Error) -> Result<(), FileError> {
        let empty = || -> io::Result<File> {
            let emptied = OpenOptions::new().write(true).truncate(true).open(&self.path)?;
            emptied.sync_all()?;
            Ok(emptied)
        };
        let Ok(mut emptied) = empty() else {
            return Err(FileError::Stays(Box::new(error.into())));
        };
        // Half a mark is a truncated archive, which is not loaded either.
        let _ = emptied.write_all(&archive::in_use(self.run)).and_then(|()| emptied.sync_all());
        Err(error.into())
    }

    /// Removes the unfinished files of killed processes.
    fn remove_leftovers(&self) {
        let (Some(own), Ok(entries)) = (self.path.file_name(), fs::read_dir(folder(&self.path)))
        else {
            return;
        };
        let own = own.to_string_lossy();
        let is_leftover = |name: &str| {
            let rest = name.strip_prefix(&*own).and_then(|rest| rest.strip_prefix('.'));
            let run = rest.and_then(|rest| rest.strip_suffix(PART)).unwrap_or_default();
            run.len() == 32 && run.bytes().all(|b| b.is_ascii_hexdigit())
        };
        for entry in entries.flatten() {
            if is_leftover(&entry.file_name().to_string_lossy()) {
                // Another server may have removed it.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn save_now(&self, topics: &Topics, given_up: &AtomicBool) -> Result<Totals, FileError> {
        let part = UnfinishedFile::create(self)?;
        let target = Cancelled { file: &part.file, given_up };
        let saved = topics.save(BufWriter::with_capacity(BUFFER_BYTES, target));
        let is_late = || given_up.load(SeqCst);
        let totals =
            saved.map_err(|error| if is_late() { FileError::Late } else { error.into() })?;
        part.file.sync_all()?;
        let mut marked = self.open_locked()?.ok_or(FileError::Removed)?;
        match archive::read_preamble(&mut marked) {
            Ok(Preamble::InUse(run)) if run == self.run => {}
            Err(ArchiveError::Foreign) => return Err(ArchiveError::Foreign.into()),
            _ => return Err(FileError::Taken),
        }
        if is_late() {
            return Err(FileError::Late);
        }
        part.keep()?;
        Ok(totals)
    }
}

impl fmt::Display for ArchiveFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the history file {}", self.path.display())
    }
}

/// A file that is written beside the archive. Dropping this removes the file, unless it has replaced the archive.
struct UnfinishedFile<'a> {
    archive: &'a Path,
    path: PathBuf,
    file: File,
}

impl<'a> UnfinishedFile<'a> {
    /// Creates the file, which only its owner can read.
    fn create(ArchiveFile { path: archive, run }: &'a ArchiveFile) -> io::Result<Self> {
        let path = with_suffix(archive, &format!(".{run:032x}{PART}"));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { archive, path, file })
    }

    /// Replaces the archive by this file. The change is on the disk when the function returns.
    fn keep(self) -> io::Result<()> {
        fs::rename(&self.path, self.archive)?;
        File::open(folder(self.archive))?.sync_all()
    }
}

impl Drop for UnfinishedFile<'_> {
    fn drop(&mut self) {
        // The file has been renamed if it was kept.
        let _ = fs::remove_file(&self.path);
    }
}

/// A writer that fails once saving was cancelled.
struct Cancelled<'a> {
    file: &'a File,
    given_up: &'a AtomicBool,
}

impl Write for Cancelled<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.given_up.load(SeqCst) {
            true => Err(ErrorKind::TimedOut.into()),
            false => self.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Cancels saving if it is dropped before saving is done.
struct GiveUp {
    file: Arc<ArchiveFile>,
    flag: Arc<AtomicBool>,
    is_done: bool,
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if !self.is_done {
            self.flag.store(true, SeqCst);
            warn!("cannot save {} in time; the next start begins new epochs", self.file);
        }
    }
}

/// Locks a file for as long as it is open.
fn lock(file: &File) -> Result<(), FileError> {
    let until = Instant::now() + LOCK_WAIT_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                return Err(FileError::Locked);
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_INTERVAL),
        }
    }
}

/// The identity of a file, which does not depend on its name.
fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn absent_is_none<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
