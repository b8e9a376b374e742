//! Memory of the process that builds a plan, a child of this one, as Linux counts it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Time between two looks.
const POLL: Duration = Duration::from_millis(10);

/// The largest memory of a child, in bytes: private, and with mapped files, which are the weights; 0 where the system does not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peak {
    pub(crate) private: u64,
    pub(crate) resident: u64,
}

/// Watches this process's children while `work` runs.
pub(crate) fn watched<T>(work: impl FnOnce() -> T) -> (T, Peak) {
    let (done, private, resident) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for child in children() {
                    private.fetch_max(bytes(&child, "RssAnon:"), Ordering::Relaxed);
                    resident.fetch_max(bytes(&child, "VmHWM:"), Ordering::Relaxed);
                }
                std::thread::sleep(POLL);
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    (result, Peak { private: private.into_inner(), resident: resident.into_inner() })
}

fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(Result::ok);
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn bytes(process: &str, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
