use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value as Json, json};
use v2l_export::Progress;

use crate::{Exit, Failure};

/// Flags that every tool has.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct OutputOptions {
    /// Print one JSON event per line on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results and errors only.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Results on stdout, diagnostics and progress on stderr; with `--json`, one event per line on stdout.
pub struct Output {
    options: OutputOptions,
    bar: ProgressBar,
    /// Why stdout takes no more.
    lost: Option<io::Error>,
    /// Results go to stderr: stdout is an output file.
    stdout_taken: bool,
    /// Results are those of a step on the way to another result.
    is_step: bool,
}

impl Output {
    /// Output as the flags ask for it.
    pub fn new(options: OutputOptions) -> Self {
        if options.json {
            crate::allocator::print_json();
        }
        Self { options, bar: ProgressBar::hidden(), lost: None, stdout_taken: false, is_step: false }
    }

    /// True if events are printed as JSON.
    pub fn is_json(&self) -> bool {
        self.options.json
    }

    /// Prints a line on stdout, unless an earlier one could not be written.
    fn print(&mut self, line: &str) {
        if self.lost.is_none() {
            let print = || {
                let mut stdout = io::stdout().lock();
                writeln!(stdout, "{line}").and_then(|()| stdout.flush())
            };
            self.lost = self.bar.suspend(print).err();
        }
    }

    /// Remembers what became of something else that was printed on stdout.
    pub(crate) fn lost(self, printed: io::Result<()>) -> Self {
        Self { lost: printed.err(), ..self }
    }

    /// Says whether all results could be printed. To a reader that went away nothing is owed.
    pub(crate) fn written(&mut self) -> anyhow::Result<()> {
        match self.lost.take().filter(|error| error.kind() != io::ErrorKind::BrokenPipe) {
            None => Ok(()),
            Some(error) => {
                let message =
                    format!("standard output: {error}; everything else is done, but not all results were printed");
                Err(Failure { exit: Exit::Io, message }.into())
            }
        }
    }

    /// Leaves stdout to an output file; results are printed on stderr.
    pub(crate) fn give_stdout_away(&mut self) {
        self.stdout_taken = true;
    }

    /// Prints a result: `text` for people, or the event `{"event": name, …fields}`.
    pub fn result(&mut self, name: &str, fields: Json, text: impl FnOnce() -> String) {
        if self.options.json {
            self.event(name, fields);
        } else if self.is_step {
            self.note(&text());
        } else if self.stdout_taken {
            self.bar.suspend(|| diagnostic(&text()));
        } else {
            self.print(&text());
        }
    }

    /// Does a step on the way to a result: what it prints as results are notes.
    pub fn step<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.is_step = true;
        let done = work(self);
        self.is_step = false;
        done
    }

    /// Prints a JSON event, and nothing without `--json`.
    pub fn event(&mut self, name: &str, fields: Json) {
        if self.options.json {
            let mut event = json!({ "event": name });
            if let (Some(event), Json::Object(fields)) = (event.as_object_mut(), fields) {
                event.extend(fields);
            }
            self.print(&event.to_string());
        }
    }

    /// A line on stderr, unless `--quiet`.
    pub fn note(&mut self, text: &str) {
        if !self.options.quiet {
            self.bar.suspend(|| diagnostic(text));
        }
    }

    /// A warning on stderr, and as an event.
    pub fn warning(&mut self, text: &str) {
        self.event("warning", json!({ "message": text }));
        self.note(&format!("warning: {text}"));
    }

    /// Starts a progress bar of `total` units; `bytes` chooses how they are shown. Only on a terminal.
    pub fn start(&mut self, phase: &str, total: u64, bytes: bool) {
        self.event("phase", json!({ "phase": phase, "total": total }));
        self.finish();
        if self.options.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let units = if bytes { "{bytes}/{total_bytes} {bytes_per_sec}" } else { "{pos}/{len}" };
        let style = ProgressStyle::with_template(&format!("{{msg:20}} {{wide_bar}} {units} {{eta}}"));
        self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_message(phase.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// Shows the progress of an export or a compilation.
    pub fn follow(&mut self, progress: &Progress<'_>) {
        match progress {
            Progress::Component { name, bytes } => self.start(name, *bytes, true),
            Progress::Checking { name } => self.start(&format!("checking {name}"), 1, false),
            Progress::Building { name, graph, capability } => {
                let gpu = capability.map_or_else(String::new, |capability| format!(" for {capability}"));
                self.start(&format!("building {name} {graph}{gpu}"), 1, false);
            }
            Progress::Phase { name, done, of } => {
                self.bar.set_length((*of).max(1).into());
                self.bar.set_position((*done).into());
                self.bar.set_message((*name).to_owned());
            }
            Progress::WithoutOpenVino { name, graph, reason } => self.warning(&format!(
                "{name}, graph `{graph}`: {reason}; the component is compiled for ONNX Runtime alone"
            )),
            Progress::Calibrating { name } => self.start(&format!("measuring {name}"), 1, false),
            Progress::Written { bytes } => self.progress(*bytes),
        }
    }

    /// Moves the progress bar.
    pub fn progress(&mut self, done: u64) {
        self.bar.set_position(done);
    }

    /// Takes the progress bar away.
    pub fn finish(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }

    /// Reports an error with its exit code.
    pub fn failure(&mut self, error: &anyhow::Error, exit: Exit) {
        self.finish();
        // Errors of v2l tell their whole story; a cause that is quoted already is not repeated.
        let mut message = error.to_string();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        for way_out in crate::exit::flags_for(error).into_iter().chain(crate::exit::way_out(error).map(str::to_owned)) {
            message = format!("{message}; {way_out}");
        }
        self.failure_event(&message, exit);
        diagnostic(&format!("error: {message}"));
    }

    /// The event of a failure; nothing without `--json`.
    pub(crate) fn failure_event(&mut self, message: &str, exit: Exit) {
        self.event("error", json!({ "class": exit.name(), "code": exit as u8, "message": message }));
    }
}

/// A path as events show it: text, in which what is no Unicode is replaced.
pub fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

/// Prints a line on stderr. Where that cannot be written there is nobody to tell.
pub(crate) fn diagnostic(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}
