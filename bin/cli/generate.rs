//! `--generate KIND`: a command's reference, manual page or completions, from the same description that parses its command line.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, Command};
use clap_complete::Shell;

/// The flag, which stands alone on the command line with what to generate.
const FLAG: &str = "--generate";

/// What `--generate KIND` asks for, if the command line is that: the text, or the kinds that there are.
pub(crate) fn asked(words: &[OsString], command: impl FnOnce() -> Command) -> Option<Result<Vec<u8>, String>> {
    match words {
        [flag, kind] if flag == FLAG => Some(generate(command(), &kind.to_string_lossy())),
        _ => None,
    }
}

fn generate(mut command: Command, kind: &str) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let name = command.get_name().to_owned();
    let mut shell = |shell: Shell| clap_complete::generate(shell, &mut command.clone(), name.clone(), &mut text);
    match kind {
        "bash" => shell(Shell::Bash),
        "fish" => shell(Shell::Fish),
        "zsh" => shell(Shell::Zsh),
        "man" => clap_mangen::Man::new(command).render(&mut text).map_err(|error| error.to_string())?,
        "markdown" => {
            command.build();
            text = markdown(&command, 2).into_bytes();
        }
        _ => return Err(format!("{FLAG} {kind}: expected man, markdown, bash, fish or zsh")),
    }
    Ok(text)
}

/// A command and its subcommands as Markdown, below a heading of this level.
fn markdown(command: &Command, level: usize) -> String {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let mut text = format!("{} {name}\n\n{}\n\n```text\n{usage}\n```\n", "#".repeat(level), lines(&about));
    if let Some(examples) = command.get_before_help() {
        let _ = write!(text, "\n```text\n{}\n```\n", examples.to_string().trim_end());
    }
    let shown = |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let mut headings: Vec<&str> = Vec::new();
    for arg in command.get_arguments().filter(shown) {
        let heading = heading(arg);
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for title in headings {
        let _ = write!(text, "\n**{title}**\n\n");
        for arg in command.get_arguments().filter(shown).filter(|arg| heading(arg) == title) {
            let _ = writeln!(text, "{}", entry(arg));
        }
    }
    for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let _ = write!(text, "\n{}", markdown(subcommand, level + 1));
    }
    text
}

fn heading(arg: &Arg) -> &str {
    arg.get_help_heading().unwrap_or(if arg.is_positional() { "Arguments" } else { "Options" })
}

/// One argument: how it is written, what it does, what it may be, what it is if it is left out.
fn entry(arg: &Arg) -> String {
    let mut names: Vec<String> = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let values = arg.get_value_names().unwrap_or_default();
    let takes = arg.get_action().takes_values();
    let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    let value = |name: &str| if optional { format!("[={name}]") } else { format!(" {name}") };
    let value = if takes { values.iter().map(|name| value(name)).collect() } else { String::new() };
    let written = if names.is_empty() { value.trim().to_owned() } else { names.join(", ") + &value };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = format!("- `{written}`: {}", help.split_whitespace().collect::<Vec<_>>().join(" "));
    if !text.ends_with(['.', ')']) {
        text.push('.');
    }
    for alias in arg.get_visible_aliases().unwrap_or_default() {
        let _ = write!(text, " Also `--{alias}`.");
    }
    let possible = arg.get_possible_values();
    let possible: Vec<_> = possible.iter().filter(|value| !value.is_hide_set()).collect();
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if takes && !defaults.is_empty() {
        let _ = write!(text, " Default: {}.", defaults.join(", "));
    }
    if takes && possible.iter().any(|value| value.get_help().is_some()) {
        for value in possible {
            let help = value.get_help().map(|help| format!(": {}", help.to_string().trim_end_matches('.')));
            let _ = write!(text, "\n  - `{}`{}", value.get_name(), help.unwrap_or_default());
        }
    } else if takes && !possible.is_empty() {
        let names: Vec<_> = possible.iter().map(|value| format!("`{}`", value.get_name())).collect();
        let _ = write!(text, " Values: {}.", names.join(", "));
    }
    text
}

/// One sentence per line.
fn lines(about: &str) -> String {
    let paragraph = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace(". ", ".\n");
    about.split("\n\n").map(paragraph).collect::<Vec<_>>().join("\n\n")
}
