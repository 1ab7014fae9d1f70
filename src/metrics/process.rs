//! Figures of the process itself, taken from the system at each scrape.

use std::{
    fmt, fs,
    fs::File,
    os::unix::fs::FileExt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use rustix::time::{ClockId, clock_gettime};

/// Reads the figures of this process. A figure that the system does not offer is left out.
///
/// With a recent kernel no figure needs a file to be opened, because figures matter most when no file handle is left.
/// Crates such as `procfs` open a file of `/proc` for each.
#[derive(Debug)]
pub(super) struct Process {
    started: SystemTime,
    /// `/proc/self/status`, kept open.
    status: Option<File>,
}

impl Process {
    /// Creates the figures of a process that has just started.
    pub(super) fn now() -> Self {
        Self { started: SystemTime::now(), status: File::open("/proc/self/status").ok() }
    }

    fn resident_bytes(&self) -> Option<i64> {
        // The kernel writes a file of `/proc` anew for each read that begins at its start.
        let mut bytes = [0; 8 * 1_024];
        let length = self.status.as_ref()?.read_at(&mut bytes, 0).ok()?;
        let status = String::from_utf8_lossy(&bytes[..length]);
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()? * 1_024)
    }
}

fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// The number of open files. Newer kernels give it as the size of the folder, which needs no file
/// handle; on older ones the folder is read.
fn open_files() -> Option<i64> {
    let folder = "/proc/self/fd";
    match fs::metadata(folder).ok()?.len() {
        // One of them is the handle of the folder that is being read.
        0 => i64::try_from(fs::read_dir(folder).ok()?.count()).ok().map(|count| count - 1),
        count => i64::try_from(count).ok(),
    }
}

fn open_files_max() -> Option<i64> {
    let (soft, _) = rlimit::getrlimit(rlimit::Resource::NOFILE).ok()?;
    Some(i64::try_from(soft).unwrap_or(i64::MAX))
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let started = self.started.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
        let gauges = [
            ("process_resident_memory_bytes", "Memory in use", self.resident_bytes()),
            ("process_open_fds", "Open files, sockets among them", open_files()),
            ("process_max_fds", "Files that may be open", open_files_max()),
        ];
        for (name, help, value) in gauges {
            show(&mut encoder, (name, help), value.map(ConstGauge::new))?;
        }
        let started = started.map(ConstGauge::new);
        let help = ("process_start_time_seconds", "When the server started, in Unix time");
        show(&mut encoder, help, started)?;
        let cpu = ConstCounter::new(cpu_seconds());
        show(&mut encoder, ("process_cpu_seconds", "Processor time used"), Some(cpu))
    }
}

fn show(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    metric: Option<impl EncodeMetric>,
) -> fmt::Result {
    let Some(metric) = metric else { return Ok(()) };
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let process = Process::now();
        let resident = process.resident_bytes().expect("a figure");
        assert!((1 << 20..1 << 34).contains(&resident), "{resident} bytes");
        let before = cpu_seconds();
        while cpu_seconds() <= before {
            std::hint::black_box((0..100_000).sum::<u64>());
        }
        let files_max = open_files_max().expect("a figure");
        let files = open_files().expect("a figure");
        assert!((3..files_max).contains(&files), "{files} of {files_max}");
    }
}
