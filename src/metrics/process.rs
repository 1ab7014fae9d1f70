//! Figures of the process itself, read from `/proc` when somebody asks.

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

/// Clock ticks of a second as `/proc` counts them: so on every Linux that Rust knows.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads the figures of this process. What a system does not tell is not shown.
///
/// The files are kept open: they can be read also when no further one could be opened.
#[derive(Debug)]
pub(super) struct Process {
    started: SystemTime,
    stat: Option<File>,
    status: Option<File>,
}

impl Process {
    /// The process that began just now.
    pub(super) fn now() -> Self {
        let open = |name| File::open(format!("/proc/self/{name}")).ok();
        Self { started: SystemTime::now(), stat: open("stat"), status: open("status") }
    }

    fn cpu_seconds(&self) -> Option<f64> {
        let stat = read(self.stat.as_ref()?)?;
        // The second field is the program's name, which may hold anything, in brackets.
        let mut after_name = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || after_name.next()?.parse::<f64>().ok();
        Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
    }

    fn resident_bytes(&self) -> Option<i64> {
        let status = read(self.status.as_ref()?)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()? * 1_024)
    }
}

/// The whole of a file of `/proc`, from its beginning; it is written anew for each reader.
fn read(file: &File) -> Option<String> {
    let mut bytes = vec![0; 8 * 1_024];
    let length = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(length);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// How many files are open. Newer kernels tell it as the folder's size, and no file is needed for
/// that; of older ones the folder is read.
fn open_files() -> Option<i64> {
    let folder = "/proc/self/fd";
    match fs::metadata(folder).ok()?.len() {
        // The folder that is being read is one of them.
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
        let cpu = self.cpu_seconds().map(ConstCounter::new);
        show(&mut encoder, ("process_cpu_seconds", "Processor time used"), cpu)
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
        let before = process.cpu_seconds().expect("a figure");
        while process.cpu_seconds().expect("a figure") <= before {
            std::hint::black_box((0..100_000).sum::<u64>());
        }
        let files_max = open_files_max().expect("a figure");
        let files = open_files().expect("a figure");
        assert!((3..files_max).contains(&files), "{files} of {files_max}");
    }
}
