//! How many files this process may open, and how many sessions fit.

use std::thread;

use super::{Settings, SettingsError};

/// File handles kept for what is not a session: threads, database, plain HTTP connections.
const FILES_KEPT: u64 = 500;
/// How many of these are for plain HTTP connections when every place of a session is taken.
const FILES_FOR_REQUESTS: u64 = 250;
/// So many worker threads have what they need among these.
const THREADS_COVERED: usize = 64;
/// What each thread beyond them needs: its listener, and what it waits with.
const FILES_PER_THREAD: u64 = 5;
/// More sessions than this are not asked of one process, however many files it may open.
const SESSIONS_MAX: u64 = 10_000_000;

/// Raises the limit on open files as far as this process may, and tells what it is now.
pub fn raise_file_limit() -> u64 {
    let raised = rlimit::increase_nofile_limit(u64::MAX);
    // Not raised is no fault: the sessions are then counted against the limit as it is.
    raised.or_else(|_| rlimit::Resource::NOFILE.get_soft()).unwrap_or(FILES_KEPT)
}

impl Settings {
    /// How many threads serve connections.
    pub fn worker_threads(&self) -> usize {
        match self.server.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }

    /// How many sessions and plain HTTP connections together may be open under `file_limit` open files.
    pub fn connections_max(&self, file_limit: u64) -> usize {
        (self.room(file_limit) + FILES_FOR_REQUESTS) as usize
    }

    /// The file handles that are left for sessions.
    fn room(&self, file_limit: u64) -> u64 {
        file_limit.saturating_sub(self.kept()).min(SESSIONS_MAX)
    }

    /// The file handles that are no session's.
    fn kept(&self) -> u64 {
        let more_threads = self.worker_threads().saturating_sub(THREADS_COVERED) as u64;
        FILES_KEPT + FILES_PER_THREAD * more_threads
    }

    /// How many sessions may run at once under `file_limit` open files.
    ///
    /// # Errors
    /// The file limit leaves no room for sessions, or not for as many as `limits.sessions_max` wants.
    pub fn sessions_max(&self, file_limit: u64) -> Result<usize, SettingsError> {
        let (kept, room) = (self.kept(), self.room(file_limit) as usize);
        let fault = |fault| Err(SettingsError::new("limits.sessions_max", fault));
        match self.limits.sessions_max {
            _ if room == 0 => fault(format!(
                "the limit on open files is {file_limit}, and {kept} are kept: raise it (ulimit -n)"
            )),
            Some(wanted) if wanted > room => fault(format!(
                "must be at most {room}, not {wanted}: the limit on open files is {file_limit}, less \
                 {kept}; raise it (ulimit -n) or lower this"
            )),
            Some(wanted) => Ok(wanted),
            None => Ok(room),
        }
    }
}
