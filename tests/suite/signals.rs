//! Runs that are interrupted: their exit code, and what they leave.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bad_input::generate;
use crate::tools::{Sample, Scratch, args, command, sample, sample_model};

/// Time that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exit codes of what each signal interrupts.
const SIGNALS: [(&str, i32); 2] = [("INT", 130), ("TERM", 143)];

fn send(signal: &str, child: &Child) {
    let kill = format!("kill -s {signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// The exit code; 1000 and above for a signal, -1 if it takes too long.
fn code(child: &mut Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    -1
}

/// Everything below a folder but what ONNX Runtime keeps of its own.
fn left(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    entries.filter(|name| name != ".ses").collect()
}

/// A video of so many steps, with events.
fn steps(sample: &Sample, number: &str, extra: &[OsString]) -> Command {
    let image = sample_model().join("image.png");
    let size = args!["--num-frames", "5", "--guidance", "1", "--width", "32", "--height", "32", "--json"];
    let run = args!["--engine", sample.engines(), "--image", image, "--steps", number];
    command("run", &[run, size, extra].concat())
}

#[test]
fn interrupted_run_ends_with_its_signals_code_and_leaves_nothing() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (temporary, out) = (scratch.path("tmp"), scratch.path("out"));
    std::fs::create_dir_all(&temporary).unwrap();
    std::fs::create_dir_all(&out).unwrap();
    let reference = sample_model().join("image.png");
    let arguments = args!["--reference", reference, "--prompt", "x", "-o", out.join("o.mp4")];
    // At the first event of each phase, and in the middle of the longest.
    for (signal, expected) in SIGNALS {
        for moment in ["encode reference", "encode text", "encode image", "denoise", "\"done\":7"] {
            let mut command = steps(&sample, "400", arguments);
            command.env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(lines.any(|line| line.contains(moment)), "no {moment}");
            send(signal, &child);
            let rest: Vec<String> = lines.collect();
            assert_eq!(code(&mut child), expected, "{signal} at {moment}: {rest:?}");
            let last = rest.last().cloned().unwrap_or_default();
            assert!(last.contains(&format!("\"class\":\"interrupted\",\"code\":{expected}")), "{last}");
            assert_eq!((left(&temporary), left(&out)), (vec![], vec![]), "{signal} at {moment}");
        }
    }
}

#[test]
fn interrupted_compilation_and_export_leave_nothing() {
    let (scratch, sample) = (Scratch::new(), sample());
    let temporary = scratch.path("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let out = scratch.path("out");
    for (signal, expected) in SIGNALS {
        for component in ["transformer", "vae_decoder"] {
            for tool in ["export", "compile"] {
                std::fs::create_dir_all(&out).unwrap();
                let from = if tool == "export" { sample_model().to_owned() } else { sample.bundle() };
                let mut command = command(tool, args![from, "-o", out.join("a/b"), "--json"]);
                command.env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::null());
                let mut child = command.spawn().unwrap();
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
                assert!(lines.any(|line| line.contains(component)), "no {component}");
                send(signal, &child);
                drop(lines);
                assert_eq!(code(&mut child), expected, "{signal} at {component} of {tool}");
                assert_eq!((left(&temporary), left(&out)), (vec![], vec![]), "{signal} at {component} of {tool}");
            }
        }
    }
}

#[test]
fn interruption_ends_ffmpeg_and_leaves_no_video() {
    let (scratch, sample) = (Scratch::new(), sample());
    // Stands for an ffmpeg that is at work and would write its file again.
    let pid = scratch.path("pid");
    let script = format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}; exec sleep 1000\n", pid.display());
    let ffmpeg = scratch.write("ffmpeg", script);
    std::fs::set_permissions(&ffmpeg, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let out = scratch.path("out");
    std::fs::create_dir_all(&out).unwrap();
    let reads = sample_model().join("reference.mp4");
    for (signal, expected) in SIGNALS {
        let writes = generate(&sample.engines(), args!["-o", out.join("o.mp4"), "--ffmpeg", &ffmpeg]);
        let encodes =
            args!["--engine", sample.engines(), "--encode", &reads, "--outputs", out.join("o"), "--ffmpeg", &ffmpeg];
        for mut command in [writes, command("run", encodes)] {
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let begin = Instant::now();
            while !pid.exists() {
                assert!(begin.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "ffmpeg is not started");
                std::thread::sleep(Duration::from_millis(5));
            }
            send(signal, &child);
            assert_eq!(code(&mut child), expected);
            let number = std::fs::read_to_string(&pid).unwrap();
            assert!(!Path::new("/proc").join(number.trim()).exists(), "ffmpeg lives on");
            std::fs::remove_file(&pid).unwrap();
            assert_eq!(left(&out), Vec::<String>::new());
        }
    }
}

/// What does not come back is ended after a while, and at once by a second signal.
#[test]
fn interruption_ends_a_tool_that_is_stuck() {
    let sample = sample();
    for signals in [&["TERM"][..], &["TERM", "TERM"]] {
        let mut command = command("inspect", args![sample.bundle(), "--json", "--nodes"]);
        // A pipe that is almost full and never read: the tool hangs in the middle of a line.
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&[b'\n'; 60 << 10]).unwrap();
        let mut child = command.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        assert!(child.try_wait().unwrap().is_none(), "the listing fits into a pipe");
        for signal in signals {
            send(signal, &child);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(code(&mut child), 143);
        drop(reader);
    }
}

#[test]
fn hang_up_that_is_ignored_from_the_start_stays_ignored() {
    let (scratch, sample) = (Scratch::new(), sample());
    let video = scratch.path("o.gif");
    let run = steps(&sample, "20", args!["-o", &video]);
    // As `nohup` does.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("denoise")));
    send("HUP", &child);
    drop(lines);
    assert_eq!(code(&mut child), 0);
    assert!(video.is_file());
}
