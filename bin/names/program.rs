//! The start of the program `v2l` under another name.

use std::env;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The exit code of `v2l` for a program that is missing from this machine.
const MISSING: u8 = 6;

/// Becomes the `v2l` that lies in this program's folder, which goes by the name that it is called by. Cargo builds no links; these names
/// are there so that the code of the tools is linked once.
pub(crate) fn become_v2l(name: &str) -> ExitCode {
    let program = match env::current_exe() {
        Ok(path) => path.with_file_name(format!("v2l{}", env::consts::EXE_SUFFIX)),
        Err(error) => return failed(Path::new("v2l"), &error),
    };
    match start(Command::new(&program).args(env::args_os().skip(1)), name) {
        Ok(code) => code,
        Err(error) => failed(&program, &error),
    }
}

#[cfg(unix)]
fn start(command: &mut Command, name: &str) -> io::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    Err(command.arg0(name).exec())
}

/// Where a program cannot become another, its name goes first.
#[cfg(not(unix))]
fn start(command: &mut Command, name: &str) -> io::Result<ExitCode> {
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let tool = name.trim_start_matches("v2l-");
    let status = Command::new(command.get_program()).arg(tool).args(arguments).status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn failed(program: &Path, error: &io::Error) -> ExitCode {
    eprintln!("error: {}: {error}; it is the program that this is a name of: put it there", program.display());
    ExitCode::from(MISSING)
}
