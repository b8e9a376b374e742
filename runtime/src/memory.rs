//! How much memory there is: the machine's, the control groups' and the process's own limits.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::error::{Classified, ErrorClass};

/// What is left to allocate, and what there is in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    left: Option<u64>,
    total: Option<u64>,
}

impl Room {
    fn least(self, other: Self) -> Self {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self { left: least(self.left, other.left), total: least(self.total, other.total) }
    }

    /// Of all that limits this process. `root` is the root of the file system.
    fn of(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        let system = read("proc/meminfo").map(|text| meminfo(&text)).unwrap_or_default();
        let addresses = read("proc/self/limits").zip(read("proc/self/status"));
        let addresses = addresses.map(|(limits, status)| address_space(&limits, &status)).unwrap_or_default();
        let groups = read("proc/self/cgroup").unwrap_or_default();
        groups.lines().fold(system.least(addresses), |room, line| room.least(group(root, line)))
    }
}

/// Bytes that this process can allocate without swapping: the system's estimate, or what a limit on a control group (of either
/// version, or of a group around it) or on the process's address space leaves if that is less. `None` where the system
/// does not say.
pub fn available_memory() -> Option<u64> {
    Room::of(Path::new("/")).left
}

/// Bytes that this process could have at most: the machine's memory, or the least of these limits. Other than
/// [`available_memory`] it does not depend on what else runs, and is asked for once in a process. `None` where the system does not say.
pub fn memory_limit() -> Option<u64> {
    static TOTAL: OnceLock<Option<u64>> = OnceLock::new();
    *TOTAL.get_or_init(|| Room::of(Path::new("/")).total)
}

/// A number of bytes for people: `61 GB`, `1.5 GB`, `300 MB`.
pub fn readable(bytes: u64) -> String {
    let (unit, size) = if bytes >= 1_000_000_000 { ("GB", 1e9) } else { ("MB", 1e6) };
    let number = bytes as f64 / size;
    if number < 10.0 { format!("{number:.1} {unit}") } else { format!("{number:.0} {unit}") }
}

/// There is less memory than a request takes. Nothing was loaded for it.
#[derive(Debug, thiserror::Error)]
#[error("not enough memory: {what} needs about {}, {} are free; {way_out}", readable(*needed), readable(*available))]
pub struct NotEnough {
    /// `this video`, `encoding these pixels`, …
    pub what: &'static str,
    /// Bytes needed.
    pub needed: u64,
    /// Bytes free.
    pub available: u64,
    /// What to try, of what helps.
    pub way_out: String,
}

impl Classified for NotEnough {
    fn class(&self) -> ErrorClass {
        ErrorClass::Memory
    }
}

/// Refuses what does not fit. `held` are bytes that are taken already for what was counted; `ways_out` are asked only if it does not
/// fit, and get the bytes that there are.
///
/// # Errors
/// [`NotEnough`].
pub fn check_room(
    what: &'static str,
    needed: u64,
    held: u64,
    ways_out: impl FnOnce(u64) -> Vec<String>,
) -> Result<(), NotEnough> {
    let Some(free) = available_memory() else { return Ok(()) };
    let available = free.saturating_add(held);
    if needed <= available {
        return Ok(());
    }
    let ways = ways_out(available);
    let way_out = if ways.is_empty() {
        "free memory, or use a larger machine".to_owned()
    } else {
        format!("try {}", ways.join(", or "))
    };
    Err(NotEnough { what, needed, available, way_out })
}

/// Bytes of the entry `name` of a file that counts in kB.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn meminfo(text: &str) -> Room {
    Room { left: kilobytes(text, "MemAvailable:"), total: kilobytes(text, "MemTotal:") }
}

/// `limits` and `status` are files of `/proc/self`.
fn address_space(limits: &str, status: &str) -> Room {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let limit = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let used = kilobytes(status, "VmSize:").unwrap_or(0);
    Room { left: limit.map(|limit| limit.saturating_sub(used)), total: limit }
}

/// What the group of a line of `/proc/self/cgroup`, and those around it, allow.
fn group(root: &Path, line: &str) -> Room {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Room::default() };
    let (mount, names) = match controllers {
        "" => ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file "]),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "])
        }
        _ => return Room::default(),
    };
    let mount = root.join(mount);
    // A container often sees its own group at the mount itself, whatever its path is called outside.
    let inner = path.trim_start_matches('/');
    let folders = Path::new(inner).ancestors().map(|part| mount.join(part));
    folders.map(|folder| limited(&folder, names)).fold(Room::default(), Room::least)
}

fn limited(folder: &Path, [limit, used, droppable]: [&str; 3]) -> Room {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let Some(limit) = number(limit) else { return Room::default() };
    // Pages of files count as used but can be dropped.
    let droppable = read("memory.stat")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix(droppable))?.trim().parse::<u64>().ok());
    let used = number(used).unwrap_or(0).saturating_sub(droppable.unwrap_or(0));
    Room { left: Some(limit.saturating_sub(used)), total: Some(limit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> Room {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Room::of(root.path())
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       24000 kB\nMemAvailable:   12345 kB\n");

    #[test]
    fn room_without_limits_is_the_machines() {
        let unlimited = "Max address space         unlimited            unlimited            bytes\n";
        let files = [
            MEMINFO,
            ("proc/self/limits", unlimited),
            ("proc/self/status", "VmSize: 9 kB\n"),
            ("proc/self/cgroup", "0::/\n"),
        ];
        assert_eq!(system(&files), Room { left: Some(12345 * 1024), total: Some(24000 * 1024) });
        assert_eq!(system(&[]), Room::default());
    }

    #[test]
    fn room_is_limited_by_a_group_of_version_2_and_by_those_around_it() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("sys/fs/cgroup/a/memory.current", "700000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 100000\n"),
        ];
        assert_eq!(system(&files), Room { left: Some(400_000), total: Some(1_000_000) });
    }

    #[test]
    fn room_is_limited_by_a_group_of_version_1() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/of/another/namespace\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 9\ntotal_inactive_file 100000\n"),
        ];
        assert_eq!(system(&files), Room { left: Some(1_600_000), total: Some(2_000_000) });
    }

    #[test]
    fn room_is_limited_by_the_address_space() {
        let limits = "Max cpu time              unlimited            unlimited            seconds\n\
                      Max address space         4096000              unlimited            bytes\n";
        let files = [MEMINFO, ("proc/self/limits", limits), ("proc/self/status", "Name: x\nVmSize:\t  2400 kB\n")];
        assert_eq!(system(&files), Room { left: Some(4_096_000 - 2400 * 1024), total: Some(4_096_000) });
    }

    #[test]
    fn readable_bytes_have_two_digits_or_more() {
        assert_eq!(
            [61_400_000_000, 1_540_000_000, 22_000_000, 300].map(readable),
            ["61 GB", "1.5 GB", "22 MB", "0.0 MB"]
        );
    }
}
