//! What the tools have in common: help, JSON events, quiet runs, broken pipes, exit codes.

use std::ffi::OsString;
use std::io::Read;
use std::process::Stdio;

use serde_json::Value as Json;

use crate::tools::{Scratch, TOOLS, args, command, output, run_ok, sample, sample_model};

#[test]
fn help_of_every_tool_is_as_recorded() {
    for tool in TOOLS {
        insta::assert_snapshot!(format!("help_{tool}"), run_ok(tool, &["--help"]).stdout);
    }
}

#[test]
fn version_names_the_tool() {
    for tool in TOOLS {
        assert_eq!(run_ok(tool, &["--version"]).stdout, format!("v2l-{tool} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn wrong_flags_exit_with_2() {
    let scratch = Scratch::new();
    for tool in TOOLS {
        let run = output(command(tool, args![scratch.root(), "--no-such-flag"]));
        assert_eq!(run.code, 2, "{tool}: {}", run.stderr);
    }
    let conflicts: [&[&str]; 5] = [
        &["run", "--engine", "/tmp", "--encode", "a", "--decode", "b", "--outputs", "c", "-o", "d.mp4"],
        &["run", "--engine", "/tmp"],
        &["run", "--engine", "/no/such.engine", "-o", "/tmp/x.mp4"],
        &["export", "/tmp", "-o", "/tmp/x", "--hypernetwork", "a"],
        &["inspect", "/tmp"],
    ];
    for case in conflicts {
        let run = output(command(case[0], &case[1..]));
        assert_eq!(run.code, 2, "{case:?}: {}", run.stderr);
    }
}

/// Every line of `text` as a JSON object with an event name.
#[track_caller]
pub(crate) fn events(text: &str) -> Vec<(String, Json)> {
    text.lines()
        .map(|line| {
            let event: Json = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            (event["event"].as_str().unwrap_or_else(|| panic!("no event: {line}")).to_owned(), event)
        })
        .collect()
}

#[test]
fn json_output_of_every_tool_is_one_event_per_line() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (bundle, engines) = (scratch.path("bundle"), scratch.path("engines"));
    let model = sample_model();
    let reference = model.join("image.png");
    let runs: [(&str, &[OsString], &[&str]); 6] = [
        ("export", args![&model, "-o", &bundle], &["phase", "component", "bundle"]),
        ("compile", args![sample.bundle(), "-o", &engines], &["phase", "engine"]),
        ("inspect", args![sample.engines()], &["pipeline", "component"]),
        ("inspect", args![sample.bundle()], &["pipeline", "model", "slot"]),
        ("inspect", args![sample.engine("transformer"), "--verify-hashes"], &["engine", "graph", "slot", "verified"]),
        (
            "run",
            args!["--engine", sample.engines(), "--reference", reference, "--save-lora", scratch.path("l.safetensors")],
            &["phase", "adapter"],
        ),
    ];
    for (tool, arguments, expected) in runs {
        let run = run_ok(tool, &[arguments, args!["--json"]].concat());
        let found: Vec<String> = events(&run.stdout).into_iter().map(|(name, _)| name).collect();
        for name in expected {
            assert!(found.iter().any(|f| f == name), "{tool}: no `{name}` in {found:?}");
        }
    }
}

#[test]
fn json_output_of_a_failure_ends_with_an_error_event() {
    let scratch = Scratch::new();
    let path = scratch.write("x.onnx", [0xff; 100]);
    for (tool, arguments) in [("inspect", args![&path]), ("compile", args![&path, "-o", scratch.path("x.engine")])] {
        let run = output(command(tool, &[arguments, args!["--json"]].concat()));
        let (name, event) = events(&run.stdout).pop().unwrap();
        assert_eq!((name.as_str(), &event["class"], &event["code"]), ("error", &"bad_model".into(), &3.into()));
        assert_eq!(run.code, 3);
        assert_eq!(format!("error: {}\n", event["message"].as_str().unwrap()), run.stderr);
    }
}

#[test]
fn usage_error_of_the_parser_is_an_event_too() {
    for arguments in [args!["--json", "--no-such-flag"], args!["--json"], args!["--seed", "x", "--json"]] {
        let run = output(command("run", arguments));
        let (name, event) = events(&run.stdout).pop().unwrap();
        assert_eq!(
            (name.as_str(), &event["class"], &event["code"], run.code),
            ("error", &"usage".into(), &2.into(), 2)
        );
        let message = event["message"].as_str().unwrap();
        assert!(run.stderr.starts_with(&format!("error: {message}\n")) && !message.contains("Usage:"), "{message}");
    }
    let run = output(command("run", args!["--no-such-flag", "--", "--json"]));
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
}

#[test]
fn quiet_runs_print_results_only() {
    let (scratch, sample) = (Scratch::new(), sample());
    let reference = sample_model().join("image.png");
    let lora = scratch.path("l.safetensors");
    let run = run_ok("run", args!["--engine", sample.engines(), "--reference", reference, "--save-lora", &lora, "-q"]);
    assert_eq!(scratch.stable(&run.stdout), "[TMP]/l.safetensors: 21 layers, peft");
    assert_eq!(run.stderr, "");
    let run = run_ok("export", args![sample_model(), "-o", scratch.path("b"), "--quiet"]);
    assert_eq!(run.stderr, "");
    // Errors are printed all the same.
    let run = output(command("inspect", args![scratch.path("missing"), "--quiet"]));
    assert!(run.code == 9 && run.stderr.starts_with("error: "), "{}", run.stderr);
}

#[test]
fn reader_that_goes_away_is_no_error() {
    let sample = sample();
    for extra in [&["--json"][..], &[]] {
        let mut command = command("inspect", args![sample.engine("transformer")]);
        command.args(extra).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Closed after the first byte, as `| head -c 1` would.
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        drop(stdout);
        let rest = child.wait_with_output().unwrap();
        assert_eq!(rest.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&rest.stderr), "");
    }
    // A reader that was never there.
    let mut command = command("inspect", args![sample.engines(), "--json"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer).stderr(Stdio::piped());
    let rest = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((rest.status.code(), &*String::from_utf8_lossy(&rest.stderr)), (Some(0), ""));
}
