//! The header in both languages, and what the shared library exports.

use std::process::Command;

use crate::support::{Language, prefix, root, run, scratch};

/// Compiles a file that includes a header and nothing else.
fn compiles(language: Language, header: &str, name: &str) {
    let source = scratch().join(name);
    std::fs::write(&source, format!("#include \"{header}\"\nint main(void) {{ return 0; }}\n")).unwrap();
    run(language.compiler().args(["-pedantic", "-fsyntax-only"]).arg(source));
}

#[test]
fn header_compiles_as_c99_and_as_cpp17() {
    compiles(Language::C99, "v2l.h", "header.c");
    compiles(Language::Cpp17, "v2l.h", "header.cpp");
    compiles(Language::Cpp17, "v2l.hpp", "wrapper.cpp");
}

#[test]
fn shared_library_exports_what_the_header_declares_and_nothing_else() {
    let library = prefix().join("lib/libv2l.so");
    let printed = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let mut exported: Vec<&str> = printed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let header = std::fs::read_to_string(prefix().join("include/v2l.h")).unwrap();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let code: String = header.lines().filter(|line| !line.trim_start().starts_with(['*', '/'])).collect();
    let mut declared: Vec<&str> = code
        .match_indices("v2l_")
        .map(|(at, _)| &code[at..at + code[at..].find(|c| !is_name(c)).unwrap()])
        .filter(|name| code.contains(&format!("{name}(")) && !name.ends_with("_callback"))
        .collect();
    declared.sort_unstable();
    declared.dedup();
    exported.sort_unstable();
    assert_eq!(exported, declared);
}

#[test]
fn shared_library_has_the_abis_major_version_in_its_name() {
    let library = prefix().join("lib/libv2l.so");
    let printed = run(Command::new("readelf").arg("-d").arg(library));
    assert!(printed.contains("[libv2l.so.1]"), "{printed}");
}

#[test]
fn shared_library_holds_no_path_of_the_build() {
    let stripped = scratch().join("stripped.so");
    run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(prefix().join("lib/libv2l.so")));
    let root = root().to_str().unwrap();
    let bytes = std::fs::read(stripped).unwrap();
    assert!(!bytes.windows(root.len()).any(|window| window == root.as_bytes()), "libv2l.so holds {root}");
}
