//! `include/v2l.h` is what cbindgen makes of the sources; `UPDATE_HEADER=1` writes it.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use std::path::Path;

/// Sources with exported items, in the header's order.
const SOURCES: [&str; 14] = [
    "status",
    "version",
    "failure",
    "log",
    "callbacks",
    "tensor",
    "engine",
    "applied",
    "adapter",
    "session",
    "predictor",
    "predict",
    "pipeline",
    "resolve",
];

fn made(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let sources = SOURCES.iter().map(|name| root.join("src").join(name).with_extension("rs"));
    let builder = sources.fold(cbindgen::Builder::new().with_config(config), |builder, path| builder.with_src(path));
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn header_is_what_the_sources_make() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, made) = (root.join("include/v2l.h"), made(root));
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "include/v2l.h is not what the sources make; run with UPDATE_HEADER=1 and look at the change"
    );
}
