use std::sync::Arc;

use indexmap::IndexMap;
use v2l_export::CompileOptions;
use v2l_export::targets::OpenVino;
use v2l_runtime::Engine;
use v2l_runtime::io::weights::write_tensors;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::support::{Language, engines, root, run_program, scratch};

/// LoRA factors for every layer of the engine.
fn factors(engine: &Engine) -> NamedTensors {
    let mut tensors = NamedTensors::new();
    for slot in &engine.manifest().slots {
        let factor = |shape: [usize; 2]| {
            let values = (0..shape[0] * shape[1]).map(|at| ((at * 7 + 3) % 11) as f32 / 50.0 - 0.1).collect();
            Tensor::from_f32(&shape, values).unwrap()
        };
        tensors.insert(format!("transformer.{}.lora_A.weight", slot.name), factor([2, slot.in_features]));
        tensors.insert(format!("transformer.{}.lora_B.weight", slot.name), factor([slot.out_features, 2]));
    }
    tensors
}

#[test]
fn sessions_of_c_run_on_openvino_and_have_adapters_of_their_own() {
    let (other, openvino) = (engines().join("transformer.engine"), scratch().join("openvino"));
    let options = CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() };
    v2l_export::compile(&scratch().join("bundle"), &openvino, &options, &mut |_| {}).unwrap();
    let engine = openvino.join("transformer.engine");
    let adapter = scratch().join("backends.safetensors");
    write_tensors(&adapter, &factors(&Engine::open(&engine).unwrap()), &IndexMap::new()).unwrap();
    let program = Language::C99.program(&root().join("tests/capi/programs/backends.c"));
    let printed = run_program(&program, &[&engine, &other, &adapter]);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines.len() == 8 && lines.iter().all(|line| line.ends_with(": 1")), "{printed}");
}
