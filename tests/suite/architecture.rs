//! The rules of ARCHITECTURE.md that a build does not enforce by itself: who imports whom, what ships, licences, lints,
//! and where unsafe code is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

use crate::circles::strings;

/// Who may import whom. A crate that is not here may not exist.
const IMPORTS: &[(&str, &[&str])] = &[
    ("v2l", &["v2l-export", "v2l-runtime"]),
    ("v2l-calibration", &["v2l-graphs"]),
    ("v2l-capi", &["v2l-runtime"]),
    ("v2l-cuda", &["v2l-search"]),
    ("v2l-export", &["v2l-calibration", "v2l-graphs", "v2l-runtime", "v2l-trt"]),
    ("v2l-graphs", &["v2l-wire"]),
    ("v2l-openvino", &["v2l-search", "v2l-wire"]),
    ("v2l-runtime", &["v2l-cuda", "v2l-openvino", "v2l-search", "v2l-trt", "v2l-wire"]),
    ("v2l-search", &[]),
    ("v2l-triton", &["v2l-runtime"]),
    ("v2l-trt", &["v2l-search"]),
    ("v2l-wire", &[]),
];

/// The package whose tests may import every crate: it owns the end-to-end tests.
const ROOT: &str = "v2l";

/// What else tests and examples may import: the runtime's documentation examples compile the sample model, the tests of OpenVINO build graphs.
const TEST_IMPORTS: &[(&str, &str)] = &[("v2l-openvino", "v2l-graphs"), ("v2l-runtime", "v2l-export")];

/// Checks, benchmarks and fuzzers: a package that does not ship, and may import every crate.
const CHECKS: &str = "v2l-checks";

/// What may not be among the normal dependencies of `v2l-runtime` and `v2l-capi`, however deep: compile-time code does not ship.
const NOT_SHIPPED: &[&str] = &["clap", "cudarc", "prost", "v2l-calibration", "v2l-export", "v2l-graphs"];

/// The files with unsafe code, all of them: the C ABI, fusion, the memory map, the ONNX Runtime backend's borrowed tensors and bounded
/// memory, CUDA, OpenVINO, TensorRT, Triton, the environment and the memory of the tools.
const UNSAFE_FILES: &[&str] = &[
    "bin/cli/allocator.rs",
    "bin/cli/telemetry.rs",
    "fuzz/targets.rs",
    "runtime/capi/benches/overhead.rs",
    "runtime/capi/src/adapter.rs",
    "runtime/capi/src/applied.rs",
    "runtime/capi/src/callbacks.rs",
    "runtime/capi/src/engine.rs",
    "runtime/capi/src/failure.rs",
    "runtime/capi/src/frames.rs",
    "runtime/capi/src/growing.rs",
    "runtime/capi/src/handles.rs",
    "runtime/capi/src/job.rs",
    "runtime/capi/src/log.rs",
    "runtime/capi/src/pipeline.rs",
    "runtime/capi/src/pointers.rs",
    "runtime/capi/src/predict.rs",
    "runtime/capi/src/predictor.rs",
    "runtime/capi/src/session.rs",
    "runtime/capi/src/tensor.rs",
    "runtime/capi/src/version.rs",
    "runtime/capi/tests/threads.rs",
    "runtime/capi/tests/tiny/mod.rs",
    "runtime/cuda/src/driver.rs",
    "runtime/cuda/src/fuse.rs",
    "runtime/cuda/src/gpu/mod.rs",
    "runtime/cuda/src/gpu/nvrtc.rs",
    "runtime/cuda/src/gpu/stream.rs",
    "runtime/cuda/src/memory.rs",
    "runtime/openvino/src/borrowed.rs",
    "runtime/openvino/src/compiled.rs",
    "runtime/openvino/src/core.rs",
    "runtime/openvino/src/error.rs",
    "runtime/openvino/src/handle.rs",
    "runtime/openvino/src/library.rs",
    "runtime/openvino/src/model.rs",
    "runtime/openvino/src/request.rs",
    "runtime/openvino/tests/openvino/runs.rs",
    "runtime/serving/triton/src/failure.rs",
    "runtime/serving/triton/src/ffi.rs",
    "runtime/serving/triton/src/lib.rs",
    "runtime/serving/triton/src/server.rs",
    "runtime/src/backends/onnxruntime/bounded.rs",
    "runtime/src/backends/onnxruntime/opened_graph.rs",
    "runtime/src/backends/onnxruntime/value.rs",
    "runtime/src/backends/onnxruntime/weighted.rs",
    "runtime/src/backends/tensorrt/device.rs",
    "runtime/src/backends/tensorrt/gpu.rs",
    "runtime/src/backends/tensorrt/plan.rs",
    "runtime/src/backends/tensorrt/stand_in.rs",
    "runtime/src/io/map.rs",
    "runtime/src/lora/fuse/kernel.rs",
    "runtime/src/lora/fuse/lanes.rs",
    "runtime/src/testing/driver.rs",
    "runtime/tests/swap_memory.rs",
    "runtime/trt/src/builder/call.rs",
    "runtime/trt/src/builder/child/wire.rs",
    "runtime/trt/src/builder/events.rs",
    "runtime/trt/src/builder/plan_bytes.rs",
    "runtime/trt/src/ffi.rs",
    "runtime/trt/src/ffi/build.rs",
    "runtime/trt/src/ffi/run.rs",
    "runtime/trt/src/library/opened.rs",
    "runtime/trt/src/messages.rs",
    "runtime/trt/src/run.rs",
    "runtime/trt/src/run/context.rs",
    "runtime/trt/src/run/engine.rs",
    "runtime/trt/src/run/handle.rs",
    "runtime/trt/src/run/refitter.rs",
    "runtime/trt/src/run/tests.rs",
];

/// Split so that this file does not find itself.
const UNSAFE: &str = concat!("un", "safe");

struct Package {
    name: String,
    license: Option<String>,
    manifest: PathBuf,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    /// Only tests, examples and benches see it.
    dev: bool,
    /// It lies in this repository.
    local: bool,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn metadata(arguments: &[&str]) -> Json {
    let text = stdout(cargo().args(["metadata", "--format-version", "1", "--locked", "--offline"]).args(arguments));
    serde_json::from_str(&text).unwrap()
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn members() -> Vec<Package> {
    let dependency =
        |d: &Json| Dependency { name: text(&d["name"]), dev: d["kind"] == "dev", local: d["path"].is_string() };
    let package = |p: &Json| Package {
        name: text(&p["name"]),
        license: p["license"].as_str().map(str::to_owned),
        manifest: text(&p["manifest_path"]).into(),
        dependencies: list(&p["dependencies"]).iter().map(dependency).collect(),
    };
    let members: Vec<Package> = list(&metadata(&["--no-deps"])["packages"]).iter().map(package).collect();
    assert!(members.iter().any(|p| p.name == ROOT), "cargo metadata does not list the root package");
    members
}

/// Every import that [`IMPORTS`] does not allow, in words.
fn forbidden_imports(packages: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages.iter().filter(|package| package.name != CHECKS) {
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!("{} has no place in ARCHITECTURE.md", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let ours = dependency.local || dependency.name.starts_with("v2l");
            let tests = TEST_IMPORTS.contains(&(&*package.name, &*dependency.name));
            let test_only = dependency.dev && (package.name == ROOT || tests);
            if ours && !test_only && !allowed.contains(&dependency.name.as_str()) {
                findings.push(format!("{} may not import {}", package.name, dependency.name));
            }
        }
        let library = package.name != ROOT;
        if library && package.dependencies.iter().any(|d| d.name == "anyhow") {
            findings.push(format!("{} may not import anyhow: libraries return their own errors", package.name));
        }
    }
    findings
}

/// Names of all crates that `package` is built with, itself included, from a resolved dependency graph; build scripts and
/// development dependencies do not count.
fn tree(metadata: &Json, package: &str) -> BTreeSet<String> {
    let names: BTreeMap<&str, &str> =
        list(&metadata["packages"]).iter().filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?))).collect();
    let nodes: BTreeMap<&str, &Json> =
        list(&metadata["resolve"]["nodes"]).iter().filter_map(|n| Some((n["id"].as_str()?, n))).collect();
    let mut open: Vec<&str> = names.iter().filter(|(_, name)| **name == package).map(|(id, _)| *id).collect();
    assert_eq!(open.len(), 1, "{package} is not in the dependency graph");
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            let normal = |d: &&Json| list(&d["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            open.extend(list(&nodes[id]["deps"]).iter().filter(normal).filter_map(|d| d["pkg"].as_str()));
        }
    }
    seen.into_iter().map(|id| names[id].to_owned()).collect()
}

/// True if the manifest has `workspace = true` under `[lints]`.
fn takes_workspace_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line.replace(' ', "") == "workspace=true")
}

/// True if a line of code, comments aside, has the keyword.
fn has_unsafe(source: &str) -> bool {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    source.lines().map(|line| line.split("//").next().unwrap_or_default()).any(|code| {
        code.match_indices(UNSAFE).any(|(at, word)| {
            !part_of_word(code[..at].chars().next_back()) && !part_of_word(code[at + word.len()..].chars().next())
        })
    })
}

/// Rust sources below `folder`, except what is hidden, fetched or built.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if !name.starts_with('.') && !["target", "vendor", "demo"].contains(&&name[..]) {
                sources(&path, found);
            }
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

fn planted(name: &str, dependencies: &[(&str, bool)]) -> Vec<String> {
    let dependencies =
        dependencies.iter().map(|(name, dev)| Dependency { name: (*name).into(), dev: *dev, local: false }).collect();
    forbidden_imports(&[Package { name: name.into(), license: None, manifest: PathBuf::new(), dependencies }])
}

#[test]
fn workspace_imports_follow_the_architecture() {
    let findings = forbidden_imports(&members());
    assert!(findings.is_empty(), "{}; see ARCHITECTURE.md", findings.join("; "));
}

#[test]
fn import_rule_refuses_a_planted_edge() {
    assert_eq!(planted("v2l-runtime", &[("v2l-graphs", false)]), ["v2l-runtime may not import v2l-graphs"]);
    assert_eq!(planted("v2l-runtime", &[("v2l-graphs", true)]), ["v2l-runtime may not import v2l-graphs"]);
    assert_eq!(planted("v2l-graphs", &[("v2l-export", false)]), ["v2l-graphs may not import v2l-export"]);
    assert_eq!(planted("v2l", &[("v2l-graphs", false)]), ["v2l may not import v2l-graphs"]);
    assert_eq!(planted("v2l", &[("v2l-checks", false)]), ["v2l may not import v2l-checks"]);
    assert_eq!(planted("v2l-runtime", &[("v2l-checks", true)]), ["v2l-runtime may not import v2l-checks"]);
    assert_eq!(planted("v2l-server", &[]), ["v2l-server has no place in ARCHITECTURE.md"]);
    assert_eq!(planted("v2l-export", &[("anyhow", false)]).len(), 1);
}

#[test]
fn import_rule_accepts_the_edges_of_the_architecture() {
    assert!(planted("v2l", &[("v2l-export", false), ("v2l-runtime", false), ("anyhow", false)]).is_empty());
    assert!(planted("v2l", &[("v2l-graphs", true)]).is_empty(), "end-to-end tests may import every crate");
    assert!(planted("v2l-checks", &[("v2l-graphs", false), ("v2l-runtime", false), ("anyhow", false)]).is_empty());
    assert!(
        planted("v2l-export", &[("v2l-calibration", false), ("v2l-graphs", false), ("v2l-runtime", false)]).is_empty()
    );
    assert!(planted("v2l-graphs", &[("prost", false)]).is_empty());
}

/// The whole dependency graph. Of other platforms' crates there need not be a copy on this machine.
fn resolved() -> Json {
    let host = stdout(cargo().arg("-vV"));
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo -vV names the host");
    metadata(&["--filter-platform", host])
}

/// `1.92` or `1.92.1` as numbers that compare; absent parts are 0.
fn rust_version(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text.split('.').map(|part| part.parse().expect("a number")).collect();
    parts.resize(3, 0);
    parts
}

/// Packages of a dependency graph that need a newer Rust than `promised`.
fn too_new(metadata: &Json, promised: &str) -> Vec<String> {
    let needs = |p: &Json| {
        let version = p["rust_version"].as_str()?;
        (rust_version(version) > rust_version(promised)).then(|| format!("{} needs Rust {version}", text(&p["name"])))
    };
    list(&metadata["packages"]).iter().filter_map(needs).collect()
}

#[test]
fn no_dependency_needs_a_newer_rust_than_is_promised() {
    let resolved = resolved();
    let ours = list(&resolved["packages"]).iter().find(|p| p["name"] == ROOT).expect("the root package");
    let promised = ours["rust_version"].as_str().expect("Cargo.toml has `rust-version`");
    assert_eq!(too_new(&resolved, promised), [""; 0], "Cargo.toml promises Rust {promised}");
    assert!(!too_new(&resolved, "1.60").is_empty(), "the check above would not see a newer Rust");
}

#[test]
fn runtime_and_capi_are_built_without_compile_time_crates() {
    let resolved = resolved();
    for package in ["v2l-runtime", "v2l-capi"] {
        let shipped = tree(&resolved, package);
        assert!(shipped.contains("ort"), "the dependency graph was not followed");
        let wrong: Vec<_> = NOT_SHIPPED.iter().filter(|name| shipped.contains(**name)).collect();
        assert!(wrong.is_empty(), "{package} is built with {wrong:?}; compile-time code does not ship");
    }
    assert!(tree(&resolved, "v2l-export").contains("prost"), "the check above would not see prost");
}

#[test]
fn every_crate_has_both_licences_and_the_workspace_lints() {
    for package in members() {
        assert_eq!(package.license.as_deref(), Some("MIT OR Apache-2.0"), "{}", package.name);
        let manifest = std::fs::read_to_string(&package.manifest).unwrap();
        assert!(takes_workspace_lints(&manifest), "{}: `[lints] workspace = true` is missing", package.name);
    }
    for file in ["LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(root().join(file).is_file(), "{file} is missing");
    }
    assert!(!takes_workspace_lints("[lints]\n[dependencies]\nworkspace = true\n"));
}

#[test]
fn unsafe_code_is_only_where_the_architecture_says() {
    let mut files = Vec::new();
    sources(root(), &mut files);
    let mut found: Vec<String> = files
        .iter()
        .filter(|path| has_unsafe(&std::fs::read_to_string(path).unwrap()))
        .map(|path| path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/"))
        .collect();
    found.sort();
    assert_eq!(found, UNSAFE_FILES, "the list in this test names every such file, and no other");
}

#[test]
fn unsafe_scan_finds_the_keyword_and_not_its_mention() {
    for code in ["@ { f() }", "pub @ fn f()", "x.map(|x| @{x})", "#[@(no_mangle)]"] {
        assert!(has_unsafe(&code.replace('@', UNSAFE)), "{code}");
    }
    for code in ["// @", "let x = 1; // @ { }", "#[allow(@_code)]", "fn un@()"] {
        assert!(!has_unsafe(&code.replace('@', UNSAFE)), "{code}");
    }
}

/// Errors of the runtime that only ever reach a tool inside another one, whose class is theirs. So do those of backends.
const PASSED_ON: &[&str] = &["CudaError", "MissingSection", "RotaryError", "TilesError", "UnknownFamily", "WrongValue"];

#[test]
fn tools_know_the_class_of_every_error_of_the_runtime() {
    let exit = std::fs::read_to_string(root().join("bin/cli/exit.rs")).unwrap();
    let known: BTreeSet<&str> = exit.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let mut files = Vec::new();
    sources(&root().join("runtime/src"), &mut files);
    let mut classified = 0;
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for name in text.lines().filter_map(|line| line.strip_prefix("impl Classified for ")) {
            let name = name.trim_end_matches(" {").rsplit("::").next().unwrap_or_default();
            let backends = text.contains(&format!("impl BackendFailure for {name} "));
            let found = name != "Error" && !backends && !PASSED_ON.contains(&name);
            assert!(!found || known.contains(name), "{}: bin/cli/exit.rs lacks {name}", path.display());
            classified += 1;
        }
    }
    assert!(classified > 20, "only {classified} errors were found");
}

#[test]
fn tests_that_the_quick_gate_leaves_out_are_there() {
    let suite = root().join("tests/suite");
    let list = std::fs::read_to_string(suite.join("slow.txt")).unwrap();
    let names: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(!names.is_empty());
    for name in names {
        let (module, beginning) = name.split_once("::").unwrap_or_else(|| panic!("{name} names no module"));
        let source = std::fs::read_to_string(suite.join(module).with_extension("rs")).unwrap();
        assert!(source.contains(&format!("#[test]\nfn {beginning}")), "{name} begins no test");
    }
}

#[test]
fn pipeline_names_no_family_of_models() {
    let (mut models, mut pipeline) = (Vec::new(), Vec::new());
    sources(&root().join("runtime/src/models"), &mut models);
    sources(&root().join("runtime/src/pipeline"), &mut pipeline);
    let families: BTreeSet<String> = models
        .iter()
        .filter_map(|path| path.parent()?.strip_prefix(root().join("runtime/src/models")).ok()?.iter().next())
        .map(|folder| folder.to_string_lossy().into_owned())
        .collect();
    assert!(families.contains("cogvideox"), "{families:?}");
    for path in pipeline {
        let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
        let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric()).collect();
        let named: Vec<_> = families.iter().filter(|family| words.contains(family.as_str())).collect();
        assert!(named.is_empty(), "{} names {named:?}; what a family needs goes through `Family`", path.display());
    }
}

/// What a flag may stand behind, in the same string: the program that takes it.
const PROGRAMS: &[&str] = &["v2l-", "cargo ", "bin/setup "];

/// The strings of a source that hold a flag without the program that takes it.
fn bare_flags(source: &str) -> Vec<&str> {
    let bare = |text: &&str| {
        text.match_indices("--").any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + 2..]);
            let begins = !before.ends_with(|c: char| c == '-' || c.is_alphanumeric());
            let flag = begins && after.starts_with(|c: char| c.is_ascii_alphabetic());
            flag && !PROGRAMS.iter().any(|program| before.contains(program))
        })
    };
    strings(source).into_iter().filter(bare).collect()
}

#[test]
fn errors_of_the_runtime_name_options_by_the_words_of_their_reader() {
    let mut files = Vec::new();
    for folder in ["runtime/src", "runtime/trt/src", "runtime/openvino/src"] {
        sources(&root().join(folder), &mut files);
    }
    let in_errors =
        |path: &&PathBuf| !path.ends_with("src/wording.rs") && !path.ends_with("runtime/trt/src/run/tests.rs");
    for path in files.iter().filter(in_errors) {
        let text = std::fs::read_to_string(path).unwrap();
        let found = bare_flags(&text);
        assert!(
            found.is_empty(),
            "{} names flags: {}; take the option's words from runtime/src/wording.rs or v2l-search's, or name the tool with its flag",
            path.display(),
            found.join(", ")
        );
    }
}

#[test]
fn flag_scan_finds_bare_flags_in_strings_alone() {
    let bare = |source| !bare_flags(source).is_empty();
    assert!(bare(r#"f("use `--fuse-mode fuse`")"#) && bare(r#"const FLAG: &str = "--ort-lib";"#));
    assert!(bare(r#"let quote = '"'; "leave --backend out""#));
    assert!(!bare(r#"f("compile with `v2l-compile --lora-rank MAX`")"#));
    assert!(!bare("// use \"--fuse-mode\"\nlet a = b - -c;"));
    assert!(!bare(r#"f("a -- b, ------, x--y")"#));
}
