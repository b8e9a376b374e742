//! What is refused, and in which words, on the real library.

use std::sync::Arc;

use v2l_graphs::{Attribute, Builder, DataType, Dim, Initializer, Location, TensorData, encode_model};
use v2l_openvino::{Borrowed, CompileOptions, Element, Model, OpenVinoError};

use crate::common::{core, f32s, linear, onnx, output, request};

/// A graph that adds an initializer whose data lie at `location`.
fn external(location: &str, offset: u64) -> Vec<u8> {
    let mut builder = Builder::new("external");
    let x = builder.input("x", DataType::Float, [4_usize]);
    let data = TensorData::raw(vec![0; 16]);
    let w = builder.initializer("w", Initializer::weight(DataType::Float, &[4], data));
    let y = builder.op("Add", &[&x, &w]);
    builder.output("y", &y, DataType::Float, [4_usize]);
    let place = |_: &str| Some(Location { file: location.to_owned(), offset, length: 16 });
    encode_model(&builder.finish().unwrap(), &place).unwrap()
}

fn refusal(onnx: &[u8]) -> OpenVinoError {
    let core = core();
    let model = match Model::from_onnx_bytes(&core, onnx) {
        Ok(model) => model,
        Err(error) => return error,
    };
    let compiled = core.compile(&model, &CompileOptions::default());
    compiled.err().unwrap_or_else(|| panic!("the graph was taken"))
}

#[test]
fn graphs_that_name_files_or_addresses_are_refused_before_openvino_sees_them() {
    let secret = Arc::new([1.0_f32, 2.0, 3.0, 4.0]);
    let address = secret.as_ptr().addr() as u64;
    for location in ["*/_ORT_MEM_ADDR_/*", "/etc/passwd", "../weights.bin", "weights.bin"] {
        let error = refusal(&external(location, address));
        assert_eq!(error, OpenVinoError::ExternalData { tensor: "w".into(), place: format!("in `{location}`") });
    }
}

#[test]
fn constants_are_taken_by_name_and_nothing_else_that_lies_outside() {
    let core = core();
    let values = f32s(&[4], &[1.0, 2.0, 3.0, 4.0]);
    let read = |name, constant: &Borrowed, onnx: &[u8]| Model::over_constants(&core, onnx, &[(name, constant.clone())]);
    for location in ["weights.bin", "*/_ORT_MEM_ADDR_/*"] {
        let model = read("w", &values, &external(location, 8)).unwrap_or_else(|error| panic!("{location}: {error}"));
        let mut request = core.compile(&model, &CompileOptions::default()).unwrap().request().unwrap();
        drop(model);
        request.set_input("x", f32s(&[4], &[10.0; 4])).unwrap();
        request.run(&|| false).unwrap();
        assert_eq!(output(&request, "y"), [11.0, 12.0, 13.0, 14.0], "wherever the file says that it lies");
    }
    let absent = read("v", &values, &external("weights.bin", 0)).err().unwrap();
    assert_eq!(absent, OpenVinoError::Refused { reason: "expected a constant `v`, found none".into() });
    // In a body it is another tensor, though it has the name.
    let mut body = Builder::new("body");
    let inner = body.initializer("w", Initializer::weight(DataType::Float, &[4], TensorData::raw(vec![0; 16])));
    let doubled = body.op("Add", &[&inner, &inner]);
    body.output("inside", &doubled, DataType::Float, [4_usize]);
    let body = Attribute::Graph(Box::new(body.finish().unwrap().graph));
    let mut builder = Builder::new("outer");
    let chosen = builder.input("chosen", DataType::Bool, [0_usize; 0]);
    let w = builder.initializer("w", Initializer::weight(DataType::Float, &[4], TensorData::raw(vec![0; 16])));
    let y = builder.node("If", &[&chosen]).attr("then_branch", body.clone()).attr("else_branch", body).out();
    let y = builder.op("Add", &[&y, &w]);
    builder.output("y", &y, DataType::Float, [4_usize]);
    let place = |_: &str| Some(Location { file: "*/_ORT_MEM_ADDR_/*".to_owned(), offset: 8, length: 16 });
    let onnx = encode_model(&builder.finish().unwrap(), &place).unwrap();
    let hidden = read("w", &values, &onnx).err().unwrap();
    assert!(matches!(&hidden, OpenVinoError::ExternalData { tensor, .. } if tensor == "w"), "{hidden}");
}

#[test]
fn bytes_that_are_no_model_and_operators_that_do_not_exist_are_refused() {
    for bytes in [&b""[..], b"<net name='x'/>", b"not a model", &linear(4, 4)[..40]] {
        let error = refusal(bytes);
        assert!(matches!(error, OpenVinoError::Refused { .. }), "{error}");
    }
    let mut builder = Builder::new("unknown");
    let x = builder.input("x", DataType::Float, [4_usize]);
    let y = builder.op("NoSuchOperator", &[&x]);
    builder.output("y", &y, DataType::Float, [4_usize]);
    let error = refusal(&onnx(builder));
    assert!(matches!(&error, OpenVinoError::Refused { reason } if reason.contains("NoSuchOperator")), "{error}");
}

#[test]
fn inputs_that_do_not_fit_are_refused_and_what_was_set_before_stays() {
    let mut request = request(&linear(2, 2), &CompileOptions::default());
    request.set_input("w", f32s(&[2, 2], &[1.0, 0.0, 0.0, 1.0])).unwrap();
    request.set_input("b", f32s(&[2], &[0.0, 0.0])).unwrap();
    let unset = request.run(&|| false).unwrap_err();
    assert!(unset.to_string().contains("no input `x`") && unset.to_string().contains("has not been set"), "{unset}");
    request.set_input("x", f32s(&[1, 2], &[3.0, 4.0])).unwrap();
    let half = Borrowed::new(Element::F16, &[2, 2], Arc::new(vec![0; 8])).unwrap();
    let wrong = [
        ("w", half),
        ("w", f32s(&[2, 3], &[0.0; 6])),
        ("nobody", f32s(&[2], &[0.0; 2])),
        ("y", f32s(&[1, 2], &[0.0; 2])),
    ];
    for (name, tensor) in wrong {
        let error = request.set_input(name, tensor).unwrap_err();
        let expected = format!("the graph has no input `{name}` of this type and shape: ");
        assert!(error.to_string().starts_with(&expected) && error.to_string().len() > expected.len() + 10, "{error}");
    }
    request.run(&|| false).unwrap();
    assert_eq!(output(&request, "y"), [3.0, 4.0]);
    assert!(matches!(request.output("x").err(), Some(OpenVinoError::Port { port: "output", .. })));
    assert!(matches!(request.output("nobody").err(), Some(OpenVinoError::Port { .. })));
    assert!(matches!(request.profile().err(), None | Some(OpenVinoError::Failed { .. })));
}

#[test]
fn shapes_that_do_not_go_together_are_an_error_of_the_run() {
    let mut builder = Builder::new("sum");
    let a = builder.input("a", DataType::Float, [Dim::from("A")]);
    let b = builder.input("b", DataType::Float, [Dim::from("B")]);
    let y = builder.op("Add", &[&a, &b]);
    builder.output("y", &y, DataType::Float, [Dim::from("C")]);
    let mut request = request(&onnx(builder), &CompileOptions::default());
    request.set_input("a", f32s(&[2], &[1.0; 2])).unwrap();
    request.set_input("b", f32s(&[3], &[1.0; 3])).unwrap();
    let error = request.run(&|| false).unwrap_err();
    assert!(matches!(error, OpenVinoError::Failed { action: "runs", .. }), "{error}");
    request.set_input("b", f32s(&[2], &[1.0; 2])).unwrap();
    request.run(&|| false).unwrap();
    assert_eq!(output(&request, "y"), [2.0, 2.0]);
}

#[test]
fn output_that_no_memory_holds_is_too_little_memory_and_the_request_goes_on() {
    let mut builder = Builder::new("large");
    let (x, shape) =
        (builder.input("x", DataType::Float, [1_usize]), builder.input("shape", DataType::Int64, [2_usize]));
    let y = builder.op("Expand", &[&x, &shape]);
    builder.output("y", &y, DataType::Float, ["A", "B"]);
    let mut request = request(&onnx(builder), &CompileOptions::default());
    let extents = |extents: [i64; 2]| {
        let bytes: Vec<u8> = extents.into_iter().flat_map(i64::to_le_bytes).collect();
        Borrowed::new(Element::I64, &[2], Arc::new(bytes)).unwrap()
    };
    request.set_input("x", f32s(&[1], &[1.5])).unwrap();
    // 8 TiB, which this process may not even map.
    #[cfg(target_os = "linux")]
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_AS, 1 << 40, 1 << 40).unwrap();
    request.set_input("shape", extents([1 << 20, 1 << 21])).unwrap();
    let error = request.run(&|| false).unwrap_err();
    assert!(matches!(error, OpenVinoError::OutOfMemory { action: "runs", .. }), "{error}");
    request.set_input("shape", extents([2, 2])).unwrap();
    request.run(&|| false).unwrap();
    assert_eq!(output(&request, "y"), [1.5; 4]);
}

#[test]
fn graph_whose_weights_no_memory_holds_is_too_little_memory_and_others_compile() {
    let mut builder = Builder::new("large");
    let x = builder.input("x", DataType::Float, [1_usize, 1 << 20]);
    // OpenVINO has room of its own for inputs with fixed extents: here 8 TiB.
    let w = builder.input("w", DataType::Float, [1_usize << 20, 1 << 21]);
    let y = builder.op("MatMul", &[&x, &w]);
    builder.output("y", &y, DataType::Float, [1_usize, 1 << 21]);
    #[cfg(target_os = "linux")]
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_AS, 1 << 40, 1 << 40).unwrap();
    let core = core();
    let model = Model::from_onnx_bytes(&core, &onnx(builder)).unwrap();
    let error = core.compile(&model, &CompileOptions::default()).and_then(|compiled| compiled.request()).err();
    assert!(matches!(error, Some(OpenVinoError::OutOfMemory { .. })), "{error:?}");
    let mut request = request(&linear(2, 2), &CompileOptions::default());
    request.set_input("x", f32s(&[1, 2], &[1.0, 2.0])).unwrap();
    request.set_input("w", f32s(&[2, 2], &[1.0; 4])).unwrap();
    request.set_input("b", f32s(&[2], &[1.0; 2])).unwrap();
    request.run(&|| false).unwrap();
    assert_eq!(output(&request, "y"), [4.0, 4.0]);
}
