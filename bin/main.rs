//! `v2l`: every tool in one program. The name that it is called by, such as `v2l-run`, says which one it is, or else the first word.

mod cache;
mod compile;
mod doctor;
mod export;
mod generate;
mod inspect;
mod model;
mod predict;
mod run;
mod serve;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use v2l_cli::Call;

/// A subcommand.
struct Tool {
    name: &'static str,
    command: fn() -> clap::Command,
    main: fn(&Call) -> ExitCode,
}

/// The subcommands, in the order of the help.
const TOOLS: &[Tool] = &[
    Tool { name: "generate", command: generate::command, main: generate::main },
    Tool { name: "predict", command: predict::command, main: predict::main },
    Tool { name: "export", command: export::command, main: export::main },
    Tool { name: "compile", command: compile::command, main: compile::main },
    Tool { name: "inspect", command: inspect::command, main: inspect::main },
    Tool { name: "run", command: run::command, main: run::main },
    Tool { name: "serve", command: serve::command, main: serve::main },
    Tool { name: "doctor", command: doctor::command, main: doctor::main },
    Tool { name: "cache", command: cache::command, main: cache::main },
];

fn main() -> ExitCode {
    // A builder of plans is this program, called in another way.
    if let Some(exit) = v2l_export::trt::builder::serve_if_asked() {
        return exit;
    }
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    let name = Path::new(&name).file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(tool) = name.strip_prefix("v2l-").and_then(tool) {
        return (tool.main)(&Call { name: name.to_owned(), words });
    }
    match words.first().and_then(|first| tool(first.to_str()?)) {
        Some(tool) => (tool.main)(&Call { name: format!("v2l {}", tool.name), words: words[1..].to_vec() }),
        None => without_tool(words),
    }
}

fn tool(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.name == name)
}

/// Help, the version, completions, or what is wrong with the first word.
fn without_tool(words: Vec<OsString>) -> ExitCode {
    let call = Call { name: "v2l".to_owned(), words };
    let mut program = program();
    if let Some(exit) = v2l_cli::describe(&call, &program) {
        return exit;
    }
    match program.try_get_matches_from_mut(&call.words) {
        Err(error) => v2l_cli::help_or_usage(&error),
        // Every subcommand's name is that of a tool, which was dealt with.
        Ok(_) => v2l_cli::Exit::Usage.into(),
    }
}

/// The program with all its subcommands, for help and completions.
fn program() -> clap::Command {
    let tools = TOOLS.iter().map(|tool| (tool.command)().name(tool.name).display_name(format!("v2l-{}", tool.name)));
    clap::Command::new("v2l")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Generate videos with diffusion models and the LoRAs that hypernetworks predict, without Python")
        .no_binary_name(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(tools)
}
