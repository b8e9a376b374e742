//! Folders of bounded size, which several processes may share: what was not used for longest goes first.

use std::fs::Metadata;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Age at which an unfinished file is taken for one that its writer left when it was killed.
const STRAY: Duration = Duration::from_secs(24 * 3600);

/// Removes entries of `folder` until they come to at most `limit` bytes, those first that `used` says were used first. Other
/// processes may do so at the same time; what cannot be removed stays, and so do files that are no entries. Entries that nobody
/// finished go after a day.
pub(crate) fn shrink(
    folder: &Path,
    limit: u64,
    is_entry: impl Fn(&Path) -> bool,
    used: fn(&Metadata) -> io::Result<SystemTime>,
) {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(metadata) = entry.metadata().ok().filter(Metadata::is_file) else { continue };
        let path = entry.path();
        if is_entry(&path) {
            entries.push((used(&metadata).unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), path));
        } else if is_unfinished(&path) && metadata.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STRAY))
        {
            // It takes no part in the limit; the next call tries again.
            let _ = remove(&path);
        }
    }
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in entries {
        if total <= limit {
            break;
        }
        if remove(&path).is_ok() {
            total -= bytes;
        }
    }
}

/// Removes a file that another process may have removed already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// True for the name of an entry: a BLAKE3 hash and an extension.
pub(crate) fn is_entry(path: &Path, extension: &str) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    path.extension().is_some_and(|found| found == extension) && blake3::Hash::from_hex(stem).is_ok()
}

/// True for the name under which [`AtomicFile`](crate::io::atomic::AtomicFile) begins an entry.
fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let begun = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial"));
    begun.and_then(|name| name.split('.').next()).is_some_and(|hash| blake3::Hash::from_hex(hash).is_ok())
}
