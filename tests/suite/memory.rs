//! Too little memory: refused with 8, and the way out, before anything is loaded.

use std::ffi::OsString;
use std::process::Command;

use ndarray::{ArrayD, IxDyn};
use serde_json::Value as Json;
use v2l_runtime::io::weights::write_tensors;
use v2l_runtime::tensor::Tensor;

use crate::cli::events;
use crate::tools::{Run, Sample, Scratch, args, binary, command, output, run_ok, sample};

/// A tool that may have this many bytes of address space.
fn limited(bytes: u64, name: &str, args: &[OsString]) -> Run {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v \"$1\"; shift; exec \"$@\"", "sh", &(bytes / 1024).to_string(), binary(name)]);
    command.args(args);
    output(command)
}

/// The fields of the event `memory`.
#[track_caller]
fn estimate(flags: &[&str]) -> Json {
    let sample = sample();
    let mut arguments = args![sample.engines(), "--memory", "--json"].to_vec();
    arguments.extend(flags.iter().map(Into::into));
    let (name, event) = events(&run_ok("inspect", &arguments).stdout).remove(0);
    assert_eq!(name, "memory");
    event
}

fn bytes(flags: &[&str]) -> u64 {
    estimate(flags)["bytes"].as_u64().unwrap()
}

fn phase(event: &Json, name: &str) -> u64 {
    let phases = event["phases"].as_array().unwrap();
    let found = phases.iter().find(|phase| phase["name"] == name).unwrap_or_else(|| panic!("{event}"));
    ["weights", "activations", "data"].iter().map(|part| found[*part].as_u64().unwrap()).sum()
}

#[test]
fn estimate_grows_with_the_video_and_shrinks_with_tiles_and_stored_weights() {
    let of = |width: &str, frames: &str, flags: &[&str]| {
        bytes(&[&["--width", width, "--height", "256", "--num-frames", frames], flags].concat())
    };
    assert!(of("512", "17", &[]) > 3 * of("256", "9", &[]) / 2);
    assert!(of("256", "33", &[]) > of("256", "17", &[]));
    let tiles = |on: &str| {
        let event = estimate(&["--width", "512", "--height", "512", "--num-frames", "17", "--vae-tiling", on]);
        assert_eq!(event["complete"], true, "{event}");
        phase(&event, "decode")
    };
    assert!(tiles("on") < tiles("off"));
    let weights = |how: &str| {
        let event = estimate(&["--ort-weights", how]);
        event["phases"].as_array().unwrap().iter().map(|phase| phase["weights"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(weights("stored"), 0);
    assert!(weights("f32") > 0);
    let sample = sample();
    let text = run_ok("inspect", args![sample.engines(), "--memory", "--width", "256", "--height", "256"]).stdout;
    assert!(text.contains("of 256x256: about ") && text.contains("  denoise: "), "{text}");
}

fn video(sample: &Sample, extra: &[&str], scratch: &Scratch) -> Vec<OsString> {
    let mut arguments =
        args!["--engine", sample.engines(), "--prompt", "a", "--json", "--outputs", scratch.path("x.safetensors")]
            .to_vec();
    arguments.extend(extra.iter().map(Into::into));
    arguments
}

const HUGE: [&str; 8] = ["--width", "8192", "--height", "8192", "--num-frames", "17", "--vae-tiling", "off"];

#[test]
fn video_that_no_machine_can_make_is_refused_before_anything_is_loaded() {
    let scratch = Scratch::new();
    let sample = sample();
    let run = output(command("run", &video(&sample, &HUGE, &scratch)));
    assert_eq!(run.code, 8, "{} {}", run.stdout, run.stderr);
    assert!(run.stderr.contains("not enough memory: this video needs about "), "{}", run.stderr);
    assert!(run.stderr.contains(" are free; try --height "), "{}", run.stderr);
    let said = events(&run.stdout);
    assert!(said.iter().any(|(name, event)| name == "memory" && event["bytes"].as_u64() > event["free"].as_u64()));
    assert!(said.iter().all(|(name, _)| name != "phase"), "{}", run.stdout);
    assert_eq!(scratch.listing().len(), 0);
}

#[test]
fn video_that_does_not_fit_the_address_space_is_refused() {
    let scratch = Scratch::new();
    let limit = 2 << 30;
    let size = ["--width", "1024", "--height", "1024", "--num-frames", "97", "--vae-tiling", "off"];
    let sample = sample();
    let run = limited(limit, "run", &video(&sample, &size, &scratch));
    assert_eq!(run.code, 8, "{} {}", run.stdout, run.stderr);
    assert!(run.stderr.contains("not enough memory: this video needs about "), "{}", run.stderr);
    assert_eq!(scratch.listing().len(), 0);
}

#[test]
fn frames_that_are_too_large_to_encode_are_refused_with_8() {
    let (scratch, sample) = (Scratch::new(), sample());
    let pixels = Tensor::F32(ArrayD::zeros(IxDyn(&[1, 3, 9, 768, 768])));
    let source = scratch.path("pixels.safetensors");
    write_tensors(&source, &[("pixels".to_owned(), pixels)].into_iter().collect(), &Default::default()).unwrap();
    let before = scratch.listing();
    let arguments = args![
        "--engine",
        sample.engines(),
        "--encode",
        &source,
        "--outputs",
        scratch.path("latents"),
        "--vae-tiling",
        "off"
    ];
    let run = limited(800 << 20, "run", arguments);
    assert_eq!(run.code, 8, "{} {}", run.stdout, run.stderr);
    assert!(run.stderr.contains("not enough memory"), "{}", run.stderr);
    assert_eq!(scratch.listing(), before);
}

/// What no estimate covers: the file is read before it is known what it is for.
#[test]
fn memory_that_the_system_refuses_is_no_abort_and_leaves_nothing() {
    let scratch = Scratch::new();
    let tensors = [("x".to_owned(), Tensor::F32(ArrayD::zeros(IxDyn(&[64 << 20]))))].into_iter().collect();
    write_tensors(scratch.path("x.safetensors"), &tensors, &Default::default()).unwrap();
    let sample = sample();
    let engine = sample.engine("transformer");
    let arguments =
        args!["--engine", engine, "--inputs", scratch.path("x.safetensors"), "--outputs", scratch.path("y"), "--json"];
    let files = scratch.listing();
    for megabytes in [128, 256, 400] {
        let run = limited(megabytes << 20, "run", arguments);
        assert_eq!(run.code, 8, "{megabytes}: {}", run.stderr);
        assert!(run.stderr.contains("not enough memory"), "{megabytes}: {}", run.stderr);
        let (name, event) = events(&run.stdout).pop().unwrap();
        assert_eq!((&name[..], &event["class"], &event["code"]), ("error", &"memory".into(), &8.into()));
        assert_eq!(scratch.listing(), files);
    }
}
