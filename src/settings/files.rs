//! How many files this process may open, and how many sessions fit.

use super::{Settings, SettingsError};

/// File handles kept for what is not a session: listener, database, health, admin.
const FILES_KEPT: u64 = 500;
/// More sessions than this are not asked of one process, however many files it may open.
const SESSIONS_MAX: u64 = 10_000_000;

/// Raises the limit on open files as far as this process may, and tells what it is now.
pub fn raise_file_limit() -> u64 {
    let raised = rlimit::increase_nofile_limit(u64::MAX);
    // Not raised is no fault: the sessions are then counted against the limit as it is.
    raised.or_else(|_| rlimit::Resource::NOFILE.get_soft()).unwrap_or(FILES_KEPT)
}

impl Settings {
    /// How many sessions may run at once under `file_limit` open files.
    ///
    /// # Errors
    /// The file limit leaves no room for sessions, or not for as many as `limits.sessions_max` wants.
    pub fn sessions_max(&self, file_limit: u64) -> Result<usize, SettingsError> {
        let room = file_limit.saturating_sub(FILES_KEPT).min(SESSIONS_MAX) as usize;
        let fault = |fault| Err(SettingsError::new("limits.sessions_max", fault));
        match self.limits.sessions_max {
            _ if room == 0 => fault(format!(
                "the limit on open files is {file_limit}, and {FILES_KEPT} are kept: raise it (ulimit -n)"
            )),
            Some(wanted) if wanted > room => fault(format!(
                "must be at most {room}, not {wanted}: the limit on open files is {file_limit}, less \
                 {FILES_KEPT}; raise it (ulimit -n) or lower this"
            )),
            Some(wanted) => Ok(wanted),
            None => Ok(room),
        }
    }
}
