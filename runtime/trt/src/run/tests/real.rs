//! The library itself, where it is; on a machine without a GPU it loads nothing, and says so.

use std::io::Write;

use super::*;
use crate::Capability;
use crate::builder::{Refit, Request};
use crate::library::{Library, LibraryError};

/// TensorRT-RTX, unless it is not on this machine, which is said past the test harness.
fn runtime() -> Option<Runtime> {
    match Runtime::open(Flavour::Rtx, None) {
        Ok(runtime) => Some(runtime),
        Err(OpenError::Library(error @ LibraryError::Missing { .. })) => {
            // Not `eprintln`, which the harness swallows.
            std::io::stderr().write_all(format!("\nSKIPPED loading a plan: {error}\n").as_bytes()).unwrap();
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A field of a protocol buffer that is bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
}

/// `y = Relu(x)` of one number, in ONNX.
fn relu() -> Vec<u8> {
    // A tensor type: float, with a shape of one extent 1.
    let ty = field(1, &[&[1 << 3, 1][..], &field(2, &field(1, &[1 << 3, 1]))].concat());
    let value = |name: &str| [field(1, name.as_bytes()), field(2, &ty)].concat();
    let node = [field(1, b"x"), field(2, b"y"), field(4, b"Relu")].concat();
    let graph = [field(1, &node), field(2, b"g"), field(11, &value("x")), field(12, &value("y"))].concat();
    // IR version 8, opset 17.
    [&[1 << 3, 8][..], &field(7, &graph), &field(8, &[2 << 3, 17])].concat()
}

#[test]
fn load_of_what_is_no_plan_is_refused() {
    let Some(mut runtime) = runtime() else { return };
    assert_eq!((runtime.version().major, runtime.version().minor), (1, 7));
    let error = runtime.load(b"this is no plan, however long it may be; it has no header").err().unwrap();
    assert!(matches!(error, RunError::NoDevice { .. } | RunError::Refused { .. }), "{error}");
}

#[test]
fn load_of_a_plan_without_a_gpu_says_that_there_is_none() {
    let Some(mut runtime) = runtime() else { return };
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let capabilities = [Capability { major: 8, minor: 9 }];
    let model = relu();
    let request = Request {
        model: &model,
        weights: &[],
        profiles: &[],
        capabilities: &capabilities,
        refit: Refit::None,
        timing_cache: None,
    };
    let plan = Library::open(Flavour::Rtx, None).unwrap().build(&request, &mut |_| true).unwrap().plan;
    let error = runtime.load(&plan).err().unwrap();
    assert!(matches!(error, RunError::NoDevice { .. }), "{error}");
    assert!(error.to_string().starts_with("TensorRT-RTX found no NVIDIA GPU or no driver for it"), "{error}");
    println!("{error}");
}
