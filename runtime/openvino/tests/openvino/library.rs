//! Libraries that are missing, too old, or something else. Every case has a process of its own: a process loads one OpenVINO.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use v2l_openvino::{Core, LibraryError, MINIMUM, Model, OpenVinoError};

use crate::common::{core, linear};

/// Names the library of a process that says what becomes of it.
const LIBRARY: &str = "V2L_TEST_OPENVINO";

/// Where [`open`] runs it, it says what becomes of a library; by itself it looks at the one that is found.
#[test]
fn library_opens_and_reads_a_model() {
    let library = env::var_os(LIBRARY);
    let opened = Core::open(library.as_ref().map(Path::new));
    let read = opened.and_then(|core| Model::from_onnx_bytes(&core, &linear(4, 4)));
    let found = read.err().map_or("ok".to_owned(), |error| error.to_string());
    println!("RESULT {found}");
    assert!(library.is_some() || found == "ok", "{found}");
}

/// What becomes of `library` in a process of its own.
fn open(library: &Path) -> String {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "library::library_opens_and_reads_a_model", "--nocapture"]).env(LIBRARY, library);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result = text.lines().find_map(|line| line.split_once("RESULT ").map(|(_, result)| result.to_owned()));
    result.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// OpenVINO's libraries, without those whose names begin with `without`, in a folder of their own.
fn folder(without: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let from = core().found().path.canonicalize().unwrap();
    for entry in fs::read_dir(from.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("lib") && !name.starts_with(without) {
            let to = folder.path().join(name);
            if fs::hard_link(&path, &to).is_err() {
                fs::copy(&path, &to).unwrap();
            }
        }
    }
    folder
}

/// A library of this C source.
fn stand_in(folder: &Path, source: &str) -> PathBuf {
    let (code, library) = (folder.join("stand_in.c"), folder.join("libopenvino_c.so"));
    fs::write(&code, source).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &code]).status().unwrap();
    assert!(status.success());
    library
}

/// The C API of OpenVINO as far as its version goes.
fn of_version(version: &str) -> String {
    format!(
        "struct version {{ const char *build, *description; }};
         int ov_get_openvino_version(struct version *v) {{ v->build = \"{version}\"; v->description = \"\"; return 0; }}
         void ov_version_free(struct version *v) {{ v->build = v->description = 0; }}"
    )
}

#[test]
fn openvino_is_found_and_new_enough() {
    let core = core();
    assert!(core.version() >= MINIMUM, "{}", core.version());
    let capabilities = core.capabilities().unwrap();
    assert!(capabilities.iter().any(|capability| capability == "FP32"), "{capabilities:?}");
    assert!(!core.device_name().unwrap().is_empty());
    // The same again, by its path, too.
    let path = core.found().path.clone();
    assert_eq!(Core::open(Some(&path)).unwrap().found(), core.found());
    let other = folder("nothing");
    let error = Core::open(Some(other.path())).err();
    assert!(matches!(error, Some(OpenVinoError::Library(LibraryError::AlreadyLoaded { .. }))), "{error:?}");
}

#[test]
fn five_libraries_in_a_folder_suffice_and_a_folder_will_do_as_the_library() {
    assert_eq!(open(folder("nothing").path()), "ok");
}

#[test]
fn each_missing_library_is_named_with_the_way_out() {
    let needed = ["libopenvino.so", "libtbb.so", "libopenvino_intel_cpu_plugin", "libopenvino_onnx_frontend"];
    let needed =
        needed.map(|name| if cfg!(target_arch = "aarch64") { name.replace("intel", "arm") } else { name.to_owned() });
    for name in needed {
        let message = open(folder(&name).path());
        assert!(message.contains(&name) && message.contains("pip install openvino"), "without {name}: {message}");
    }
    let message = open(folder("libopenvino_c").path());
    assert!(message.contains("there is no libopenvino_c.so") && message.contains("openvino.library"), "{message}");
}

#[test]
fn older_library_is_refused_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let library = stand_in(folder.path(), &of_version("2025.3.0-19807-44526285f24-releases/2025/3"));
    let expected = format!(
        "{} (from openvino.library) is OpenVINO 2025.3.0; expected 2026.4 or newer: run `bin/setup --openvino`, or `pip install openvino`; or name \
         another with `openvino.library`",
        library.display()
    );
    assert_eq!(open(&library), expected);
    let message = open(&stand_in(folder.path(), &of_version("custom build")));
    assert!(message.contains("is OpenVINO custom build; expected 2026.4 or newer"), "{message}");
    let message = open(&stand_in(folder.path(), &of_version("")));
    assert!(message.contains("is OpenVINO of an unknown version; expected"), "{message}");
}

#[test]
fn library_that_is_something_else_is_refused_with_the_loaders_words() {
    let folder = tempfile::tempdir().unwrap();
    let message = open(&stand_in(folder.path(), "int something_else;"));
    assert!(
        message.contains("cannot be loaded as OpenVINO") && message.contains("ov_get_openvino_version"),
        "{message}"
    );
    let text = folder.path().join("libopenvino_c.so.2641");
    fs::write(&text, "not a library").unwrap();
    let message = open(&text);
    assert!(message.contains("cannot be loaded as OpenVINO") && message.contains("pip install openvino"), "{message}");
    // Of the version, but without the functions.
    let message = open(&stand_in(folder.path(), &of_version("2026.4.1-1")));
    assert!(message.contains("cannot be loaded as OpenVINO") && message.contains("undefined symbol: ov_"), "{message}");
}
