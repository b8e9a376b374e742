//! A field of a request is declared once; what it means is said where it is used, and its flag in the tools. Nothing else names it: a new
//! field touches three files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The field that is looked for, as it would be for a field of tomorrow.
const FIELD: &str = "boundary_ratio";

/// Where requests pass through, from the runtime to every front end.
const ROOMS: &[&str] = &["runtime/src", "runtime/capi", "runtime/serving", "bin"];

/// Where it is declared, used, and given a flag.
const NAMED: [&str; 3] = ["bin/run/request.rs", "runtime/src/models/wan/steps.rs", "runtime/src/request.rs"];

/// Files that have the word for something else.
const OTHER: &[&str] = &[
    // The model's own boundary, a key of pipeline.json.
    "runtime/src/models/wan/config.rs",
    // What an adapter was made for, keys of a file of its own.
    "runtime/src/generator/recipe.rs",
    "runtime/src/lora/adapter/recipe.rs",
    // Made from the declaration, which `runtime/capi/tests/header.rs` checks.
    "runtime/capi/python/v2l/_request.py",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !matches!(name, "tests" | "target" | "__pycache__") {
            files(&path, found);
        } else if path.is_file() && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// The file without the unit tests at its end.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\n").next().unwrap_or(text)
}

#[test]
fn field_of_a_request_stands_in_three_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    ROOMS.iter().for_each(|room| files(&root.join(room), &mut all));
    let named: BTreeSet<String> = all
        .iter()
        .filter(|path| std::fs::read_to_string(path).is_ok_and(|text| without_tests(&text).contains(FIELD)))
        .map(|path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned())
        .collect();
    let found: Vec<&str> = named.iter().map(|path| &path[..]).filter(|path| !OTHER.contains(path)).collect();
    assert_eq!(found, NAMED);
    assert!(OTHER.iter().all(|path| named.contains(*path)), "{named:?}");
}
