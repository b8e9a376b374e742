//! What the tools load, from where, and what that leaves behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tools::{PROGRAM, Run, Scratch, args, binary, command, output, sample};

/// `v2l-run`, copied to `folder`, on a graph of the sample, with nothing in the environment that names a library.
fn installed(scratch: &Scratch, folder: &str) -> Run {
    installed_with(scratch, folder, &["-o", scratch.path("out.safetensors").to_str().unwrap()])
}

fn installed_with(scratch: &Scratch, folder: &str, more: &[&str]) -> Run {
    let sample = sample();
    std::fs::create_dir_all(scratch.path(folder)).unwrap();
    let program = scratch.path(&format!("{folder}/v2l-run"));
    // By another process: a program that a process of the tests, forked meanwhile, has open for writing cannot be started.
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    assert!(Command::new("cp").arg(binary("run")).arg(&program).status().unwrap().success());
    let latents = scratch.write("latents.safetensors", one_latent());
    let mut command = Command::new(program);
    command.args(["--engine".as_ref(), sample.engines().as_os_str(), "--decode".as_ref(), latents.as_os_str()]);
    command.args(more).stdin(Stdio::null());
    for variable in ["V2L_ORT_LIB", "ORT_DYLIB_PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"] {
        command.env_remove(variable);
    }
    output(command)
}

fn one_latent() -> Vec<u8> {
    let zeros = v2l_runtime::tensor::Tensor::F32(ndarray::ArrayD::zeros(vec![1, 16, 2, 8, 12]));
    let tensors = [("latents".to_owned(), zeros)].into_iter().collect();
    v2l_runtime::io::weights::encode_tensors(&tensors).unwrap()
}

#[test]
fn vendor_above_an_installed_program_is_not_looked_into() {
    let scratch = Scratch::new();
    scratch.write("a/vendor/ort/onnxruntime/capi/libonnxruntime.so", "no library");
    let run = installed(&scratch, "a/usr/bin");
    // The system's loader may have one.
    assert!(!run.stderr.contains("vendor"), "{}", run.stderr);
    assert!(run.code == 0 || run.stderr.contains("ONNX Runtime was not found"), "{}: {}", run.code, run.stderr);
}

#[test]
fn vendor_of_a_checkout_is_looked_into_for_a_program_in_its_target() {
    let scratch = Scratch::new();
    scratch.write("a/vendor/ort/onnxruntime/capi/libonnxruntime.so", "no library");
    scratch.write("a/Cargo.toml", "");
    scratch.write("a/bin/setup", "");
    let run = installed(&scratch, "a/target/debug");
    assert_eq!(run.code, 6, "{}", run.stderr);
    assert!(
        run.stderr.contains("a/vendor/ort/onnxruntime/capi/libonnxruntime.so (from vendor) cannot be loaded"),
        "{}",
        run.stderr
    );
}

#[test]
fn way_to_a_missing_library_is_one_that_the_user_has() {
    let scratch = Scratch::new();
    scratch.write("a/Cargo.toml", "");
    scratch.write("a/bin/setup", "");
    let out = scratch.path("out.safetensors");
    let (nowhere, out) = (scratch.path("nowhere"), out.to_str().unwrap().to_owned());
    let nowhere = nowhere.to_str().unwrap();
    let video = scratch.path("out.mp4");
    for (more, anybody, checkout) in [
        (vec!["-o", &out, "--ort-lib", nowhere], "`pip install onnxruntime` and set V2L_ORT_LIB", "run `bin/setup`"),
        (vec!["-o", video.to_str().unwrap(), "--ffmpeg", nowhere], "`apt install ffmpeg`", "run `bin/setup`"),
    ] {
        for (folder, in_checkout) in [("a/usr/bin", false), ("a/target/debug", true)] {
            let run = installed_with(&scratch, folder, &more);
            assert!(run.code == 6 && run.stderr.contains(anybody), "{}: {}", run.code, run.stderr);
            assert_eq!(run.stderr.contains(checkout), in_checkout, "{}", run.stderr);
            assert!(in_checkout || !run.stderr.contains("bin/"), "{}", run.stderr);
        }
    }
}

#[test]
#[cfg(unix)]
fn library_where_others_may_write_is_passed_over_and_named() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let library = scratch.write("bin/libonnxruntime.so", "no library");
    std::fs::set_permissions(scratch.path("bin"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let run = installed(&scratch, "bin");
    let warning =
        format!("warning: {} is not used: others may write to {}", library.display(), scratch.path("bin").display());
    assert!(run.stderr.contains(&warning), "{}", run.stderr);
    assert!(run.code == 0 || run.stderr.contains("ONNX Runtime was not found"), "{}: {}", run.code, run.stderr);
    std::fs::set_permissions(scratch.path("bin"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = installed(&scratch, "bin");
    assert!(run.code == 6 && run.stderr.contains("cannot be loaded as ONNX Runtime"), "{}: {}", run.code, run.stderr);
}

#[test]
fn tools_hold_no_path_of_the_build() {
    let scratch = Scratch::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).to_str().unwrap();
    let stripped = scratch.path("v2l");
    let strip = Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(PROGRAM).status();
    assert!(strip.is_ok_and(|status| status.success()), "strip does not run, and nothing was checked");
    let bytes = std::fs::read(&stripped).unwrap();
    assert!(!bytes.windows(root.len()).any(|window| window == root.as_bytes()), "v2l holds {root}");
}

#[test]
fn run_of_an_engine_leaves_nothing_of_onnx_runtimes_own() {
    let (scratch, sample) = (Scratch::new(), sample());
    let latents = scratch.write("latents.safetensors", one_latent());
    let target = scratch.path("out.safetensors");
    let mut run = command("run", args!["--engine", sample.engines(), "--decode", latents, "-o", &target]);
    let own: PathBuf = scratch.path("own");
    std::fs::create_dir(&own).unwrap();
    for variable in ["HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
        run.env(variable, &own);
    }
    // Where tests run without people ONNX Runtime keeps to itself.
    for variable in ["ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "TF_BUILD"] {
        run.env_remove(variable);
    }
    run.current_dir(&own);
    let run = output(run);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let left: Vec<_> = std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
