//! Wall time, private memory, free disk.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::checkpoint::files;
use crate::machine::private_memory;

/// Time between two looks at a process's memory.
const POLL: Duration = Duration::from_millis(20);

/// What a stage took.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) seconds: f64,
    /// Largest private memory (`RssAnon`) seen, in bytes.
    pub(crate) private: u64,
}

/// Runs a command to its end, its output on stderr, watching its private memory.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<Taken> {
    let start = Instant::now();
    let child = command.stdout(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?;
    let (mut child, private) = watch(child)?;
    let status = child.wait()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(Taken { seconds: start.elapsed().as_secs_f64(), private })
}

/// Waits until a process ends; the largest private memory seen meanwhile.
pub(crate) fn watch(mut child: Child) -> anyhow::Result<(Child, u64)> {
    let mut peak = 0;
    loop {
        peak = peak.max(private_memory(&child.id().to_string()).unwrap_or(0));
        if child.try_wait()?.is_some() {
            return Ok((child, peak));
        }
        std::thread::sleep(POLL);
    }
}

/// Copies a folder with cp and waits until the copy is on disk.
pub(crate) fn synced_copy(from: &Path, to: &Path) -> anyhow::Result<Taken> {
    let start = Instant::now();
    let Taken { private, .. } = run(Command::new("cp").arg("-r").arg("--reflink=never").arg(from).arg(to))?;
    for path in files(to)? {
        std::fs::File::open(&path).and_then(|f| f.sync_all()).with_context(|| path.display().to_string())?;
    }
    Ok(Taken { seconds: start.elapsed().as_secs_f64(), private })
}

/// Brings stages to the same start: nothing waits to be written, and `folder` is not in the page cache.
pub(crate) fn settle(folder: &Path) -> anyhow::Result<()> {
    run(&mut Command::new("sync"))?;
    for path in files(folder)? {
        let mut input = std::ffi::OsString::from("if=");
        input.push(&path);
        run(Command::new("dd").arg(input).args(["iflag=nocache", "count=0", "status=none"]))?;
    }
    Ok(())
}

/// Bytes of all files of a folder.
pub(crate) fn size(folder: &Path) -> anyhow::Result<u64> {
    files(folder)?.iter().map(|path| Ok(path.metadata().with_context(|| path.display().to_string())?.len())).sum()
}

/// Fails unless `folder`'s file system has `needed` bytes free.
pub(crate) fn check_free_disk(folder: &Path, needed: u64) -> anyhow::Result<u64> {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(folder).output().context("df")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(free) = text.lines().nth(1).and_then(|line| line.trim().parse::<u64>().ok()) else {
        bail!("df does not say how much is free in {}: {text}", folder.display());
    };
    ensure!(
        free >= needed,
        "{}: {:.1} GB are free, {:.1} GB are needed; free some, name another disk with --keep DIR, or try --layers 2",
        folder.display(),
        giga(free),
        giga(needed)
    );
    Ok(free)
}

pub(crate) fn giga(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
