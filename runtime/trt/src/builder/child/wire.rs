//! What passes between the two processes: a file with the request and, behind it, the plan; and lines of JSON.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::ops::Range as Span;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::builder::events::Said;
use crate::builder::{Range, Refit, Request};
use crate::{Capability, Flavour};

/// First bytes of a request, with the version of the format.
const MAGIC: &[u8; 8] = b"v2lplan1";
/// Behind them: the bytes of the header, as a number of 8 bytes; the library's folder, filled up with NUL.
const PREFIX: usize = MAGIC.len() + 8 + FOLDER;
/// Bytes that the folder's name may have. Its length moves nothing.
const FOLDER: usize = 4096;
/// Model, weights and plan begin at multiples of this.
const ALIGNMENT: usize = 4096;
/// Bytes that a header may have.
const MOST_HEADER: usize = 64 << 20;
/// Bytes that a line may have.
const MOST_LINE: u64 = 64 << 20;

/// A part of no bytes. It lies nowhere: the file may end before.
const NOTHING: Span<usize> = 0..0;

/// A request without its bytes, which lie behind it in the file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) flavour: Flavour,
    /// The library's name.
    pub(super) library: OsString,
    pub(super) profiles: Vec<Vec<Range>>,
    pub(super) capabilities: Vec<Capability>,
    pub(super) refit: HeldRefit,
    model: Span<usize>,
    weights: Vec<(String, Span<usize>)>,
    timing_cache: Option<Span<usize>>,
}

/// [`Refit`], on its own.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum HeldRefit {
    None,
    Placeholders,
    Marked(Vec<String>),
}

/// What the child says, a line each.
#[derive(Serialize, Deserialize)]
pub(super) enum Line {
    /// A step is done.
    Step { phase: String, done: u32, of: u32 },
    /// The build has ended; the plan lies in the file, and what was learned of kernels.
    Ended { status: i32, detail: i64, said: Said, plan: Option<Span<usize>>, timing_cache: Option<Span<usize>> },
    /// There was no build.
    Refused(String),
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Writes a request into an empty file, which is then at its end.
pub(super) fn write_request(
    file: &mut File,
    flavour: Flavour,
    (folder, library): (Option<&Path>, &Path),
    request: &Request<'_>,
) -> io::Result<()> {
    let mut end = 0_usize;
    let mut place = |bytes: &[u8]| {
        if bytes.is_empty() {
            return NOTHING;
        }
        let start = end.next_multiple_of(ALIGNMENT);
        end = start + bytes.len();
        start..end
    };
    let header = Header {
        flavour,
        library: library.into(),
        profiles: request.profiles.to_vec(),
        capabilities: request.capabilities.to_vec(),
        refit: match request.refit {
            Refit::None => HeldRefit::None,
            Refit::Placeholders => HeldRefit::Placeholders,
            Refit::Marked(names) => HeldRefit::Marked(names.to_vec()),
        },
        model: place(request.model),
        weights: request.weights.iter().map(|(name, data)| (name.clone(), place(data))).collect(),
        timing_cache: request.timing_cache.map(place),
    };
    let text = serde_json::to_vec(&header)?;
    let mut folder = folder.map_or_else(Vec::new, |folder| folder.as_os_str().as_bytes().to_vec());
    if folder.len() > FOLDER {
        return Err(invalid("the path of TensorRT's library is too long"));
    }
    folder.resize(FOLDER, 0);
    let start = (PREFIX + text.len()).next_multiple_of(ALIGNMENT);
    file.write_all(MAGIC)?;
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&folder)?;
    file.write_all(&text)?;
    let weights = request.weights.iter().map(|(_, data)| *data).zip(header.weights.iter().map(|w| &w.1));
    let parts = std::iter::once((request.model, &header.model)).chain(weights);
    for (bytes, span) in parts.chain(request.timing_cache.zip(header.timing_cache.as_ref())) {
        file.seek(SeekFrom::Start((start + span.start) as u64))?;
        file.write_all(bytes)?;
    }
    Ok(())
}

/// A request in a file.
pub(super) struct Held {
    pub(super) header: Header,
    map: Mmap,
    /// Where the bytes begin.
    start: usize,
}

impl Held {
    /// Reads a request, and checks that every part of it lies within the file.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let map = map(file)?;
        let prefix: &[u8; PREFIX] = map.first_chunk().ok_or_else(|| invalid("it is too short"))?;
        let length = u64::from_le_bytes(std::array::from_fn(|at| prefix[MAGIC.len() + at]));
        let length = usize::try_from(length).ok().filter(|length| *length <= MOST_HEADER);
        let (true, Some(length)) = (prefix.starts_with(MAGIC), length) else {
            return Err(invalid("it is no request of this version"));
        };
        let text = map.get(PREFIX..PREFIX + length).ok_or_else(|| invalid("its header is cut off"))?;
        let header: Header = serde_json::from_slice(text)?;
        let start = (PREFIX + length).next_multiple_of(ALIGNMENT);
        let held = Self { header, map, start };
        let Header { model, weights, timing_cache, .. } = &held.header;
        let mut spans = std::iter::once(model).chain(weights.iter().map(|(_, span)| span)).chain(timing_cache);
        match spans.any(|span| held.bytes(span).is_none()) {
            true => Err(invalid("a part of it does not lie within the file")),
            false => Ok(held),
        }
    }

    fn bytes(&self, span: &Span<usize>) -> Option<&[u8]> {
        if *span == NOTHING {
            return Some(&[]);
        }
        self.map.get(self.start.checked_add(span.start)?..self.start.checked_add(span.end)?)
    }

    /// The library's folder; `None` if the loader is to find it.
    pub(super) fn folder(&self) -> Option<&Path> {
        let bytes = self.map.get(PREFIX - FOLDER..PREFIX)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(FOLDER);
        (end > 0).then(|| Path::new(OsStr::from_bytes(&bytes[..end])))
    }

    pub(super) fn model(&self) -> &[u8] {
        self.bytes(&self.header.model).unwrap_or_default()
    }

    pub(super) fn timing_cache(&self) -> Option<&[u8]> {
        self.header.timing_cache.as_ref().and_then(|span| self.bytes(span))
    }

    pub(super) fn weights(&self) -> Vec<(String, &[u8])> {
        let bytes = |span| self.bytes(span).unwrap_or_default();
        self.header.weights.iter().map(|(name, span)| (name.clone(), bytes(span))).collect()
    }
}

/// Appends a plan, or what was learned, and says where it lies.
pub(super) fn append(file: &mut File, plan: &[u8]) -> io::Result<Span<usize>> {
    let end = usize::try_from(file.seek(SeekFrom::End(0))?).map_err(|_| invalid("the file is too large"))?;
    let start = end.next_multiple_of(ALIGNMENT);
    file.seek(SeekFrom::Start(start as u64))?;
    file.write_all(plan)?;
    Ok(start..start + plan.len())
}

/// Maps a file that has no name, so that nobody but the two processes can change it: the parent writes before the child runs, and
/// the child appends.
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: see above; neither process shortens the file or writes to what is mapped.
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    unsafe {
        Mmap::map(file)
    }
}

/// The next line; `None` at the end. A line that is none of ours, such as a library's own words, is passed over.
pub(super) fn read_line(from: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        from.by_ref().take(MOST_LINE).read_until(b'\n', &mut line)?;
        match serde_json::from_slice(&line) {
            Ok(line) => return Ok(Some(line)),
            Err(_) if line.is_empty() => return Ok(None),
            Err(_) => {}
        }
    }
}

/// Writes a line in one piece.
pub(super) fn write_line(to: &mut impl Write, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    to.write_all(&text)?;
    to.flush()
}
