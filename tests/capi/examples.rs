//! The examples, built as their users build them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Language, command, engines, prefix, root, run, run_program, sample, scratch};

/// What `generate.c` is asked for.
const REQUEST: &str = r#"{"prompt": "a red ball", "num_frames": 9, "num_inference_steps": 4}"#;

fn example(name: &str) -> PathBuf {
    root().join("runtime/capi/examples").join(name)
}

#[test]
fn c_example_runs_a_graph_of_an_engine() {
    let program = Language::C99.program(&example("run_engine.c"));
    let engine = engines().join("vae_decoder.engine");
    let printed = run_program(&program, &[engine.to_str().unwrap(), "first", "frames=2", "height=8", "width=12"]);
    assert!(printed.starts_with("vae_decoder: 2 graphs, 0 slots, v2l "), "{printed}");
    assert!(printed.contains("in  z f32\n") && printed.contains("out sample f32 [1, 3, "), "{printed}");
}

#[test]
fn c_example_generates_with_progress_and_stops_when_asked() {
    let program = Language::C99.program(&example("generate.c"));
    let (reference, image) = (sample().join("reference.mp4"), sample().join("image.png"));
    let (video, never) = (scratch().join("c/out.mp4"), scratch().join("c/never.mp4"));
    std::fs::create_dir_all(video.parent().unwrap()).unwrap();
    let arguments = |out: &Path| {
        [engines().as_os_str(), reference.as_os_str(), image.as_os_str(), REQUEST.as_ref(), out.as_os_str()]
            .map(|argument| argument.to_owned())
    };
    let printed = run_program(&program, &arguments(&video));
    assert!(printed.contains("adapter of 21 of 21 slots\nstep 0 of 4\n"), "{printed}");
    assert!(printed.contains("step 4 of 4\n") && video.is_file(), "{printed}");

    let output = command(&program).args(arguments(&never)).arg("1").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{printed}");
    // How many steps it takes until the other thread has asked is not fixed.
    assert!(printed.ends_with("cancelled\n"), "{printed}");
    let left: Vec<_> = std::fs::read_dir(never.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["out.mp4"]);
}

#[test]
fn cpp_example_compares_an_adapter_with_the_base() {
    let program = Language::Cpp17.program(&example("generate.cpp"));
    let (image, adapter) = (sample().join("image.png"), scratch().join("cpp.safetensors"));
    let printed =
        run_program(&program, &[engines().as_os_str(), image.as_os_str(), REQUEST.as_ref(), adapter.as_os_str()]);
    assert!(printed.contains("without it, by 0.00\n") && printed.ends_with("stopped: enough\n"), "{printed}");
    assert!(!printed.contains("changes a value by 0.00"), "{printed}");
    assert!(adapter.is_file());
}

/// Runs `run_engine`, however it was linked, on a graph of the sample.
fn runs_an_engine(program: &Path) {
    let engine = engines().join("vae_decoder.engine");
    let mut command = Command::new(program);
    let printed = run(command.env("LD_LIBRARY_PATH", prefix().join("lib")).arg(engine).arg("first"));
    assert!(printed.contains("out sample f32"), "{printed}");
}

/// The shared libraries that a program wants from the loader.
fn needed(program: &Path) -> String {
    run(Command::new("readelf").arg("-d").arg(program))
}

/// What `pkg-config` says of v2l.
fn pkg_config(question: &[&str]) -> String {
    let mut command = Command::new("pkg-config");
    run(command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(question).arg("v2l >= 0.1"))
}

#[test]
fn program_links_the_way_pkg_config_says() {
    let flags = pkg_config(&["--cflags", "--libs"]);
    let program = scratch().join("pkg-config.bin");
    let mut compiler = Command::new("cc");
    run(compiler.arg(example("run_engine.c")).arg("-o").arg(&program).args(flags.split_whitespace()));
    assert!(needed(&program).contains("[libv2l.so.1]"));
    runs_an_engine(&program);
}

#[test]
fn program_links_with_the_static_library() {
    let flags = pkg_config(&["--static", "--cflags", "--libs"]);
    // With both libraries in one folder, the linker takes the shared one unless it is told the file.
    let archive = prefix().join("lib/libv2l.a");
    let flags = flags.split_whitespace().map(|flag| if flag == "-lv2l" { archive.to_str().unwrap() } else { flag });
    let program = scratch().join("static.bin");
    let mut compiler = Command::new("cc");
    run(compiler.arg(example("run_engine.c")).arg("-o").arg(&program).args(flags));
    assert!(!needed(&program).contains("libv2l"));
    runs_an_engine(&program);
}

#[test]
fn cmake_project_links_with_either_library() {
    let build = scratch().join("cmake");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(root().join("tests/capi/programs/cmake")).arg("-B").arg(&build);
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display()));
    run(configure.arg(format!("-DSOURCE={}", example("run_engine.c").display())));
    run(Command::new("cmake").arg("--build").arg(&build));
    let [shared, fixed] = ["shared", "static"].map(|name| build.join(name));
    assert!(needed(&shared).contains("[libv2l.so.1]") && !needed(&fixed).contains("libv2l"));
    runs_an_engine(&shared);
    runs_an_engine(&fixed);
}

#[test]
fn cmake_refuses_another_major_version() {
    let project = scratch().join("cmake-2");
    std::fs::create_dir_all(&project).unwrap();
    let text = "cmake_minimum_required(VERSION 3.16)\nproject(program C)\nfind_package(v2l 2.0 REQUIRED)\n";
    std::fs::write(project.join("CMakeLists.txt"), text).unwrap();
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&project).arg("-B").arg(project.join("build"));
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display()));
    let output = configure.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("version: 1.0"), "{stderr}");
}
