//! Standard streams that cannot be written: the work is done all the same.

use std::ffi::OsString;
use std::fs::File;
use std::process::{Command, Stdio};

use crate::bad_input::generate;
use crate::tools::{Sample, Scratch, args, command, output, sample, sample_model};

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// What takes no byte, as a full disk does.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// Exit code, and what was said on stderr.
fn finish(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Runs that write a video and an adapter, an engine, and a bundle; and what has to be there afterwards.
fn works(sample: &Sample, scratch: &Scratch, number: usize) -> Vec<(Command, Vec<std::path::PathBuf>)> {
    let path = |name: &str| scratch.path(&format!("{number}{name}"));
    let (video, lora, latents) = (path("o.gif"), path("l.safetensors"), path("latents.safetensors"));
    let image = sample_model().join("image.png");
    let run = args!["--reference", image, "--save-lora", &lora, "--outputs", &latents, "-o", &video];
    let onnx = sample.bundle().join("transformer/step.onnx");
    let (engine, bundle) = (path("x.engine"), path("bundle"));
    vec![
        (generate(&sample.engines(), run), vec![video, lora, latents]),
        (command("compile", args![onnx, "-o", &engine]), vec![engine]),
        (command("export", args![sample_model(), "-o", &bundle]), vec![bundle.join("pipeline.json")]),
    ]
}

fn assert_done(scratch: &Scratch, made: &[std::path::PathBuf]) {
    for path in made {
        assert!(path.is_file(), "{} is missing", path.display());
    }
    let hidden = |path: &&std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('.');
    let left: Vec<_> = scratch.listing().into_keys().filter(|path| hidden(&path)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn reader_that_went_away_costs_no_work() {
    let (scratch, sample) = (Scratch::new(), sample());
    for (number, json) in [(0, false), (1, true)] {
        for (mut command, made) in works(&sample, &scratch, number) {
            command.args(json.then_some("--json")).stdout(closed_pipe());
            let (code, stderr) = finish(command);
            assert_eq!(code, Some(0), "{stderr}");
            assert_done(&scratch, &made);
        }
    }
}

#[test]
fn full_stdout_is_an_io_failure_after_the_work() {
    let (scratch, sample) = (Scratch::new(), sample());
    for (number, json) in [(0, false), (1, true)] {
        for (mut command, made) in works(&sample, &scratch, number) {
            command.args(json.then_some("--json")).stdout(full());
            let (code, stderr) = finish(command);
            assert_eq!(code, Some(9), "{stderr}");
            assert!(stderr.contains("error: standard output: No space left on device"), "{stderr}");
            assert_done(&scratch, &made);
        }
    }
    // A failure of the work itself says more.
    let mut failing = command("inspect", args![scratch.path("missing"), "--json"]);
    failing.stdout(full());
    let (code, stderr) = finish(failing);
    assert!(code == Some(9) && stderr.contains("No such file"), "{stderr}");
}

#[test]
fn full_stderr_costs_nothing() {
    let (scratch, sample) = (Scratch::new(), sample());
    for (mut command, made) in works(&sample, &scratch, 0) {
        command.stdout(Stdio::null()).stderr(full());
        assert_eq!(finish(command).0, Some(0));
        assert_done(&scratch, &made);
    }
    let damaged = scratch.write("x.onnx", [0xff; 100]);
    let failures: [(&str, &[OsString], i32); 3] = [
        ("inspect", args![&damaged], 3),
        ("run", args!["--no-such-flag"], 2),
        ("compile", args![&damaged, "-o", scratch.path("x.engine")], 3),
    ];
    for (tool, arguments, expected) in failures {
        for extra in [&[][..], args!["--json"]] {
            let mut failing = command(tool, &[arguments, extra].concat());
            failing.stdout(Stdio::null()).stderr(full());
            assert_eq!(finish(failing).0, Some(expected), "{tool}");
        }
    }
}

#[test]
fn help_goes_where_results_go() {
    for flag in ["--help", "--version"] {
        let on = |stdout: Stdio| {
            let mut help = command("run", args![flag]);
            help.stdout(stdout);
            finish(help)
        };
        assert_eq!(on(closed_pipe()), (Some(0), String::new()));
        let (code, stderr) = on(full());
        assert!(code == Some(9) && stderr.starts_with("error: standard output: "), "{stderr}");
    }
    assert_eq!(output(command("run", args!["--help"])).code, 0);
}
