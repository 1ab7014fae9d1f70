//! The available memory: that of the machine, or less if the process's control group allows less.

use std::{fs, path::Path};

/// The memory that this process may use, in bytes; `None` if the system does not say.
pub(super) fn available_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_groups = limit_files(&groups);
    let limits = of_groups.iter().filter_map(|file| read_number(Path::new(file)));
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_bytes(&text));
    limits.chain(machine).min()
}

/// The files that can hold a limit, for the groups of the process and their parents. Version 2 of
/// control groups has one hierarchy, version 1 has one for memory.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let around = Path::new(path).ancestors().filter_map(Path::to_str);
        files.extend(around.map(|path| format!("{root}{}/{file}", path.trim_end_matches('/'))));
    }
    files
}

/// The number in a file; `None` for the word `max`.
fn read_number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Finds `MemTotal:       16384 kB` among other lines.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_in_both_versions_of_control_groups() {
        for (groups, expected) in [
            ("0::/\n", &["/sys/fs/cgroup/memory.max"][..]),
            (
                "0::/system.slice/herald.service\n",
                &[
                    "/sys/fs/cgroup/system.slice/herald.service/memory.max",
                    "/sys/fs/cgroup/system.slice/memory.max",
                    "/sys/fs/cgroup/memory.max",
                ],
            ),
            (
                "5:cpu,cpuacct:/a\n4:memory:/docker/1\n",
                &[
                    "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes",
                    "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                ],
            ),
            ("", &[]),
            ("garbage\n:\n", &[]),
        ] {
            assert_eq!(limit_files(groups), expected, "{groups}");
        }
    }

    #[test]
    fn the_machine_says_how_much_it_has() {
        let meminfo = "MemTotal:       16384 kB\nMemFree:  1 kB\n";
        assert_eq!(total_bytes(meminfo), Some(16_777_216));
        assert_eq!(total_bytes("MemFree:  1 kB\n"), None);
        if cfg!(target_os = "linux") {
            assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 24));
        }
    }
}
