use std::path::{Path, PathBuf};

use v2l_graphs::passes::Passes;
use v2l_graphs::{Builder, DataType, Initializer, blocks, encode_model};
use v2l_runtime::io::weights::write_tensors;

use super::super::{CheckOptions, Checks, Source, check_engine};
use super::*;
use crate::compile::prepared::{PreparedGraph, prepare};
use crate::{CompileOptions, ExportError};

/// A step over `x` `[batch, 4]` and `time` `[batch]` that adds to every timestep's row the mean of all rows or, as a
/// proof would have it that takes the mean for a row's own, the row itself.
fn step(folder: &Path, mixes: bool) -> PathBuf {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [Dim::from("batch"), 4.into()]);
    let time = b.input("time", DataType::Int64, [Dim::from("batch")]);
    let wave = blocks::timestep_sinusoid(&mut b, &time, 4, true, 0.0);
    let weight = |b: &mut Builder, name: &str, seed: u8| {
        let values = (0..16u8).flat_map(|at| (f32::from(at.wrapping_mul(seed) % 7) - 3.0).to_le_bytes());
        b.initializer(name, Initializer::inline(DataType::Float, &[4, 4], values.collect()))
    };
    let (first, second) = (weight(&mut b, "first.weight", 5), weight(&mut b, "second.weight", 11));
    let row = b.op("MatMul", &[&wave, &first]);
    let axes = b.ints(&[0]);
    let mean = if mixes { b.op("ReduceMean", &[&row, &axes]) } else { b.op("Identity", &[&row]) };
    let sum = b.op("Add", &[&row, &mean]);
    let sum = b.op("MatMul", &[&sum, &second]);
    let y = b.op("Mul", &[&x, &sum]);
    b.output("y", &y, DataType::Float, [Dim::from("batch"), 4.into()]);
    let path = folder.join(if mixes { "mixing.onnx" } else { "planted.onnx" });
    std::fs::write(&path, encode_model(&b.finish().unwrap(), &|_| None).unwrap()).unwrap();
    path
}

/// Compiles `compiled` and checks the engine against `source`.
fn check(folder: &Path, compiled: &Path, source: &Path, options: &CheckOptions) -> Result<Checks, ExportError> {
    let engine = folder.join("step.engine");
    let _ = std::fs::remove_file(&engine);
    let step_inputs = Some(["x", "time"].map(str::to_owned).into());
    let compile = CompileOptions { step_inputs, check: None, ..CompileOptions::default() };
    crate::compile(compiled, &engine, &compile, &mut |_| {}).unwrap();
    let opened = Engine::open(&engine).unwrap();
    let graph = opened.manifest().graphs[0].name.clone();
    assert!(
        opened.manifest().graphs[0].precomputed.as_ref().is_some_and(|precomputed| precomputed.timestep_rows.is_some())
    );
    let PreparedGraph { read, model: prepared, .. } = prepare(&graph, source, None, &compile).unwrap();
    let passes = Passes::default();
    let source = Source {
        graph: &graph,
        path: source,
        read: &read,
        prepared: &prepared,
        passes: &passes,
        slots: &[],
        int8: false,
    };
    check_engine(&engine, "g", &[source], &|_| DataType::Float, options)
}

/// A file of inputs with one timestep.
fn one_row(folder: &Path) -> PathBuf {
    let path = folder.join("one.safetensors");
    let x = Tensor::from_f32(&[1, 4], vec![1.0, -2.0, 3.0, 0.5]).unwrap();
    let time = tensor_from_bytes(v2l_runtime::tensor::Dtype::I64, &[1], &999i64.to_le_bytes()).unwrap();
    let tensors: NamedTensors = [("x".to_owned(), x), ("time".to_owned(), time)].into_iter().collect();
    write_tensors(&path, &tensors, &IndexMap::new()).unwrap();
    path
}

#[test]
fn verify_finds_tables_of_rows_that_depend_on_each_other_which_one_row_does_not_show() {
    let folder = tempfile::tempdir().unwrap();
    let (mixing, planted) = (step(folder.path(), true), step(folder.path(), false));
    let thorough = CheckOptions { thorough: true, ..CheckOptions::default() };
    let one = CheckOptions { inputs: vec![one_row(folder.path())], ..CheckOptions::default() };
    let both = CheckOptions { thorough: true, ..one.clone() };
    check(folder.path(), &planted, &mixing, &one).unwrap();
    for options in [&thorough, &both] {
        let found = check(folder.path(), &planted, &mixing, options).unwrap_err();
        assert!(matches!(found, ExportError::Numeric(_)), "{found}");
    }
    let found = check(folder.path(), &planted, &mixing, &both).unwrap_err().to_string();
    assert!(found.contains("several timesteps"), "{found}");
}

#[test]
fn verify_tries_different_equal_turned_and_known_timesteps_in_one_session() {
    let folder = tempfile::tempdir().unwrap();
    let planted = step(folder.path(), false);
    let inputs = vec![one_row(folder.path())];
    for inputs in [Vec::new(), inputs] {
        let given = !inputs.is_empty();
        let options = CheckOptions { thorough: true, inputs, ..CheckOptions::default() };
        let done = check(folder.path(), &planted, &planted, &options).unwrap().done;
        let mut kinds: Vec<&str> = done.iter().map(|check| check.inputs.rsplit(", ").next().unwrap()).collect();
        // What is checked is, in this order, one session's.
        let several = ["several timesteps", "one known timestep", "equal timesteps", "timesteps in another order"];
        let mut expected = if given { vec!["one.safetensors"] } else { vec!["batch 2"] };
        expected.extend(&several[..2]);
        if !given {
            expected.extend(&several[2..]);
        }
        expected.extend(&several[2..]);
        kinds.truncate(expected.len());
        assert_eq!(kinds, expected);
    }
}
