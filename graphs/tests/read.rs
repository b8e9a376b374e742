//! Hostile and damaged files.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use std::fs;
use std::path::Path;

use bytes::Bytes;
use v2l_graphs::{
    Builder, DataType, Initializer, Location, Model, ReadError, ReadOptions, TensorData, encode_model, read_model,
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn read(path: &Path) -> Result<Model, ReadError> {
    read_model(path, &ReadOptions::default())
}

/// A model over one weight `w` of 16 floats.
fn model() -> Model {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [1usize, 4]);
    let w = b.initializer("w", Initializer::weight(DataType::Float, &[4, 4], TensorData::raw(vec![7; 64])));
    let y = b.op("MatMul", &[&x, &w]);
    b.output("y", &y, DataType::Float, [1usize, 4]);
    b.finish().unwrap()
}

/// Writes the model with its weight said to lie at `file`, and reads it.
fn read_with_location(dir: &Path, file: &str, offset: u64, length: u64) -> Result<Model, ReadError> {
    let at = |_: &str| Some(Location { file: file.to_owned(), offset, length });
    let path = dir.join("m.onnx");
    fs::write(&path, encode_model(&model(), &at).unwrap()).unwrap();
    read(&path)
}

#[test]
fn external_data_beside_the_model_or_below_is_read() {
    let dir = folder();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/w.bin"), [vec![0; 64], vec![9; 64]].concat()).unwrap();
    let model = read_with_location(dir.path(), "sub/w.bin", 64, 64).unwrap();
    let w = &model.graph.initializers["w"];
    assert!(w.external);
    assert_eq!(w.data.to_bytes().unwrap(), vec![9; 64]);
}

#[test]
fn external_data_outside_the_folder_is_refused() {
    let dir = folder();
    let outside = dir.path().join("w.bin");
    fs::write(&outside, [0; 64]).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    for location in ["../w.bin", "sub/../../w.bin", "..", "", outside.to_str().unwrap()] {
        let error = read_with_location(&home, location, 0, 64).unwrap_err();
        assert!(matches!(&error, ReadError::ExternalOutside { tensor, .. } if tensor == "w"), "{location}: {error}");
    }
}

/// ONNX Runtime and OpenVINO take this name for an address in the process's own memory, and not for a file of that name.
#[cfg(unix)]
#[test]
fn external_data_at_an_address_are_refused_even_if_there_is_a_file_of_that_name() {
    let dir = folder();
    let location = "*/_ORT_MEM_ADDR_/*";
    fs::create_dir_all(dir.path().join("*/_ORT_MEM_ADDR_")).unwrap();
    fs::write(dir.path().join(location), [9; 64]).unwrap();
    for location in [location, "./*/_ORT_MEM_ADDR_/*", "*/_ORT_MEM_ADDR_/x", "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*"] {
        let error = read_with_location(dir.path(), location, 0, 64).unwrap_err();
        assert!(matches!(&error, ReadError::ExternalOutside { tensor, .. } if tensor == "w"), "{location}: {error}");
    }
}

#[test]
fn external_data_of_what_is_only_carried_along_are_refused() {
    let dir = folder();
    fs::write(dir.path().join("w.bin"), [0; 64]).unwrap();
    let message = |number: u8, payload: &[u8]| {
        let tag = [(number << 3 | 2) | 0x80, number >> 4];
        [&tag[..], &[u8::try_from(payload.len()).unwrap()], payload].concat()
    };
    let named = |number, name: &str| message(number, name.as_bytes());
    let place = message(13, &[named(1, "location"), named(2, "w.bin")].concat());
    let tensor = [vec![8, 4, 16, 1], named(8, "inner"), place, vec![14 << 3, 1]].concat();
    let sparse = message(1, &tensor);
    // An attribute of the type TENSORS, and one of the type SPARSE_TENSOR.
    let attributes = [
        [named(1, "all"), message(10, &tensor), vec![0xa0, 1, 9]].concat(),
        [named(1, "sparse"), message(22, &sparse), vec![0xa0, 1, 11]].concat(),
    ];
    let mut models = attributes
        .map(|attribute| {
            let node = [named(4, "Custom"), message(5, &attribute)].concat();
            message(7, &message(1, &node))
        })
        .to_vec();
    // A constant in a function.
    let value = [named(1, "value"), message(5, &tensor), vec![0xa0, 1, 4]].concat();
    let constant = [named(2, "c"), named(4, "Constant"), message(5, &value)].concat();
    let function = [named(1, "F"), named(10, "own"), message(7, &constant)].concat();
    models.push([message(7, b""), message(25, &function)].concat());
    for (index, model) in models.iter().enumerate() {
        let path = dir.path().join("m.onnx");
        fs::write(&path, [IR_VERSION, model].concat()).unwrap();
        let error = read(&path).unwrap_err();
        assert!(matches!(&error, ReadError::Unsupported { what, .. } if what.contains("`inner`")), "{index}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn external_data_behind_a_link_out_of_the_folder_is_refused() {
    let dir = folder();
    fs::write(dir.path().join("w.bin"), [0; 64]).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::symlink(dir.path().join("w.bin"), home.join("w.bin")).unwrap();
    std::os::unix::fs::symlink(dir.path(), home.join("up")).unwrap();
    for location in ["w.bin", "up/w.bin"] {
        let error = read_with_location(&home, location, 0, 64).unwrap_err();
        assert!(matches!(error, ReadError::ExternalOutside { .. }), "{location}: {error}");
    }
}

#[test]
fn external_data_missing_truncated_or_of_wrong_length_is_an_error_that_names_tensor_and_file() {
    let dir = folder();
    fs::write(dir.path().join("w.bin"), [0; 63]).unwrap();
    fs::write(dir.path().join("long.bin"), [0; 256]).unwrap();
    let cases = [
        ("absent.bin", 0, 64),
        ("w.bin", 0, 64),
        ("long.bin", 200, 64),
        ("long.bin", u64::MAX, 64),
        ("long.bin", 0, 65),
        ("long.bin", 0, 0),
        (".", 0, 64),
    ];
    for (file, offset, length) in cases {
        let error = read_with_location(dir.path(), file, offset, length).unwrap_err();
        let ReadError::ExternalData { tensor, path, .. } = &error else { panic!("{file} {offset} {length}: {error}") };
        assert_eq!(tensor, "w");
        assert!(path.ends_with(file) || file == ".", "{error}");
    }
}

#[test]
fn missing_model_file_is_an_io_error_that_names_it() {
    let dir = folder();
    let error = read(&dir.path().join("none.onnx")).unwrap_err();
    assert!(matches!(&error, ReadError::Io { path, .. } if path.ends_with("none.onnx")));
}

#[test]
fn empty_and_garbage_and_cut_files_are_errors() {
    let dir = folder();
    let path = dir.path().join("m.onnx");
    let at = |_: &str| Some(Location { file: "w.bin".into(), offset: 0, length: 64 });
    let good = encode_model(&model(), &at).unwrap();
    fs::write(dir.path().join("w.bin"), [0; 64]).unwrap();
    fs::write(&path, b"").unwrap();
    assert!(matches!(read(&path), Err(ReadError::NotOnnx { .. })));
    for garbage in [vec![0xff; 100], b"PK\x03\x04 not a model".to_vec(), vec![0; 1000]] {
        fs::write(&path, garbage).unwrap();
        assert!(matches!(read(&path), Err(ReadError::NotOnnx { .. })));
    }
    for cut in 0..good.len() {
        fs::write(&path, &good[..cut]).unwrap();
        let _ = read(&path);
    }
    for at in 0..good.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= bits;
            fs::write(&path, &bad).unwrap();
            if let Ok(mut model) = read(&path) {
                let _ = v2l_graphs::check::check(&model);
                let _ = v2l_graphs::passes::optimize(&mut model);
            }
        }
    }
}

/// Protobuf by hand: what no writer of ours would write.
mod wire {
    pub(super) fn varint(mut n: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    }

    pub(super) fn number(field: u64, n: i64) -> Vec<u8> {
        [varint(field << 3), varint(n as u64)].concat()
    }

    pub(super) fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
        [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    /// `TensorProto`: dims 1, data_type 2, name 8, raw_data 9.
    pub(super) fn tensor(name: &str, dtype: i64, dims: &[i64], raw: &[u8]) -> Vec<u8> {
        let dims: Vec<u8> = dims.iter().flat_map(|&d| number(1, d)).collect();
        [dims, number(2, dtype), bytes(8, name.as_bytes()), bytes(9, raw)].concat()
    }

    /// `ModelProto` with one graph (7) of initializers (5).
    pub(super) fn model(tensors: &[Vec<u8>]) -> Vec<u8> {
        let graph: Vec<u8> = tensors.iter().flat_map(|t| bytes(5, t)).collect();
        bytes(7, &graph)
    }
}

/// `ModelProto`: ir_version 1.
const IR_VERSION: &[u8] = &[0x08, 8];

fn read_wire(bytes: &[u8]) -> Result<Model, ReadError> {
    let bytes = Bytes::from([IR_VERSION, bytes].concat());
    read_model(Path::new("hostile.onnx"), &ReadOptions { open: &|_| Ok(bytes.clone()) })
}

#[test]
fn negative_and_overflowing_extents_are_refused() {
    for dims in [&[-1i64][..], &[2, i64::MIN], &[i64::MAX, i64::MAX], &[1 << 40, 1 << 40], &[i64::MAX]] {
        let error = read_wire(&wire::model(&[wire::tensor("w", 1, dims, &[])])).unwrap_err();
        assert!(matches!(&error, ReadError::BadTensor { tensor, .. } if tensor == "w"), "{dims:?}: {error}");
    }
}

#[test]
fn bytes_that_do_not_fit_the_shape_are_refused_with_both_counts() {
    let error = read_wire(&wire::model(&[wire::tensor("w", 1, &[3], &[0; 8])])).unwrap_err().to_string();
    assert!(error.contains("`w`") && error.contains("12") && error.contains('8'), "{error}");
}

#[test]
fn unknown_element_type_is_refused_by_number() {
    for number in [0, 8, 14, 99, -5] {
        let error = read_wire(&wire::model(&[wire::tensor("w", number, &[1], &[0; 4])])).unwrap_err();
        assert!(matches!(error, ReadError::UnsupportedType { number: n, .. } if i64::from(n) == number), "{number}");
    }
}

#[test]
fn initializer_defined_twice_is_refused() {
    let tensor = wire::tensor("w", 1, &[1], &[0; 4]);
    let error = read_wire(&wire::model(&[tensor.clone(), tensor])).unwrap_err();
    assert!(matches!(&error, ReadError::BadTensor { tensor, reason } if tensor == "w" && reason.contains("twice")));
}

#[test]
fn deeply_nested_bodies_are_an_error_and_no_stack_overflow() {
    // A body (graph 7 -> node 1 -> attribute 5 -> g 6) in a body, ten thousand deep.
    let mut graph = Vec::new();
    for _ in 0..10_000 {
        let attribute = [wire::bytes(1, b"body"), wire::number(20, 5), wire::bytes(6, &graph)].concat();
        graph = wire::bytes(1, &wire::bytes(5, &attribute));
    }
    assert!(matches!(read_wire(&wire::bytes(7, &graph)), Err(ReadError::NotOnnx { .. })));
}

#[test]
fn large_inline_tensor_is_a_weight_unless_the_model_is_of_v2l() {
    let dir = folder();
    let path = dir.path().join("m.onnx");
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [1usize, 300]);
    let table = b.floats(&[1, 300], &[0.1; 300]);
    let y = b.op("Mul", &[&x, &table]);
    b.output("y", &y, DataType::Float, [1usize, 300]);
    let mut model = b.finish().unwrap();
    for (of_v2l, external) in [(false, true), (true, false)] {
        if of_v2l {
            model.metadata.insert("v2l.component".into(), "transformer".into());
        }
        fs::write(&path, encode_model(&model, &|_| None).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap().graph.initializers[table.name()].external, external);
    }
}
