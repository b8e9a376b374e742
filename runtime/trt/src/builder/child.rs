//! Building in a process of its own.
//!
//! TensorRT-RTX orders some of a placeholder plan's weights by the addresses of its objects. They are the same in every run of a
//! program that does the same from its first instruction on, if the system does not place memory at random: so the child
//! does nothing but build, with an environment, arguments and file descriptors that do not change, and without randomisation.

mod serve;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::personality::{self, Persona};

use self::wire::{Line, read_line, write_request};
use super::call::Ended;
use super::plan_bytes::PlanBytes;
use super::{BuildError, Child, Request, Step};
use crate::Flavour;
use crate::library::Found;

pub(super) use self::serve::serve_if_asked;

/// The one argument of a child.
const ARGUMENT: &str = "__build-tensorrt-plan";
/// Its name for itself.
const NAME: &str = "v2l-plan-builder";
/// Variables that a child keeps, where they are set: where libraries lie, and which GPU to build for.
const KEPT: [&str; 4] = ["LD_LIBRARY_PATH", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"];
/// The builder has a few threads. Each allocates from an arena of its own, so that their order does not move what the first one
/// allocates, which is what the plan's order follows: with one arena for all, plans differ.
const SET: [(&str, &str); 2] = [("LC_ALL", "C"), ("MALLOC_ARENA_MAX", "1024")];
/// Bytes that are kept of what a child says on its standard error.
const LAST_WORDS: usize = 4096;

/// Builds in a child; what came of it, and whether it would be the same again.
pub(super) fn build_in_child(
    flavour: Flavour,
    found: &Found,
    child: Child<'_>,
    request: &Request<'_>,
    progress: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<(Ended, bool), BuildError> {
    let title = flavour.title();
    let failed = |what| move |error: io::Error| BuildError::Process { title, what, reason: error.to_string() };
    let writing = failed("the request cannot be written for the builder");
    let mut file = tempfile::tempfile_in(child.scratch).map_err(writing)?;
    let (folder, library) = split(&found.path);
    write_request(&mut file, flavour, (folder.as_deref(), library), request).map_err(writing)?;
    let (mut running, reproducible) = start(child.program, &file).map_err(failed("the builder cannot be started"))?;
    let (answer, status, words) = listen(&mut running.0, progress).map_err(failed("the builder cannot be heard"))?;
    let (status, detail, mut said, plan, learned) = match answer {
        Some(Line::Ended { status, detail, said, plan, timing_cache }) => (status, detail, said, plan, timing_cache),
        Some(Line::Refused(reason)) => return Err(BuildError::Process { title, what: "the builder gave up", reason }),
        // What the caller wanted no more of.
        Some(Line::Step { .. }) => return Err(BuildError::Cancelled),
        None => return Err(died(title, status, words)),
    };
    // Read, so that the file goes now: with several GPUs to build for there would be several of them.
    let read = |part: Option<std::ops::Range<usize>>| {
        part.map(|part| PlanBytes::read(&file, &part)).transpose().map_err(failed("the plan cannot be read"))
    };
    let plan = read(plan)?;
    said.timing_cache = read(learned)?.map(|learned| learned.to_vec());
    Ok((Ended { status, detail, plan, said }, reproducible))
}

/// A library's folder, none if the loader is to find it, and its name.
fn split(library: &Path) -> (Option<PathBuf>, &Path) {
    match (library.parent(), library.file_name()) {
        (Some(folder), Some(name)) if folder != Path::new("") => (std::path::absolute(folder).ok(), Path::new(name)),
        _ => (None, library),
    }
}

/// A child that does not outlive this value.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a child, and says whether its addresses are not at random.
fn start(program: &Path, file: &File) -> io::Result<(Running, bool)> {
    let mut command = Command::new(program);
    // TensorRT compiles code with names in the current folder, and looks for headers there.
    command.arg0(NAME).arg(ARGUMENT).current_dir("/").env_clear().envs(SET);
    command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.stdin(file.try_clone()?).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fixed = FixedAddresses::begin();
    let child = command.spawn()?;
    Ok((Running(child), fixed.is_some()))
}

/// As long as it lives, processes that this thread starts have their memory where they had it the last time.
struct FixedAddresses(Persona);

impl FixedAddresses {
    /// `None` where the system does not allow it, as the filters of some containers do not.
    fn begin() -> Option<Self> {
        let before = personality::get().ok()?;
        personality::set(before | Persona::ADDR_NO_RANDOMIZE).ok()?;
        Some(Self(before))
    }
}

impl Drop for FixedAddresses {
    fn drop(&mut self) {
        // What was allowed a moment ago.
        let _ = personality::set(self.0);
    }
}

/// The child's answer, if it gave one; a step, if the caller wants no more; how it ended, and its last words.
fn listen(
    child: &mut std::process::Child,
    progress: &mut dyn FnMut(Step<'_>) -> bool,
) -> io::Result<(Option<Line>, ExitStatus, String)> {
    let closed = || io::Error::other("it has no output");
    let (stdout, stderr) = (child.stdout.take().ok_or_else(closed)?, child.stderr.take().ok_or_else(closed)?);
    std::thread::scope(|scope| {
        let words = scope.spawn(|| last_words(stderr));
        let mut lines = BufReader::new(stdout);
        let answer = loop {
            match read_line(&mut lines) {
                Ok(Some(Line::Step { phase, done, of })) => {
                    if !progress(Step { phase: &phase, done, of }) {
                        break Ok(Some(Line::Step { phase, done, of }));
                    }
                }
                other => break other,
            }
        };
        if !matches!(answer, Ok(None | Some(Line::Ended { .. } | Line::Refused(_)))) {
            // It may have ended.
            let _ = child.kill();
        }
        let status = child.wait()?;
        Ok((answer?, status, words.join().unwrap_or_default()))
    })
}

/// The end of what is said.
fn last_words(mut from: impl Read) -> String {
    let mut kept = VecDeque::new();
    let mut piece = [0; LAST_WORDS];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        kept.extend(&piece[..read]);
        kept.drain(..kept.len().saturating_sub(LAST_WORDS));
    }
    String::from_utf8_lossy(kept.make_contiguous()).trim().to_owned()
}

fn died(title: &'static str, status: ExitStatus, words: String) -> BuildError {
    let (by, way_out) = match status.signal() {
        Some(9) => ("signal 9".to_owned(), "if memory ran out, build for fewer layers or free some"),
        Some(signal) => {
            (format!("signal {signal}"), "leave out compute capabilities one by one, or compile for the backend `ort`")
        }
        None => (format!("{status} without an answer"), "run it again; if it stays so, compile for the backend `ort`"),
    };
    let messages = if words.is_empty() { Vec::new() } else { vec![words] };
    BuildError::Died { title, by, messages, way_out }
}
