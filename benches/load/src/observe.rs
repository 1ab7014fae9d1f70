//! The CPU time and the resident memory of a process, as the operating system reports them.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

/// A thread that works for at least this part of the time hardly ever waits.
const BUSY: f64 = 0.9;

/// A tick of `/proc/<pid>/stat`, the same on every Linux.
const TICK: Duration = Duration::from_millis(10);

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
        let all = self.cpu_by_thread()?;
        Ok(Duration::from_nanos(all.into_iter().map(|(_, nanoseconds)| nanoseconds).sum()))
    }

    /// Processor time, user and system, of all threads, those that have ended too; in ticks.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn cpu_ever(&self) -> io::Result<Duration> {
        let accounts = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The program's name, in parentheses, may hold anything. User and system time are the 12th
        // and 13th after it.
        let after_name = accounts.rsplit_once(')').map(|(_, after)| after).unwrap_or_default();
        let times = after_name.split_whitespace().skip(11).take(2);
        let ticks: u32 = times.filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
        Ok(TICK * ticks)
    }

    /// The thread that uses most CPU while something is done.
    ///
    /// # Errors
    /// If there is no such process, or what is done fails.
    pub fn busiest_thread(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<u32> {
        let before = self.cpu_by_thread()?;
        work()?;
        let used = |(thread, cpu): (u32, u64)| {
            let before = before.iter().find(|(known, _)| *known == thread);
            (cpu.saturating_sub(before.map_or(0, |(_, cpu)| *cpu)), thread)
        };
        let busiest = self.cpu_by_thread()?.into_iter().map(used).max();
        busiest.map(|(_, thread)| thread).ok_or(io::ErrorKind::NotFound.into())
    }

    /// The processor time of each thread that lives, in nanoseconds.
    fn cpu_by_thread(&self) -> io::Result<Vec<(u32, u64)>> {
        let mut all = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let task = task?;
            let Ok(accounts) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let running = accounts.split_whitespace().next().and_then(|first| first.parse().ok());
            let thread = task.file_name().to_str().and_then(|number| number.parse().ok());
            all.extend(thread.zip(running));
        }
        Ok(all)
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The largest resident memory that it ever had, in bytes.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn peak_bytes(&self) -> io::Result<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes * 1024).ok_or(io::ErrorKind::InvalidData.into())
    }
}

/// Watches what a subject and this generator spend over the same while.
#[derive(Debug)]
pub struct Watch {
    subject: Observed,
    began: Instant,
    before: Spent,
}

/// Processor time of a subject and of this generator.
#[derive(Debug, Clone, Copy)]
struct Spent {
    subject: Duration,
    own: Duration,
}

/// The figures of a watch.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// How long it lasted.
    pub elapsed: Duration,
    /// The subject's processor time.
    pub cpu: Duration,
    /// This generator's.
    pub own_cpu: Duration,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn begin(subject: Observed) -> io::Result<Self> {
        Ok(Self { subject, before: spent(subject)?, began: Instant::now() })
    }

    /// The CPU time since then.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn seen(&self) -> io::Result<Seen> {
        let (elapsed, now) = (self.began.elapsed(), spent(self.subject)?);
        Ok(Seen {
            elapsed,
            cpu: now.subject.saturating_sub(self.before.subject),
            own_cpu: now.own.saturating_sub(self.before.own),
        })
    }
}

fn spent(subject: Observed) -> io::Result<Spent> {
    let own = Observed { pid: std::process::id() };
    Ok(Spent { subject: subject.cpu()?, own: own.cpu_ever()? })
}

impl Seen {
    /// How many cores the subject kept busy.
    pub fn cores(&self) -> f64 {
        self.cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// How many cores this generator kept busy.
    pub fn own_cores(&self) -> f64 {
        self.own_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// The limit of the measurement if it was not the subject, for a generator with this number of threads.
    pub fn limit(&self, threads: usize) -> Option<&'static str> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        if self.own_cores() >= BUSY * threads.min(cores) as f64 {
            return Some("the load generator is the limit");
        }
        let both = self.cores() + self.own_cores();
        let is_full = both >= BUSY * cores as f64;
        is_full.then_some("the machine is the limit: all its cores are taken")
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

    #[test]
    fn the_thread_that_works_is_the_busiest() {
        let own = Observed { pid: std::process::id() };
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let idle = thread::spawn(move || stopped.recv());
        let work = move || {
            let before = own.cpu_ever()?;
            while own.cpu_ever()? < before + 3 * TICK {}
            Ok(())
        };
        let working = thread::spawn(move || {
            let id = fs::read_link("/proc/thread-self").expect("this thread");
            (own.busiest_thread(work).expect("accounts"), id)
        });
        let (busiest, id) = working.join().expect("no panic");
        drop(stop);
        idle.join().expect("no panic").expect_err("nothing was sent");
        assert!(id.ends_with(busiest.to_string()), "{busiest} {}", id.display());
    }

    #[test]
    fn a_thread_that_has_ended_counts() {
        let own = Observed { pid: std::process::id() };
        let before = own.cpu_ever().expect("accounts");
        let work = || while own.cpu_ever().expect("accounts") < before + 2 * TICK {};
        thread::scope(|scope| scope.spawn(work).join()).expect("it ends");
        assert!(own.cpu_ever().expect("accounts") >= before + 2 * TICK);
    }

    #[test]
    fn a_busy_generator_is_the_limit() {
        let seen = |cpu, own_cpu| {
            let [cpu, own_cpu] = [cpu, own_cpu].map(Duration::from_millis);
            Seen { elapsed: Duration::from_secs(1), cpu, own_cpu }
        };
        let generator = Some("the load generator is the limit");
        assert_eq!(seen(10, 950).limit(1), generator);
        assert_eq!(seen(10, 20).limit(1), None);
        let cores = thread::available_parallelism().map_or(1, usize::from) as u64;
        assert_eq!(seen(0, cores * 950).limit(usize::MAX), generator);
        assert!(seen(cores * 800, 150 * cores).limit(usize::MAX).is_some(), "all are busy");
    }
}
