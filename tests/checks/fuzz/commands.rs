//! Random command lines in random surroundings: odd, missing and special files, streams that are closed or full, signals at any
//! moment. Every run of a tool has to end by itself, with a code that docs/cli.md lists and a message that fits it, to do all or
//! nothing, and to leave neither a temporary nor a process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::{Draws, recipes, targets};

/// Longest time that a run may take, and that an interrupted one may take to end.
const PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE_AFTER_SIGNAL: Duration = Duration::from_secs(30);

/// A part of a command line.
#[derive(Clone, Copy)]
enum Argument {
    Word(&'static str),
    /// What is read: a path below the shared folder.
    Input(&'static str),
    /// What is read, with a strength.
    Adapter(&'static str),
    /// What is written: a name.
    Output(&'static str),
}

use Argument::{Adapter, Input, Output, Word};

const SMALL: [Argument; 10] = [
    Word("--num-frames"),
    Word("5"),
    Word("--steps"),
    Word("2"),
    Word("--guidance"),
    Word("1"),
    Word("--width"),
    Word("32"),
    Word("--height"),
    Word("32"),
];

/// Tools and command lines to begin with; `true` adds [`SMALL`].
const COMMANDS: [(&str, &[Argument], bool); 14] = [
    ("export", &[Input("model"), Word("-o"), Output("bundle")], false),
    ("compile", &[Input("bundle/transformer/step.onnx"), Word("-o"), Output("x.engine")], false),
    ("compile", &[Input("bundle"), Word("-o"), Output("new/engines"), Word("--no-verify")], false),
    ("inspect", &[Input("engines")], false),
    ("inspect", &[Input("bundle"), Word("--nodes")], false),
    (
        "inspect",
        &[
            Adapter("lora.safetensors"),
            Word("--engine"),
            Input("engines"),
            Word("--survival"),
            Word("--heat-map"),
            Output("m.png"),
        ],
        false,
    ),
    (
        "run",
        &[Word("--engine"), Input("engines"), Word("--image"), Input("model/image.png"), Word("-o"), Output("o.mp4")],
        true,
    ),
    (
        "run",
        &[
            Word("--engine"),
            Input("engines"),
            Word("--image"),
            Input("model/image.png"),
            Word("--lora"),
            Adapter("lora.safetensors"),
            Word("-o"),
            Output("frames/"),
            Word("--outputs"),
            Output("z.safetensors"),
        ],
        true,
    ),
    (
        "run",
        &[
            Word("--engine"),
            Input("engines"),
            Word("--image"),
            Input("model/image.png"),
            Word("--reference"),
            Input("model/image.png"),
            Word("-o"),
            Output("o.gif"),
            Word("--contact-sheet"),
            Output("sheet.png"),
        ],
        true,
    ),
    (
        "run",
        &[
            Word("--engine"),
            Input("engines"),
            Word("--reference"),
            Input("model/reference.mp4"),
            Word("--save-lora"),
            Output("peft"),
        ],
        false,
    ),
    (
        "run",
        &[
            Word("--engine"),
            Input("engines"),
            Word("--encode"),
            Input("model/reference2.mp4"),
            Word("--outputs"),
            Output("e.safetensors"),
        ],
        false,
    ),
    (
        "run",
        &[
            Word("--engine"),
            Input("engines"),
            Word("--decode"),
            Input("latents.safetensors"),
            Word("-o"),
            Output("d.webm"),
        ],
        false,
    ),
    (
        "run",
        &[
            Word("--engine"),
            Input("engines/transformer.engine"),
            Word("--inputs"),
            Input("recorded/transformer.step.00000.safetensors"),
            Word("--outputs"),
            Output("out.safetensors"),
        ],
        false,
    ),
    ("run", &[Word("--help")], false),
];

/// Arguments that may come besides.
const EXTRAS: [&[&str]; 19] = [
    &["--quiet"],
    &["--json", "-q"],
    &["--verify-hashes"],
    &["--no-such-flag"],
    &["--help"],
    &["--version"],
    &["--steps", "0"],
    &["--seed", "-1"],
    &["--width", "99999999999999999999"],
    &["--fps", "nan"],
    &["--strength", "inf"],
    &["--fuse-mode", "branch"],
    &["--ort-weights", "stored"],
    &["--component", "nothing"],
    &["--ffmpeg", "/no/such/ffmpeg"],
    &["--ffmpeg", "/bin/false"],
    &["--ort-lib", "/no/such/library"],
    &["--explain"],
    &["--"],
];

/// Where a stream leads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stream {
    File,
    ClosedPipe,
    /// A pipe whose reader leaves after so many bytes.
    Head(u64),
    Full,
    Closed,
}

/// What a trial does.
#[derive(Debug)]
struct Trial {
    tool: &'static str,
    arguments: Vec<OsString>,
    outputs: Vec<PathBuf>,
    notes: Notes,
    stdout: Stream,
    stderr: Stream,
    environment: Vec<(&'static str, OsString)>,
    /// After how long, which, and how often.
    signal: Option<(Duration, &'static str, usize)>,
}

/// What is peculiar about a trial's files.
#[derive(Debug, Default)]
struct Notes {
    /// One is a pipe that nobody is at the other end of.
    waits: bool,
    /// Devices among the outputs.
    devices: Vec<PathBuf>,
}

/// What came of it.
struct Outcome {
    status: Option<ExitStatus>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// The signal was sent while the tool ran.
    signalled: bool,
}

/// The folder that all trials read from, and the one that each has for itself.
struct World {
    shared: PathBuf,
    own: PathBuf,
    tools: PathBuf,
}

/// Tries commands for a time; fails at the first that is not as it should be.
pub(crate) fn fuzz(seconds: u64, seed: u64, draws: &mut Draws) -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    let tools = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let world = World { shared: folder.path().join("shared"), own: folder.path().join("own"), tools };
    world.prepare();
    let before = listing(&world.shared);
    let (mut durations, mut codes) = (vec![None; COMMANDS.len()], std::collections::BTreeMap::<i32, u64>::new());
    let (start, mut trials) = (Instant::now(), 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let which = draws.below(COMMANDS.len());
        let duration = *durations[which].get_or_insert_with(|| world.duration(which));
        world.clear();
        let trial = world.draw(draws, which, duration);
        let outcome = world.run(&trial);
        trials += 1;
        let finding = world.judge(&trial, &outcome).err();
        let finding = finding.or_else(|| (listing(&world.shared) != before).then(|| "an input was changed".to_owned()));
        if let Some(finding) = finding {
            let (out, err) = (String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
            println!(
                "commands: trial {trials}: {finding}\n{trial:#?}\nstdout: {out}\nstderr: {err}\n{:?}",
                outcome.status
            );
            return ExitCode::FAILURE;
        }
        *codes.entry(outcome.status.and_then(|status| status.code()).unwrap_or(-1)).or_default() += 1;
    }
    println!("commands: {trials} trials in {seconds} s, none with a finding; exit codes {codes:?}; seed {seed}");
    ExitCode::SUCCESS
}

/// A name that is no Unicode.
fn odd(name: &str) -> OsString {
    OsString::from_vec([b"\xff\xfe =", name.as_bytes()].concat())
}

/// Files below a folder, with their sizes.
fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, metadata) = (entry.path(), entry.path().symlink_metadata());
        if metadata.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
            found.extend(listing(&path));
        }
        found.push((path, metadata.map_or(0, |metadata| if metadata.is_file() { metadata.len() } else { 0 })));
    }
    found.sort();
    found
}

fn ok(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run `cargo build` first"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl World {
    fn tool(&self, name: &str) -> Command {
        Command::new(self.tools.join(format!("v2l-{name}")))
    }

    fn prepare(&self) {
        let path = |name: &str| self.shared.join(name);
        std::fs::create_dir_all(&self.shared).unwrap();
        recipes::copy(&targets::repository().join("tests/fixtures/sample"), &path("model"));
        let model = |name: &str| path("model").join(name);
        let mut export = self.tool("export");
        export.arg(path("model")).arg("-o").arg(path("bundle")).arg("--hypernetwork");
        export.arg(model("hypernetwork.safetensors")).arg("--light-lora");
        ok(export.arg(model("checkpoint-checkpoint-100.safetensors")));
        ok(self.tool("compile").arg(path("bundle")).arg("-o").arg(path("engines")).arg("--no-verify"));
        let mut run = self.tool("run");
        run.arg("--engine").arg(path("engines")).arg("--image").arg(model("image.png")).arg("--reference");
        run.arg(model("image.png")).arg("--save-lora").arg(path("lora.safetensors")).arg("--outputs");
        run.arg(self.shared.join("z.safetensors")).arg("--record-inputs").arg(path("recorded"));
        ok(run.args(SMALL.iter().map(|part| if let Word(word) = part { word } else { "" })));
        // What the decoder was given by the sampler, which is one tensor.
        std::fs::rename(path("z.safetensors"), path("latents.safetensors")).unwrap();
    }

    fn clear(&self) {
        let _ = std::fs::remove_dir_all(&self.own);
        for name in ["out", "tmp", "in"] {
            std::fs::create_dir_all(self.own.join(name)).unwrap();
        }
    }

    /// How long a command takes when nothing is in its way.
    fn duration(&self, which: usize) -> Duration {
        self.clear();
        let (tool, parts, small) = COMMANDS[which];
        let mut command = self.tool(tool);
        for part in parts.iter().chain(SMALL.iter().filter(|_| small)) {
            match part {
                Word(word) => command.arg(word),
                Input(path) | Adapter(path) => command.arg(self.shared.join(path)),
                Output(name) => command.arg(self.own.join("out").join(name)),
            };
        }
        let begin = Instant::now();
        let _ = command.output();
        begin.elapsed()
    }

    fn draw(&self, draws: &mut Draws, which: usize, duration: Duration) -> Trial {
        let (tool, parts, small) = COMMANDS[which];
        let (mut arguments, mut outputs, mut notes) = (Vec::<OsString>::new(), Vec::new(), Notes::default());
        for part in parts.iter().chain(SMALL.iter().filter(|_| small)) {
            match *part {
                _ if draws.below(60) == 0 => {}
                Word(word) => arguments.push(word.into()),
                Input(path) => arguments.push(self.input(draws, path, &mut notes).into()),
                Adapter(path) => {
                    let mut text = self.input(draws, path, &mut notes).into_os_string();
                    text.push(["", "=0.5", "=-1", "=x", "="][[0, 0, 1, 1, 2, 3, 4][draws.below(7)]]);
                    arguments.push(text);
                }
                Output(name) => {
                    let path = self.output(draws, name, &mut notes);
                    arguments.push(path.clone().into());
                    outputs.push(path);
                }
            }
        }
        if draws.below(3) == 0 {
            arguments.push("--json".into());
        } else if draws.below(3) == 0 {
            arguments.extend(EXTRAS[draws.below(EXTRAS.len())].iter().map(OsString::from));
        }
        if draws.below(30) == 0 {
            arguments.push(OsStr::from_bytes(b"\xff").to_owned());
        }
        let stream = |draws: &mut Draws| match draws.below(12) {
            0 => Stream::ClosedPipe,
            1 => Stream::Head(1 + draws.below(2000) as u64),
            2 => Stream::Full,
            3 => Stream::Closed,
            _ => Stream::File,
        };
        let (stdout, stderr) = (stream(draws), stream(draws));
        // What waits for a file that never comes is interrupted.
        let signal = (notes.waits || draws.below(3) == 0).then(|| {
            let moment = duration.mul_f64(draws.below(1100) as f64 / 1000.0);
            (moment, ["INT", "TERM", "HUP"][draws.below(3)], 1 + draws.below(5) / 4)
        });
        Trial { tool, arguments, outputs, notes, stdout, stderr, environment: self.environment(draws), signal }
    }

    /// A path to read, most often of what is expected.
    fn input(&self, draws: &mut Draws, path: &str, notes: &mut Notes) -> PathBuf {
        let good = self.shared.join(path);
        let name = good.file_name().unwrap().to_string_lossy().into_owned();
        let own = self.own.join("in").join(&name);
        match draws.below(40) {
            0..6 => {
                let link = self.own.join("in").join(odd(&name));
                let _ = std::os::unix::fs::symlink(&good, &link);
                link
            }
            6 => own,
            7 => self.own.clone(),
            8 => "/dev/null".into(),
            9 => PathBuf::new(),
            10 => {
                let _ = std::fs::write(&own, (0..draws.below(5000)).map(|_| draws.next() as u8).collect::<Vec<_>>());
                own
            }
            11 if good.is_file() => {
                let bytes = std::fs::read(&good).unwrap();
                let _ = std::fs::write(&own, &bytes[..draws.below(bytes.len())]);
                own
            }
            12 => {
                let _ = Command::new("mkfifo").arg(&own).status();
                notes.waits = true;
                own
            }
            _ => good,
        }
    }

    /// A path to write to, most often a good one.
    fn output(&self, draws: &mut Draws, name: &str, notes: &mut Notes) -> PathBuf {
        let out = self.own.join("out");
        let own = out.join(name);
        let base = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
        match draws.below(24) {
            0..4 => out.join(odd(base)),
            4 => out.join("missing").join(base),
            5 => out.join("n".repeat(300)),
            6 => PathBuf::new(),
            7 => out,
            8 => "/dev/stdout".into(),
            9 if !name.contains('/') => {
                // A device of its own, so that a defect costs the machine nothing.
                let made = Command::new("mknod").arg(&own).args(["c", "1", ["3", "7"][draws.below(2)]]).status();
                notes.devices.extend(made.is_ok_and(|status| status.success()).then(|| own.clone()));
                own
            }
            10 if !name.contains('/') => {
                let _ = Command::new("mkfifo").arg(&own).status();
                notes.waits = true;
                own
            }
            11 if !name.contains('/') => {
                let _ = std::fs::write(&own, "earlier");
                own
            }
            12 if !name.contains('/') => {
                let _ = std::os::unix::fs::symlink(self.own.join("out/target"), &own);
                own
            }
            _ => own,
        }
    }

    fn environment(&self, draws: &mut Draws) -> Vec<(&'static str, OsString)> {
        let tmp = self.own.join("tmp");
        let mut environment = vec![("TMPDIR", tmp.clone().into_os_string())];
        match draws.below(12) {
            0 => {
                let odd = tmp.join(odd("tmp"));
                std::fs::create_dir_all(&odd).unwrap();
                environment[0].1 = odd.into();
            }
            1 => environment[0].1 = tmp.join("missing").into(),
            2 => environment.push(("V2L_FFMPEG", "/bin/false".into())),
            3 => environment.push(("V2L_FFMPEG", odd("ffmpeg"))),
            4 => environment.push(("V2L_ORT_LIB", "/no/such/library".into())),
            5 => environment.push(("V2L_ODD", odd("value"))),
            6 => environment.push(("HOME", odd("home"))),
            7 => environment.push(("COLUMNS", "0".into())),
            8 => environment.push(("LC_ALL", odd("C"))),
            _ => {}
        }
        environment
    }
}

/// The shell's words for a stream that is closed.
fn redirection(number: u8, stream: Stream) -> String {
    if stream == Stream::Closed { format!(" {number}>&-") } else { String::new() }
}

impl World {
    fn stream(&self, stream: Stream, name: &str) -> Stdio {
        match stream {
            Stream::File | Stream::Closed => File::create(self.own.join(name)).unwrap().into(),
            Stream::Full => File::options().write(true).open("/dev/full").unwrap().into(),
            Stream::ClosedPipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.into()
            }
            Stream::Head(bytes) => {
                let (reader, writer) = std::io::pipe().unwrap();
                std::thread::spawn(move || reader.take(bytes).read_to_end(&mut Vec::new()));
                writer.into()
            }
        }
    }

    fn run(&self, trial: &Trial) -> Outcome {
        let mut command = Command::new("env");
        // As if it had been started by hand, whatever the fuzzer was started by.
        command.args(["--default-signal=INT,TERM,HUP", "sh", "-c"]);
        let streams = redirection(1, trial.stdout) + &redirection(2, trial.stderr);
        command.arg(format!("exec \"$0\" \"$@\"{streams}")).arg(self.tools.join(format!("v2l-{}", trial.tool)));
        command.args(&trial.arguments).stdin(Stdio::null()).current_dir(self.own.join("out"));
        command.envs(trial.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(self.stream(trial.stdout, "stdout")).stderr(self.stream(trial.stderr, "stderr"));
        let mut child = command.spawn().unwrap();
        drop(command);
        let (begin, mut signalled) = (Instant::now(), false);
        let mut status = None;
        if let Some((moment, signal, times)) = trial.signal {
            status = wait(&mut child, begin, moment);
            for _ in 0..if status.is_none() { times } else { 0 } {
                // Not there any more, perhaps.
                let kill = format!("kill -s {signal} {} 2>/dev/null", child.id());
                signalled |= Command::new("sh").args(["-c", &kill]).status().unwrap().success();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let patience = if signalled { PATIENCE_AFTER_SIGNAL } else { PATIENCE };
        let status = status.or_else(|| wait(&mut child, Instant::now(), patience));
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let read = |name: &str| std::fs::read(self.own.join(name)).unwrap_or_default();
        Outcome { status, stdout: read("stdout"), stderr: read("stderr"), signalled }
    }

    /// What is wrong, if something is.
    fn judge(&self, trial: &Trial, outcome: &Outcome) -> Result<(), String> {
        let status = outcome.status.ok_or("it did not end")?;
        let signal = trial.signal.filter(|_| outcome.signalled).map(|(_, signal, _)| match signal {
            "HUP" => 1,
            "INT" => 2,
            _ => 15,
        });
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            // It came before the tool's first instruction.
            (None, Some(died)) if Some(died) == signal && hardly_begun(trial, outcome) => 128 + died,
            (None, died) => return Err(format!("it died of signal {died:?}")),
        };
        if !matches!(code, 0 | 2..=9) && signal.map(|signal| 128 + signal) != Some(code) {
            return Err(format!("exit code {code}"));
        }
        self.judge_words(trial, outcome, code)?;
        self.judge_files(trial, code)?;
        self.judge_processes()
    }

    fn judge_words(&self, trial: &Trial, outcome: &Outcome, code: i32) -> Result<(), String> {
        let said = std::str::from_utf8(&outcome.stderr).map_err(|_| "stderr is no UTF-8")?;
        if said.contains("panicked at") {
            return Err("it panicked".into());
        }
        let failed = matches!(code, 2..=9);
        if trial.stderr == Stream::File && failed != said.lines().any(|line| line.starts_with("error: ")) && code < 128
        {
            return Err(format!("exit code {code} does not fit what was said"));
        }
        if trial.stdout == Stream::Full && code == 0 {
            return Err("results were lost, and nobody was told".into());
        }
        let mixed = trial.arguments.iter().any(|argument| argument == "/dev/stdout");
        let json = trial.arguments.iter().any(|argument| argument == "--json");
        // Usage errors of the command line's parser, help and versions are text.
        let parsed = !said.contains("Usage: ") && !said.contains("For more information");
        let text = trial.arguments.iter().any(|argument| argument == "--help" || argument == "--version");
        if trial.stdout != Stream::File || trial.stderr != Stream::File || mixed || !json || !parsed || text {
            return Ok(());
        }
        let events: Vec<Json> = String::from_utf8_lossy(&outcome.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).map_err(|e| format!("{e}: {line}")))
            .collect::<Result<_, _>>()?;
        let last = events.last().filter(|event| event["event"] == "error");
        match last {
            Some(event) if event["code"] != code => Err(format!("exit code {code}, but the last event is {event}")),
            None if failed => Err(format!("exit code {code} without an event")),
            _ => Ok(()),
        }
    }

    fn judge_files(&self, trial: &Trial, code: i32) -> Result<(), String> {
        for (path, _) in listing(&self.own) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ends = [".partial", ".part", ".removed", ".replaced"];
            let temporary = ends.iter().any(|end| name.ends_with(end)) || name.starts_with("v2l-");
            // ONNX Runtime's own.
            let below = path.starts_with(self.own.join("tmp")) && !path.is_dir() && name != ".ses";
            if temporary || below {
                return Err(format!("{} was left", path.display()));
            }
        }
        let shown = trial.arguments.iter().any(|argument| argument == "--help" || argument == "--version");
        for output in &trial.outputs {
            // It would be read from what the tool was started in.
            let place = self.own.join("out").join(output);
            if code == 0 && !shown && !place.exists() {
                return Err(format!("exit code 0, but {} is not there", output.display()));
            }
        }
        let is_device = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.file_type().is_char_device());
        if let Some(replaced) = trial.notes.devices.iter().find(|path| !is_device(path)) {
            return Err(format!("the device {} was replaced", replaced.display()));
        }
        Ok(())
    }

    /// Processes whose temporaries would lie in this trial's folder.
    fn judge_processes(&self) -> Result<(), String> {
        let folder = self.own.as_os_str().as_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.windows(folder.len()).any(|part| part == folder) {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                return Err(format!("a process lives on: {}", String::from_utf8_lossy(&line)));
            }
        }
        Ok(())
    }
}

/// True for a run that can hardly have begun when its signal came.
fn hardly_begun(trial: &Trial, outcome: &Outcome) -> bool {
    let silent = outcome.stdout.is_empty() && outcome.stderr.is_empty();
    silent && trial.signal.is_some_and(|(moment, ..)| moment < Duration::from_secs(1))
}

/// How the child ended, if it did in time.
fn wait(child: &mut Child, begin: Instant, patience: Duration) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if begin.elapsed() >= patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
