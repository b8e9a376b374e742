//! The Python module on the installed library.

use std::process::Command;

use crate::support::{engines, prefix, root, run, sample, scratch};

/// Python with the module and the NumPy that `bin/setup --tests` fetched; one of its own will do, too.
pub(crate) fn python() -> Command {
    let mut python = Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
    let paths = [root().join("runtime/capi/python"), root().join("vendor/numpy")];
    python.env("PYTHONPATH", std::env::join_paths(paths).unwrap()).env("PYTHONDONTWRITEBYTECODE", "1");
    python.env("V2L_LIBRARY", prefix().join("lib/libv2l.so"));
    // Python lies in no checkout's `target/`, and finds nothing in `vendor/` by itself.
    for (variable, folder) in
        [("V2L_ORT_LIB", "vendor/ort/onnxruntime/capi"), ("V2L_FFMPEG", "vendor/ffmpeg/imageio_ffmpeg/binaries")]
    {
        if std::env::var_os(variable).is_none() {
            python.env(variable, root().join(folder));
        }
    }
    python
}

#[test]
fn python_handle_given_up_in_a_callback_is_freed_after_the_call() {
    let other = scratch().join("given-up.engine");
    std::fs::copy(engines().join("transformer.engine"), &other).unwrap();
    let script = root().join("tests/capi/programs/given_up.py");
    let printed = run(python().arg(script).arg(engines()).arg(sample().join("image.png")).arg(&other));
    assert_eq!(printed, "kept in the callback: True\nfreed after the call: True\n");
}

#[test]
fn python_example_generates_with_the_base_and_with_adapters() {
    let numpy = python().args(["-c", "import numpy"]).status();
    assert!(
        numpy.is_ok_and(|status| status.success()),
        "there is no Python with NumPy, and the module was not checked; run bin/setup --tests"
    );
    let example = root().join("runtime/capi/examples/generate.py");
    let printed = run(python().arg(example).arg(engines()).arg(sample().join("image.png")).arg("a red ball"));
    assert!(printed.starts_with("adapter of 21 slots\n(5, 64, 96, 3) half "), "{printed}");
    assert!(printed.ends_with("the base comes back\n"), "{printed}");
}

#[cfg(target_os = "linux")]
#[test]
fn python_opens_paths_of_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let odd = |name: &[u8]| folder.path().join(std::ffi::OsStr::from_bytes(&[b"\xff\xfe ", name].concat()));
    std::fs::copy(engines().join("transformer.engine"), odd(b"x.engine")).unwrap();
    let program = "import pathlib, sys, v2l\n\
                   path = sys.argv[1]\n\
                   print(len(v2l.Engine(path).slots), len(v2l.Engine(pathlib.Path(path)).slots))\n\
                   try: v2l.Engine(path + '.missing')\n\
                   except v2l.Error as error: print(error.status, '\\ufffd' in str(error))\n";
    let printed = run(python().args(["-c", program]).arg(odd(b"x.engine")));
    assert_eq!(printed, "21 21\n9 True\n");
}
