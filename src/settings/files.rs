//! The limit on open files, and the number of sessions that fit into it.

use std::thread;

use super::{Settings, SettingsError};

/// The file handles that are reserved for everything but sessions: threads, database, plain HTTP connections.
const FILES_KEPT: u64 = 500;
/// The part of [`FILES_KEPT`] that plain HTTP connections may use when the server has all its sessions.
const FILES_FOR_REQUESTS: u64 = 250;
/// The number of worker threads that [`FILES_KEPT`] covers.
const THREADS_COVERED: usize = 64;
/// The file handles of each further thread: its listener, and those of its event loop.
const FILES_PER_THREAD: u64 = 5;
/// The most sessions of one process, even if it may open more files.
const SESSIONS_MAX: u64 = 10_000_000;

/// Raises the limit on open files as far as the system allows. Returns the limit.
pub fn raise_file_limit() -> u64 {
    let raised = rlimit::increase_nofile_limit(u64::MAX);
    // If the limit cannot be raised, the present one applies.
    raised.or_else(|_| rlimit::Resource::NOFILE.get_soft()).unwrap_or(FILES_KEPT)
}

impl Settings {
    /// The number of threads that serve connections.
    pub fn worker_threads(&self) -> usize {
        match self.server.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }

    /// The most sessions and plain HTTP connections together, if the process may open `file_limit` files.
    pub fn connections_max(&self, file_limit: u64) -> usize {
        (self.room(file_limit) + FILES_FOR_REQUESTS) as usize
    }

    /// The most plain HTTP connections, if the process may open `file_limit` files; `None` if only that limit
    /// bounds them.
    ///
    /// # Errors
    /// `limits.http_connections_max`, together with `limits.sessions_max` if that is set, asks for more.
    pub fn http_connections_max(&self, file_limit: u64) -> Result<Option<usize>, SettingsError> {
        let Some(wanted) = self.limits.http_connections_max else { return Ok(None) };
        let sessions = self.limits.sessions_max.unwrap_or_default();
        let room = self.connections_max(file_limit).saturating_sub(sessions);
        if wanted <= room {
            return Ok(Some(wanted));
        }
        let fault = format!(
            "must be at most {room}, not {wanted}: the limit on open files is {file_limit}; raise it \
             (ulimit -n) or lower this"
        );
        Err(SettingsError::new("limits.http_connections_max", fault))
    }

    /// The file handles that are left for sessions.
    fn room(&self, file_limit: u64) -> u64 {
        file_limit.saturating_sub(self.kept()).min(SESSIONS_MAX)
    }

    /// The file handles kept for everything but sessions.
    fn kept(&self) -> u64 {
        let more_threads = self.worker_threads().saturating_sub(THREADS_COVERED) as u64;
        FILES_KEPT + FILES_PER_THREAD * more_threads
    }

    /// The most sessions, if the process may open `file_limit` files.
    ///
    /// # Errors
    /// The limit leaves no room for sessions, or less than `limits.sessions_max` asks for.
    pub fn sessions_max(&self, file_limit: u64) -> Result<usize, SettingsError> {
        let (kept, room) = (self.kept(), self.room(file_limit) as usize);
        let fault = |fault| Err(SettingsError::new("limits.sessions_max", fault));
        match self.limits.sessions_max {
            _ if room == 0 => fault(format!(
                "the limit on open files is {file_limit}, of which Herald keeps \
                 {kept} for uses other than sessions: raise it (ulimit -n)"
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
