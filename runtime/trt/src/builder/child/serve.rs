//! The child: reads a request from the file that is its standard input, builds, and answers.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::wire::{Held, HeldRefit, Line, append, write_line};
use super::{ARGUMENT, NAME};
use crate::builder::call::Ended;
use crate::builder::{Refit, Request};
use crate::library::Found;
use crate::library::Library;

/// Bytes that a stack may usually have.
const STACK: u64 = 8 << 20;

pub(in crate::builder) fn serve_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let asked = arguments.next().as_deref() == Some(OsStr::new(ARGUMENT)) && arguments.next().is_none();
    asked.then(|| {
        usual_stack();
        let line = serve().unwrap_or_else(Line::Refused);
        // Without a parent that listens there is nobody to tell.
        match write_line(&mut io::stdout(), &line) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        }
    })
}

/// Begins anew with a stack of the usual limit, if it has another: the limit decides where memory is mapped. Where that is not allowed, it
/// goes on.
fn usual_stack() {
    let other = getrlimit(Resource::RLIMIT_STACK).ok().filter(|(soft, _)| *soft != STACK);
    if let Some((_, hard)) = other
        && setrlimit(Resource::RLIMIT_STACK, STACK, hard).is_ok()
    {
        // It returns only if it fails.
        let _ = Command::new("/proc/self/exe").arg0(NAME).arg(ARGUMENT).exec();
    }
}

fn serve() -> Result<Line, String> {
    let unreadable = |error: io::Error| format!("the request cannot be read: {error}");
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(unreadable)?);
    let held = Held::read(&file).map_err(unreadable)?;
    let header = &held.header;
    // Under a name that does not tell where it lies, since the loader keeps it in memory.
    let folder = held.folder().map(File::open).transpose().map_err(|error| format!("the library's folder: {error}"))?;
    let path = match &folder {
        Some(folder) => Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(&header.library),
        None => header.library.clone().into(),
    };
    let found = Found { path, from: "v2l".into() };
    let library = Library::open_found(header.flavour, found).map_err(|error| error.to_string())?;
    let weights = held.weights();
    let request = Request {
        model: held.model(),
        weights: &weights,
        profiles: &header.profiles,
        capabilities: &header.capabilities,
        refit: match &header.refit {
            HeldRefit::None => Refit::None,
            HeldRefit::Placeholders => Refit::Placeholders,
            HeldRefit::Marked(names) => Refit::Marked(names),
        },
        timing_cache: held.timing_cache(),
    };
    // A parent that is gone ends the build.
    let ended = library.call(&request, &mut |step| {
        let line = Line::Step { phase: step.phase.to_owned(), done: step.done, of: step.of };
        write_line(&mut io::stdout(), &line).is_ok()
    });
    let Ended { status, detail, plan, said } = ended.map_err(|error| error.to_string())?;
    let unwritable = |error: io::Error| format!("the plan cannot be written: {error}");
    let plan = plan.map(|plan| append(&mut file, &plan)).transpose().map_err(unwritable)?;
    let learned = said.timing_cache.as_ref();
    let timing_cache = learned.map(|learned| append(&mut file, learned)).transpose().map_err(unwritable)?;
    Ok(Line::Ended { status, detail, said, plan, timing_cache })
}
