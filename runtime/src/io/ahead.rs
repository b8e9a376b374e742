//! Files that are read ahead of their use, so that they lie in the system's page cache by then.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::memory::available_memory;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// A file that is being read on a thread of its own; dropped, it is read no further.
pub(crate) struct ReadAhead {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl ReadAhead {
    /// Reads a file, unless it would take more than half of the memory that is left: it would push out what is in use. `None`
    /// then, and where it cannot be read, which whoever opens it will say.
    pub(crate) fn start(path: &Path) -> Option<Self> {
        let size = std::fs::metadata(path).ok()?.len();
        if available_memory().is_some_and(|available| size > available / 2) {
            return None;
        }
        let (path, stop) = (path.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let reader = thread::Builder::new().name("v2l-read-ahead".to_owned());
        let thread = reader.spawn(move || read(path, &stopped)).ok()?;
        Some(Self { stop, thread: Some(thread) })
    }

    /// Waits for the end; gives the bytes that were read.
    #[cfg(test)]
    fn finish(mut self) -> u64 {
        self.thread.take().map_or(0, |thread| thread.join().unwrap())
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and it ends with the piece that it is at.
            let _ = thread.join();
        }
    }
}

fn read(path: PathBuf, stopped: &AtomicBool) -> u64 {
    let Ok(mut file) = File::open(path) else { return 0 };
    let (mut piece, mut done) = (vec![0; PIECE], 0);
    while !stopped.load(Ordering::Relaxed) {
        match file.read(&mut piece) {
            Ok(count) if count > 0 => done += count as u64,
            _ => break,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_read_to_its_end_and_a_missing_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        assert!(ReadAhead::start(&path).is_none());
        std::fs::write(&path, vec![7; 3 * PIECE + 5]).unwrap();
        assert_eq!(ReadAhead::start(&path).unwrap().finish(), 3 * PIECE as u64 + 5);
        drop(ReadAhead::start(&path));
    }
}
