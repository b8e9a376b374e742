//! `v2l serve`: the server of the Python package.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::{CommandFactory, Parser};
use v2l_cli::{Call, Exit, Failure, OutputOptions};

/// Serve videos over HTTP, with the server of v2l's Python package.
///
/// All words go to `python3 -m v2l.serve`; `v2l serve --help` lists them. The Python is the one that v2l's wheel is installed in, or the
/// first on the PATH.
#[derive(Parser)]
#[command(name = "v2l-serve", disable_help_flag = true)]
struct Args {
    /// Words for the server: the folder of a model or of its engines, and flags.
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub(crate) fn command() -> clap::Command {
    Args::command()
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(call, command(), |_: &Args| OutputOptions::default(), |args, _| serve(&args.words))
}

fn serve(words: &[OsString]) -> anyhow::Result<()> {
    let python = python();
    let probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('v2l') is None)";
    let probed = Command::new(&python).args(["-c", probe]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    if !probed.is_ok_and(|status| status.success()) {
        let message = format!(
            "the server is part of v2l's Python package, and {} does not have it; pip install 'v2l[serve]'",
            python.display()
        );
        return Err(Failure { exit: Exit::Version, message }.into());
    }
    Err(start(Command::new(&python).args(["-m", "v2l.serve"]).args(words)))
}

/// The Python whose wheel this program lies in, `lib/python3.N/site-packages/v2l_tools/bin/v2l`, or the one on the PATH.
fn python() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let own = program.ancestors().nth(6).map(|root| root.join("bin/python3")).filter(|python| python.is_file());
    own.filter(|_| program.ends_with("site-packages/v2l_tools/bin/v2l")).unwrap_or_else(|| "python3".into())
}

/// Becomes the server, so that signals and exit codes are its own.
#[cfg(unix)]
fn start(command: &mut Command) -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    command.exec().into()
}

#[cfg(not(unix))]
fn start(command: &mut Command) -> anyhow::Error {
    match command.status() {
        Ok(status) => std::process::exit(status.code().unwrap_or(1)),
        Err(error) => error.into(),
    }
}
