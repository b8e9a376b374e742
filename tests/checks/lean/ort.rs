//! ONNX Runtime's side of the comparison in `main.rs`: opens a model through its C API, runs it once, says so on stdout, and waits until
//! stdin ends. `ORT_DYLIB_PATH` names the library.
//!
//! ```text
//! lean_ort MODEL.onnx NAME:TYPE:EXTENTxEXTENT...      TYPE: f32, i64; the values are zeros
//! ```

use std::io::Read;

use anyhow::Context;
use ort::session::{Session, SessionInputValue};
use ort::value::Value;

fn zeros(text: &str) -> anyhow::Result<(String, SessionInputValue<'static>)> {
    let mut parts = text.split(':');
    let mut part = || parts.next().with_context(|| format!("`{text}` is no NAME:TYPE:EXTENTS"));
    let (name, dtype, extents) = (part()?, part()?, part()?);
    let shape = extents.split('x').map(str::parse).collect::<Result<Vec<i64>, _>>()?;
    let elements = shape.iter().product::<i64>() as usize;
    let value = if dtype == "i64" {
        Value::from_array((shape, vec![0i64; elements]))?.into_dyn()
    } else {
        Value::from_array((shape, vec![0f32; elements]))?.into_dyn()
    };
    Ok((name.to_owned(), value.into()))
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().context("usage: lean_ort MODEL.onnx NAME:TYPE:EXTENTS...")?;
    let inputs = arguments.map(|text| zeros(&text)).collect::<anyhow::Result<Vec<_>>>()?;
    let environment = ort::init_from(std::env::var("ORT_DYLIB_PATH")?)?.build()?;
    let mut session = Session::builder(&environment)?.commit_from_file(model)?;
    let outputs = session.run(inputs)?;
    println!("ran");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(outputs);
    Ok(())
}
