//! Parts of the command line that its subcommands share: exit codes, progress, JSON events, error reporting, adapters and files as
//! flags name them.

mod adapters;
mod allocator;
pub mod bar_chart;
mod exit;
mod files;
mod generate;
pub mod heat_map;
mod lora_format;
mod output;
mod signals;
mod telemetry;
mod weights;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use v2l_runtime::wording::{self, Speaker};

pub use adapters::{AdapterArg, open_transformer, open_transformers, split_strength};
pub use exit::{Exit, Failure, flags};
pub use files::Files;
pub use lora_format::LoraFormat;
pub use output::{Output, OutputOptions, shown};
pub use weights::Weights;

/// A command line, taken apart.
pub struct Call {
    /// The command as its user wrote it: `v2l-export`, `v2l export`.
    pub name: String,
    /// The words behind it.
    pub words: Vec<OsString>,
}

/// Runs a command: parses its words, prints what went wrong to stderr (and as a JSON event with `--json`) and turns it into an
/// exit code. Where stdout cannot be written, the work goes on without it: a reader that went away is no error, all else is one.
pub fn run<A: clap::FromArgMatches>(
    call: &Call,
    command: clap::Command,
    options: impl FnOnce(&A) -> OutputOptions,
    body: impl FnOnce(A, &mut Output) -> anyhow::Result<()>,
) -> ExitCode {
    telemetry::turn_off();
    wording::speak(Speaker::CommandLine);
    signals::listen();
    if let Some(exit) = describe(call, &command) {
        return exit;
    }
    let args = match parse_as::<A>(&call.name, command, &call.words) {
        Ok(args) => args,
        Err(error) => return help_or_usage(&error),
    };
    let mut output = Output::new(options(&args));
    let done = body(args, &mut output);
    for words in v2l_runtime::io::library::passed_over() {
        output.warning(&words);
    }
    let done = done.and_then(|()| output.written());
    if let Some(exit) = signals::heard() {
        output.failure(&Failure { exit, message: "interrupted".into() }.into(), exit);
        signals::end(exit);
    }
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            let exit = exit::exit_of(&error);
            output.failure(&error, exit);
            exit.into()
        }
    }
}

/// Prints the manual page, the reference or the completions of a command, if that is what it is called for.
pub fn describe(call: &Call, command: &clap::Command) -> Option<ExitCode> {
    generate::asked(&call.words, || command.clone().bin_name(&call.name)).map(generated)
}

fn parse_as<A: clap::FromArgMatches>(name: &str, command: clap::Command, words: &[OsString]) -> Result<A, clap::Error> {
    let mut command = command.bin_name(name).no_binary_name(true);
    let mut matches = command.try_get_matches_from_mut(words)?;
    A::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The arguments of a command that another one runs.
///
/// # Errors
/// A usage [`Failure`] in the parser's words.
pub fn parse<A: clap::Parser>(name: &str, words: &[OsString]) -> anyhow::Result<A> {
    parse_as(name, A::command(), words).map_err(|error| Failure::usage(format!("{name}: {}", usage_message(&error))))
}

/// True if the user interrupted: what observers and those who fuse are told.
pub fn interrupted() -> bool {
    v2l_runtime::interrupt::requested()
}

/// Prints what `--generate` asked for.
fn generated(text: Result<Vec<u8>, String>) -> ExitCode {
    match text {
        Ok(text) => {
            let printed = std::io::stdout().write_all(&text).and_then(|()| std::io::stdout().flush());
            printed_or_lost(printed)
        }
        Err(message) => {
            output::diagnostic(&format!("error: {message}"));
            Exit::Usage.into()
        }
    }
}

/// The exit code of a text that was all there was to print.
fn printed_or_lost(printed: std::io::Result<()>) -> ExitCode {
    match Output::new(OutputOptions::default()).lost(printed).written() {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            output::diagnostic(&format!("error: {error}"));
            Exit::Io.into()
        }
    }
}

/// Prints what the parser has to say: help and version on stdout, usage errors on stderr and, with `--json`, as an event.
pub fn help_or_usage(error: &clap::Error) -> ExitCode {
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    if error.use_stderr() {
        // Nothing was parsed: a `--json` that is not a value of another flag counts, wherever it stands.
        let json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
        Output::new(OutputOptions { json, quiet: false }).failure_event(&usage_message(error), Exit::Usage);
        return Exit::Usage.into();
    }
    printed_or_lost(printed)
}

/// What the parser found wrong, without the prefix and the usage that it prints around it.
fn usage_message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let end = text.find("\n\nUsage:").or_else(|| text.find("\n\nFor more information")).unwrap_or(text.len());
    text[..end].trim().to_owned()
}
