//! Where the path of an output leads.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Symbolic links that are followed, one after the other.
const MAX_LINKS: usize = 40;

/// What becomes of the path of an output file.
#[derive(Debug)]
pub(super) enum Target {
    /// A regular file or nothing, behind all symbolic links: replaced by renaming.
    Replaced(PathBuf),
    /// Written to as it is.
    Through(Sink),
}

/// What is no regular file, or open already.
#[derive(Debug)]
pub(super) enum Sink {
    /// This process's standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// A pipe, a device, or another open file of a process by its number.
    Path(PathBuf),
}

/// What is at the end of all symbolic links, and where.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Nothing,
    File,
    Folder,
    Sink(Sink),
}

impl Place {
    /// Follows the symbolic links of `path`; there may be nothing where they lead.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Some(name) = path.file_name() else {
                return Ok(Self { path: path.canonicalize()?, kind: Kind::Folder });
            };
            let parent = folder_of(&path);
            let folder = parent.canonicalize().map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => {
                    let message = format!("the folder {} does not exist; create it first", parent.display());
                    io::Error::new(io::ErrorKind::NotFound, message)
                }
                _ => e,
            })?;
            let place = folder.join(name);
            if let Some(sink) = open_file(&folder, name) {
                return Ok(Self { kind: Kind::Sink(sink), path: place });
            }
            let metadata = match std::fs::symlink_metadata(&place) {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Ok(Self { path: place, kind: Kind::Nothing });
                }
                Err(e) => return Err(e),
            };
            if metadata.is_symlink() {
                path = folder.join(std::fs::read_link(&place)?);
                continue;
            }
            let kind = if metadata.is_dir() {
                Kind::Folder
            } else if metadata.is_file() {
                Kind::File
            } else {
                Kind::Sink(Sink::Path(place.clone()))
            };
            return Ok(Self { path: place, kind });
        }
        Err(io::Error::other("too many symbolic links lead on from it"))
    }
}

impl Target {
    pub(super) fn of_file(path: &Path) -> io::Result<Self> {
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "expected a file name, found a folder");
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(no_name());
        }
        let place = Place::of(path)?;
        match place.kind {
            Kind::Folder => Err(no_name()),
            Kind::Nothing | Kind::File => Ok(Self::Replaced(place.path)),
            Kind::Sink(sink) => Ok(Self::Through(sink)),
        }
    }
}

/// True if `path` leads to a pipe, a device, or a file that a process has open, such as `/dev/stdout`: it is written to and never
/// replaced, and any number of outputs may name it.
pub fn is_special(path: &Path) -> bool {
    Place::of(path).is_ok_and(|place| matches!(place.kind, Kind::Sink(_)))
}

/// True if `path` leads to this process's standard output.
pub fn is_stdout(path: &Path) -> bool {
    Place::of(path).is_ok_and(|place| matches!(place.kind, Kind::Sink(Sink::Stdout)))
}

/// `/proc/N/fd/M`, where `/dev/stdout` and `/dev/fd/M` lead: a link that cannot be followed by name.
fn open_file(folder: &Path, name: &OsStr) -> Option<Sink> {
    if !folder.starts_with("/proc") || folder.file_name() != Some(OsStr::new("fd")) {
        return None;
    }
    let own = folder == Path::new("/proc/self/fd").canonicalize().ok()?;
    Some(match name.to_str() {
        Some("1") if own => Sink::Stdout,
        Some("2") if own => Sink::Stderr,
        _ => Sink::Path(folder.join(name)),
    })
}

impl Sink {
    /// Refuses what may not be written to. A pipe is not opened for it: its reader would take that for all there is.
    pub(super) fn check(&self) -> io::Result<()> {
        match self {
            Self::Path(path) => Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?),
            Self::Stdout | Self::Stderr => Ok(()),
        }
    }

    /// Hands on all bytes of `file` from where it stands. A pipe without a reader waits for one.
    pub(super) fn write(&self, file: &mut File) -> io::Result<()> {
        match self {
            Self::Stdout => copy(file, &mut io::stdout().lock()),
            Self::Stderr => copy(file, &mut io::stderr().lock()),
            // A regular file that is open elsewhere is not truncated there: the bytes follow those that it has.
            Self::Path(path) => copy(file, &mut OpenOptions::new().append(true).open(path)?),
        }
    }
}

fn copy(from: &mut File, to: &mut impl Write) -> io::Result<()> {
    io::copy(from, to)?;
    to.flush()
}

/// The folder that holds `path`, `.` for a bare name.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
