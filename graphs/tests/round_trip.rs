//! What is written is what is read.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use std::fs;
use std::path::Path;

use v2l_graphs::{
    Attribute, Builder, DataType, Dim, ExternalDataWriter, Initializer, Model, ReadOptions, TensorData, encode_model,
    read_model,
};

fn read(path: &Path) -> Model {
    read_model(path, &ReadOptions::default()).unwrap()
}

/// Two graphs over one weight, the second with a weight of its own, every kind of attribute and a body.
fn models() -> [Model; 2] {
    let build = |name: &str, own: bool| {
        let mut b = Builder::new(name);
        let x = b.input("x", DataType::Float, [Dim::from("batch"), Dim::Fixed(4), Dim::Unknown]);
        let bytes: Vec<u8> = (0..64).collect();
        let shared =
            b.initializer("shared.weight", Initializer::weight(DataType::Float, &[4, 4], TensorData::raw(bytes)));
        let mut y = b.op("MatMul", &[&x, &shared]);
        if own {
            let data = TensorData::raw(vec![5; 24]).transposed(2, 3, 4).converted(DataType::Float, DataType::Bfloat16);
            b.initializer("own.weight", Initializer::weight(DataType::Bfloat16, &[3, 2], data));
            let value = Attribute::Tensor(Initializer::inline(DataType::Int64, &[1], vec![1; 8]));
            let node =
                b.node("Everything", &[&y]).attr("float", 1.5).attr("int", -3).attr("text", "é").attr("value", value);
            y = node.attr("ints", vec![1, -2]).attr("floats", Attribute::Floats(vec![0.5])).out();
            let mut body = Builder::new("body");
            let inner = body.op("Relu", &[&"shared.weight".into()]);
            body.output("inner", &inner, DataType::Float, [4usize, 4]);
            let body = Attribute::Graph(Box::new(body.finish().unwrap().graph));
            y = b.node("If", &[&y]).attr("then_branch", body).out();
        }
        b.output("y", &y, DataType::Float, [Dim::from("batch"), Dim::Fixed(4), Dim::Fixed(4)]);
        let mut model = b.finish().unwrap();
        model.metadata.insert("v2l.slots".into(), "[]".into());
        model.opsets.insert("com.example".into(), 1);
        model
    };
    [build("step", false), build("precompute", true)]
}

fn encode(models: &[Model], data: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let mut writer = ExternalDataWriter::new(data, "weights.bin");
    for model in models {
        for (name, value) in model.graph.initializers.iter().filter(|(_, v)| v.external) {
            if writer.location(name).is_none() {
                writer.append(name, &value.data).unwrap();
            }
        }
    }
    models.iter().map(|m| encode_model(m, &|name| writer.location(name).cloned()).unwrap()).collect()
}

#[test]
fn two_graphs_over_one_data_file_come_back_equal() {
    let dir = tempfile::tempdir().unwrap();
    let models = models();
    let mut data = Vec::new();
    let encoded = encode(&models, &mut data);
    // 64 bytes shared, then 12 of its own, which start at a multiple of 64.
    assert_eq!(data.len(), 76);
    fs::write(dir.path().join("weights.bin"), &data).unwrap();
    let mut back = Vec::new();
    for (model, bytes) in models.iter().zip(&encoded) {
        let path = dir.path().join("m.onnx");
        fs::write(&path, bytes).unwrap();
        let read = read(&path);
        assert_eq!(read.summary(true), model.summary(true));
        assert_eq!(read.metadata, model.metadata);
        for (name, value) in &model.graph.initializers {
            let again = &read.graph.initializers[name];
            assert_eq!((again.dtype, &again.shape, again.external), (value.dtype, &value.shape, value.external));
            assert_eq!(again.data.to_bytes().unwrap(), value.data.to_bytes().unwrap(), "{name}");
        }
        back.push(read);
    }
    let mut data_again = Vec::new();
    assert_eq!(encode(&back, &mut data_again), encoded);
    assert_eq!(data_again, data);
}

#[test]
fn equal_models_give_equal_bytes() {
    let run = || {
        let mut data = Vec::new();
        let encoded = encode(&models(), &mut data);
        (encoded, data)
    };
    assert_eq!(run(), run());
}

#[test]
fn weight_that_was_not_written_is_an_error_that_names_it() {
    let error = encode_model(&models()[0], &|_| None).unwrap_err().to_string();
    assert!(error.contains("`shared.weight`"), "{error}");
}

#[test]
fn weight_written_twice_is_refused() {
    let mut writer = ExternalDataWriter::new(Vec::new(), "weights.bin");
    let data = TensorData::raw(vec![0u8; 4]);
    writer.append("w", &data).unwrap();
    assert_eq!(writer.append("w", &data).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}
