//! Where outputs go: special files, links, folders with earlier frames; their modes; and that they are looked at before the work.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bad_input::{adapter, generate, latents, refuse};
use crate::tools::{
    RawTensor, Run, Sample, Scratch, args, binary, command, output, run_ok, sample, sample_model, write,
};

const USAGE: i32 = 2;
const IO: i32 = 9;

/// Decodes latents of `frames` latent frames.
fn decode(scratch: &Scratch, sample: &Sample, frames: usize, to: &Path) -> Command {
    let latents = latents(scratch, &[1, 16, frames, 8, 12]);
    command("run", args!["--engine", sample.engines(), "--decode", latents, "-o", to])
}

#[track_caller]
fn succeed(command: Command) -> Run {
    let run = output(command);
    assert_eq!(run.code, 0, "{}", run.stderr);
    run
}

fn pipe(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Inputs of the sample's text encoder.
fn inputs(scratch: &Scratch) -> PathBuf {
    let path = scratch.path("in.safetensors");
    let tokens = RawTensor { dtype: safetensors::Dtype::I64, shape: vec![1, 4], data: vec![0; 32] };
    write(&path, &[("input_ids".to_owned(), tokens)].into(), None);
    path
}

#[test]
fn outputs_go_through_pipes_and_leave_them() {
    let (scratch, sample) = (Scratch::new(), sample());
    let reference = scratch.path("reference.safetensors");
    succeed(decode(&scratch, &sample, 2, &reference));
    for name in ["pipe.safetensors", "pipe.mp4"] {
        let pipe = pipe(&scratch, name);
        let run = decode(&scratch, &sample, 2, &pipe);
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        succeed(run);
        let bytes = reader.join().unwrap();
        if name.ends_with("mp4") {
            assert_eq!(&bytes[4..8], b"ftyp");
        } else {
            assert!(bytes == std::fs::read(&reference).unwrap());
        }
        assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo(), "{name}");
    }
}

#[test]
fn devices_stay_devices_whatever_writes_to_them() {
    let (scratch, sample) = (Scratch::new(), sample());
    let null = |name: &str| {
        let link = scratch.path(name);
        symlink("/dev/null", &link).unwrap();
        link
    };
    succeed(decode(&scratch, &sample, 2, &null("null.mp4")));
    succeed(decode(&scratch, &sample, 2, &null("null.safetensors")));
    let onnx = sample.bundle().join("text_encoder/encode.onnx");
    run_ok("compile", args![onnx, "-o", null("null.engine")]);
    let (engine, inputs) = (sample.engine("text_encoder"), inputs(&scratch));
    run_ok("run", args!["--engine", &engine, "--inputs", &inputs, "--graph", "encode", "--outputs", "/dev/null"]);
    let reference = sample_model().join("image.png");
    let predict = args!["--engine", sample.engines(), "--reference", reference, "--save-lora", null("null")];
    run_ok("run", predict);
    assert!(Path::new("/dev/null").symlink_metadata().unwrap().file_type().is_char_device());
    for name in ["null.mp4", "null.safetensors", "null.engine", "null"] {
        assert!(scratch.path(name).symlink_metadata().unwrap().is_symlink(), "{name}");
    }
    let full = decode(&scratch, &sample, 2, &{
        let link = scratch.path("full.safetensors");
        symlink("/dev/full", &link).unwrap();
        link
    });
    let message = refuse(&scratch, full, IO);
    assert!(message.contains("No space left"), "{message}");
}

#[test]
fn standard_output_holds_the_tensors_and_nothing_else() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (engine, inputs) = (sample.engine("text_encoder"), inputs(&scratch));
    let run = |outputs: &Path, stdout: Stdio| {
        let arguments = args!["--engine", &engine, "--inputs", &inputs, "--graph", "encode", "--outputs", outputs];
        let mut command = command("run", arguments);
        command.stdout(stdout);
        let run = command.output().unwrap();
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        run.stdout
    };
    let file = scratch.path("out.safetensors");
    assert!(String::from_utf8(run(&file, Stdio::piped())).unwrap().contains("last_hidden_state"));
    let expected = std::fs::read(&file).unwrap();
    assert!(run(Path::new("/dev/stdout"), Stdio::piped()) == expected);
    // A file behind it, and the shell's own name for a number.
    let redirected = scratch.path("redirected");
    run(Path::new("/dev/fd/1"), std::fs::File::create(&redirected).unwrap().into());
    assert!(std::fs::read(redirected).unwrap() == expected);
    let events = args!["--engine", engine, "--inputs", inputs, "--outputs", "/dev/stdout", "--json"];
    let both = output(command("run", events));
    assert_eq!(both.code, USAGE, "{}", both.stderr);
}

#[test]
fn links_are_followed_to_files_and_folders() {
    let (scratch, sample) = (Scratch::new(), sample());
    std::fs::create_dir(scratch.path("real")).unwrap();
    symlink("real/out.safetensors", scratch.path("link.safetensors")).unwrap();
    symlink("real/engines", scratch.path("engines")).unwrap();
    succeed(decode(&scratch, &sample, 2, &scratch.path("link.safetensors")));
    // Twice: the first time nothing is there.
    for _ in 0..2 {
        run_ok("compile", args![sample.bundle(), "-o", scratch.path("engines"), "--no-verify"]);
    }
    for name in ["link.safetensors", "engines"] {
        assert!(scratch.path(name).symlink_metadata().unwrap().is_symlink(), "{name}");
    }
    assert!(scratch.path("real/out.safetensors").is_file() && scratch.path("real/engines/pipeline.json").is_file());
}

#[test]
fn frames_of_an_earlier_longer_video_leave_the_folder() {
    let (scratch, sample) = (Scratch::new(), sample());
    let frames = scratch.path("frames");
    let count = || frames.read_dir().unwrap().count();
    succeed(decode(&scratch, &sample, 3, &scratch.path("frames/")));
    let longer = count();
    std::fs::write(frames.join("notes.txt"), "mine").unwrap();
    std::fs::write(frames.join("cover.png"), "mine").unwrap();
    succeed(decode(&scratch, &sample, 2, &frames));
    let shorter = count();
    assert!(shorter < longer, "{shorter} of {longer}");
    assert!(frames.join("notes.txt").is_file() && frames.join("cover.png").is_file());
    assert!(!frames.join(format!("{:05}.png", longer - 1)).exists());
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_any_work() {
    let (scratch, sample) = (Scratch::new(), sample());
    // Without a library nothing could be run: what is refused for the output was not begun.
    let none = scratch.path("none.so");
    let run = |extra: &[OsString]| {
        let mut command = generate(&sample.engines(), args!["--ort-lib", &none]);
        command.args(extra);
        command
    };
    let good = scratch.path("out.safetensors");
    let reference = sample_model().join("image.png");
    for extra in [
        args!["-o", "/proc/out.safetensors"],
        args!["-o", "/proc/out.mp4"],
        args!["-o", "/proc/frames/"],
        args!["-o", &good, "--outputs", "/proc/latents.safetensors"],
        args!["-o", &good, "--contact-sheet", "/proc/sheet.png"],
        args!["-o", &good, "--reference", &reference, "--save-lora", "/proc/lora.safetensors"],
        args!["-o", &good, "--reference", &reference, "--save-lora", "/proc/lora"],
    ] {
        let message = refuse(&scratch, run(extra), IO);
        assert!(message.contains("/proc/") && !message.contains("ONNX Runtime"), "{message}");
    }
    let ffmpeg = scratch.write("ffmpeg", "#!/bin/sh\necho 'Unknown encoder libx264' >&2\nexit 1\n");
    std::fs::set_permissions(&ffmpeg, PermissionsExt::from_mode(0o755)).unwrap();
    let message = refuse(&scratch, run(args!["-o", scratch.path("out.mp4"), "--ffmpeg", ffmpeg]), IO);
    assert!(message.contains("Unknown encoder libx264"), "{message}");
    let broken = scratch.write("broken", "no program");
    let message = refuse(&scratch, run(args!["-o", scratch.path("out.mp4"), "--ffmpeg", broken]), IO);
    assert!(message.contains("cannot start ffmpeg"), "{message}");

    let onnx = sample.bundle().join("text_encoder/encode.onnx");
    let engine = scratch.path("x.engine");
    for extra in [
        args!["-o", "/proc/x.engine"],
        args!["-o", &engine, "--precision", "fp16", "--save-precision-plan", "/proc/plan"],
        args!["-o", &engine, "--precision", "fp16", "--save-calibration", "/proc/ranges"],
        args!["-o", &engine, "--precision", "fp16", "--sensitivity-chart", "/proc/chart.png"],
    ] {
        let mut command = command("compile", args![&onnx, "--json"]);
        command.args(extra);
        let run = output(command);
        assert_eq!(run.code, IO, "{}", run.stderr);
        assert!(run.stderr.contains("/proc/") && !run.stdout.contains("\"phase\""), "{}{}", run.stderr, run.stdout);
    }
}

/// Under another mask than the test's own.
fn masked(tool: &str, arguments: &[OsString]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", "umask 027; exec \"$0\" \"$@\"", binary(tool)]).args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn outputs_keep_to_the_mask_of_the_process() {
    let (scratch, sample) = (Scratch::new(), sample());
    let path = |name: &str| scratch.path(name);
    let latents = latents(&scratch, &[1, 16, 2, 8, 12]);
    for name in ["out.mp4", "out.safetensors", "frames/"] {
        succeed(masked("run", args!["--engine", sample.engines(), "--decode", &latents, "-o", path(name)]));
    }
    succeed(masked("export", args![sample_model(), "-o", path("bundle")]));
    succeed(masked("compile", args![path("bundle"), "-o", path("engines"), "--no-verify"]));
    let reference = sample_model().join("image.png");
    let predict = args!["--engine", sample.engines(), "--reference", reference, "--save-lora", path("lora")];
    succeed(masked("run", predict));
    let folders = ["bundle", "bundle/transformer", "engines", "lora", "frames"];
    let files = [
        "out.mp4",
        "out.safetensors",
        "frames/00000.png",
        "bundle/pipeline.json",
        "bundle/tokenizer.json",
        "bundle/transformer/weights.bin",
        "engines/pipeline.json",
        "engines/tokenizer.json",
        "engines/transformer.engine",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
    ];
    for (names, expected) in [(&folders[..], 0o750), (&files[..], 0o640)] {
        for name in names {
            let mode = std::fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, expected, "{name}: {mode:o}");
        }
    }
}

#[test]
fn graph_whose_name_ends_like_a_variant_with_branches_is_a_graph_of_its_own() {
    let (scratch, sample) = (Scratch::new(), sample());
    let folder = scratch.copy(&sample.bundle().join("text_encoder"), "model");
    for name in ["foo.branch", "foo.branch.branch", "branch"] {
        let onnx = folder.join(format!("{name}.onnx"));
        std::fs::rename(folder.join("encode.onnx"), &onnx).unwrap();
        let (engine, outputs) = (scratch.path("x.engine"), scratch.path("out.safetensors"));
        run_ok("compile", args![&onnx, "-o", &engine]);
        let inputs = inputs(&scratch);
        for extra in [&[][..], &["--graph", name]] {
            let mut command = command("run", args!["--engine", &engine, "--inputs", &inputs, "--outputs", &outputs]);
            command.args(extra);
            let run = succeed(command);
            assert!(run.stdout.contains("last_hidden_state"), "{}", run.stdout);
        }
        std::fs::rename(&onnx, folder.join("encode.onnx")).unwrap();
    }
}

#[test]
fn adapter_and_factors_among_the_inputs_are_not_mixed_in_silence() {
    let (scratch, sample) = (Scratch::new(), sample());
    let bundle = sample.bundle().join("transformer/step.onnx");
    let engine = scratch.path("x.engine");
    run_ok("compile", args![bundle, "-o", &engine, "--lora-rank", "4", "--no-verify"]);
    let lora = adapter(&scratch, "transformer_blocks.0.attn1.to_q", 0.01);
    let path = scratch.path("in.safetensors");
    let factor = RawTensor::f32s(&[1, 8], 0.0);
    write(&path, &[("transformer_blocks.0.attn1.to_q.lora_down".to_owned(), factor)].into(), None);
    for mode in ["branch", "auto"] {
        let arguments = args![
            "--engine",
            &engine,
            "--graph",
            "step.branch",
            "--inputs",
            &path,
            "--outputs",
            scratch.path("out.safetensors"),
            "--lora",
            &lora,
            "--fuse-mode",
            mode,
            "--quiet"
        ];
        let message = refuse(&scratch, command("run", arguments), USAGE);
        assert!(message.contains("lora_down") && message.contains("--lora"), "{message}");
    }
}
