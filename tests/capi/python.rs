//! The Python module on the installed library.

use std::process::Command;

use crate::support::{engines, prefix, root, run, sample};

/// Python with the module and the NumPy that `bin/setup --tests` fetched; one of its own will do, too.
fn python() -> Command {
    let mut python = Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
    let paths = [root().join("runtime/capi/python"), root().join("vendor/numpy")];
    python.env("PYTHONPATH", std::env::join_paths(paths).unwrap()).env("PYTHONDONTWRITEBYTECODE", "1");
    python.env("V2L_LIBRARY", prefix().join("lib/libv2l.so"));
    python
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
