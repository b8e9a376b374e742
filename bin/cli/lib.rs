//! What the four command-line tools share: exit codes, progress, JSON events, error reporting, adapters and files as flags name
//! them.

mod adapters;
mod exit;
mod files;
mod output;

pub use adapters::{open_transformer, split_strength};
pub use exit::{Exit, Failure};
pub use files::Files;
pub use output::{Output, OutputOptions};

/// Runs a tool: prints what went wrong to stderr (and as a JSON event with `--json`) and turns it into an exit code.
pub fn run(options: OutputOptions, body: impl FnOnce(&mut Output) -> anyhow::Result<()>) -> std::process::ExitCode {
    let mut output = Output::new(options);
    // Without the handler an interruption still ends the program, but may leave a temporary behind.
    let _ = ctrlc::set_handler(|| {
        v2l_runtime::atomic::remove_unfinished();
        std::process::exit(Exit::Interrupted as i32);
    });
    match body(&mut output) {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            let exit = exit::exit_of(&error);
            output.failure(&error, exit);
            exit.into()
        }
    }
}
