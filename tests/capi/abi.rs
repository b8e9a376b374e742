//! Programs that were compiled against an earlier header run on this library.

use std::process::Command;

use crate::support::{engines, prefix, root, run, run_program, sample, scratch};

/// Headers of published versions; a change of the ABI adds one and takes none away.
const PUBLISHED: [&str; 2] = ["v2l-1.0.h", "v2l-1.1.h"];

/// Compiles a source against a published header, and links it with the library of today.
fn program(header: &str, source: &str) -> std::path::PathBuf {
    let include = scratch().join(header).with_extension("include");
    std::fs::create_dir_all(&include).unwrap();
    std::fs::copy(root().join("runtime/capi/abi").join(header), include.join("v2l.h")).unwrap();
    let program = scratch().join(format!("{header}-{}.bin", source.rsplit('/').next().unwrap()));
    let lib = prefix().join("lib");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c99", "-I"]).arg(&include).arg(root().join(source)).arg("-o").arg(&program);
    compiler.arg("-L").arg(&lib).args(["-lv2l", "-lpthread"]).arg(format!("-Wl,-rpath,{}", lib.display()));
    run(&mut compiler);
    program
}

#[test]
fn programs_of_every_published_header_run_on_this_library() {
    for header in PUBLISHED {
        let engine = engines().join("vae_decoder.engine");
        let printed =
            run_program(&program(header, "runtime/capi/examples/run_engine.c"), &[engine.to_str().unwrap(), "first"]);
        assert!(printed.contains("out sample f32"), "{header}: {printed}");
        let misuse = program(header, "tests/capi/programs/misuse.c");
        let printed = run_program(&misuse, &[engines().as_os_str(), sample().join("image.png").as_os_str()]);
        assert_eq!(printed, "0 failures\n", "{header}");
    }
}

#[test]
fn header_of_this_version_has_everything_of_the_published_ones() {
    let today = std::fs::read_to_string(root().join("runtime/capi/include/v2l.h")).unwrap();
    for header in PUBLISHED {
        let published = std::fs::read_to_string(root().join("runtime/capi/abi").join(header)).unwrap();
        for line in published.lines().filter(|line| line.starts_with("#define V2L_") && !line.contains("V2L_ABI_")) {
            assert!(today.lines().any(|other| other == line), "{header}: `{line}` is gone or has another value");
        }
    }
}
