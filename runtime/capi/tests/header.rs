//! `include/v2l.h` is what cbindgen makes of the sources, `python/v2l/_request.py` what a request's fields are; `UPDATE_HEADER=1` writes
//! them.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use std::fmt::Write;
use std::path::Path;

use v2l_runtime::request::Request;
use v2l_runtime::request::fields::Kind;

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
    "job",
];

fn made(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let sources = SOURCES.iter().map(|name| root.join("src").join(name).with_extension("rs"));
    let builder = sources.fold(cbindgen::Builder::new().with_config(config), |builder, path| builder.with_src(path));
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

/// The fields of a request as Python's module has them.
fn request_in_python() -> String {
    let names = |pictures: bool| {
        let inputs = Request::INPUTS.iter().filter(|input| input.is_picture == pictures);
        inputs.map(|input| format!("\"{}\"", input.name)).collect::<Vec<_>>().join(", ")
    };
    let mut text = "\"\"\"What a request may say. Made from runtime/src/request.rs: UPDATE_HEADER=1 cargo test -p v2l-capi --test header\"\"\"\n\n\
                    from __future__ import annotations\n\nfrom typing import Any, Dict, Mapping, Optional, TypedDict\n\n\n\
                    class Request(TypedDict, total=False):\n    \"\"\"A video to make: keywords of :meth:`v2l.Pipeline.generate`.\"\"\"\n\n"
        .to_owned();
    for field in Request::FIELDS.iter().filter(|field| field.name != "prompt") {
        let kind = match field.kind {
            Kind::Text => "str",
            Kind::Integer(_) => "int",
            Kind::Number(..) | Kind::Positive => "float",
            Kind::Numbers => "Mapping[str, float]",
        };
        writeln!(text, "    #: {}\n    {}: Optional[{kind}]", field.about.trim(), field.name).unwrap();
    }
    for input in Request::INPUTS {
        writeln!(text, "    #: {}\n    {}: Any", input.about.trim(), input.name).unwrap();
    }
    text +=
        "\n\n#: Fields of a request, with what a JSON schema says of them.\nFIELDS: Dict[str, Dict[str, Any]] = {\n";
    for (name, schema) in Request::schema()["properties"].as_object().unwrap() {
        writeln!(text, "    \"{name}\": {schema},").unwrap();
    }
    writeln!(text, "}}\n#: What stands beside them: pictures.\nPICTURES = ({})", names(true)).unwrap();
    writeln!(text, "#: And numbers.\nTENSORS = ({})", names(false)).unwrap();
    text
}

#[test]
fn header_and_request_in_python_are_what_the_sources_make() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, made) in [("include/v2l.h", made(root)), ("python/v2l/_request.py", request_in_python())] {
        let path = root.join(file);
        if std::env::var_os("UPDATE_HEADER").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == made,
            "{file} is not what the sources make; run with UPDATE_HEADER=1 and look at the change"
        );
    }
}
