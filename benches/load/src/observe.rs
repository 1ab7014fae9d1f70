//! What the operating system says about a process: its processor time and its resident memory.

use std::{fs, io, time::Duration};

/// Reads a process's accounts.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// Its number.
    pub pid: u32,
}

impl Observed {
    /// Processor time, user and system, of all threads that live.
    ///
    /// From the scheduler's own accounts (`/proc/<pid>/task/*/schedstat`), in nanoseconds: the clock
    /// ticks of `/proc/<pid>/stat` are too coarse for a few seconds.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn cpu(&self) -> io::Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let Ok(accounts) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let running = accounts.split_whitespace().next().and_then(|first| first.parse().ok());
            nanoseconds += running.unwrap_or(0_u64);
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes * 1024).ok_or(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_worked_longer_than_before() {
        let own = Observed { pid: std::process::id() };
        let before = own.cpu().expect("accounts");
        let mut sum = 0_u64;
        while own.cpu().expect("accounts") == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(own.resident_bytes().expect("accounts") > 100_000);
    }
}
