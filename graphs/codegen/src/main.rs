//! `cargo run --manifest-path graphs/codegen/Cargo.toml -- ONNX_PROTO` rewrites `graphs/src/onnx.rs`.
//!
//! `ONNX_PROTO` is the `onnx.proto` that the `onnx` package on PyPI carries (1.23.2 was used). No `protoc` is needed.

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: v2l-onnx-codegen ONNX_PROTO")?);
    let folder = proto.parent().ok_or("ONNX_PROTO has no parent folder")?;
    let descriptors = protox::compile([&proto], [folder])?;
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let generated = out.join("generated");
    std::fs::create_dir_all(&generated)?;
    prost_build::Config::new()
        .out_dir(&generated)
        .bytes([".onnx.TensorProto.raw_data"])
        .disable_comments(["."])
        .compile_fds(descriptors)?;
    let text = std::fs::read_to_string(generated.join("onnx.rs"))?;
    std::fs::remove_dir_all(&generated)?;
    std::fs::write(
        out.join("onnx.rs"),
        format!("// Generated from onnx.proto by graphs/codegen; do not edit.\n\n{text}"),
    )?;
    Ok(())
}
