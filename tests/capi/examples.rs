//! The examples, built as their users build them.

use std::process::Command;

use crate::support::{Language, command, engines, prefix, root, run, run_program, sample, scratch};

fn example(name: &str) -> std::path::PathBuf {
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
    let arguments = |out: &std::path::Path| {
        [engines().as_os_str(), reference.as_os_str(), image.as_os_str(), "a red ball".as_ref(), out.as_os_str()]
            .map(|argument| argument.to_owned())
    };
    let printed = run_program(&program, &arguments(&video));
    assert!(printed.contains("adapter of 21 of 21 slots\nstep 0 of 4\n"), "{printed}");
    assert!(printed.contains("step 4 of 4\n") && video.is_file(), "{printed}");

    let output = command(&program).args(arguments(&never)).arg("1").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{printed}");
    assert!(printed.ends_with("cancelled\n") && !printed.contains("step 4 of 4"), "{printed}");
    let left: Vec<_> = std::fs::read_dir(never.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["out.mp4"]);
}

#[test]
fn cpp_example_compares_an_adapter_with_the_base() {
    let program = Language::Cpp17.program(&example("generate.cpp"));
    let (image, adapter) = (sample().join("image.png"), scratch().join("cpp.safetensors"));
    let printed =
        run_program(&program, &[engines().as_os_str(), image.as_os_str(), "a red ball".as_ref(), adapter.as_os_str()]);
    assert!(printed.contains("without it, by 0.00\n") && printed.ends_with("stopped: enough\n"), "{printed}");
    assert!(!printed.contains("changes a value by 0.00"), "{printed}");
    assert!(adapter.is_file());
}

#[test]
fn program_links_the_way_pkg_config_says() {
    let package = prefix().join("lib/pkgconfig");
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.env("PKG_CONFIG_PATH", &package).args(["--cflags", "--libs", "v2l >= 0.1"]);
    let flags = run(&mut pkg_config);
    let program = scratch().join("pkg-config.bin");
    let mut compiler = Command::new("cc");
    compiler.arg(example("run_engine.c")).arg("-o").arg(&program).args(flags.split_whitespace());
    run(&mut compiler);
    let engine = engines().join("vae_decoder.engine");
    run(Command::new(&program).env("LD_LIBRARY_PATH", prefix().join("lib")).arg(engine).arg("first"));
}
