//! `WanTransformer3DModel` in all its forms against diffusers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::Axis;
use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_graphs::passes::Pass;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::random_weights;
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};
use crate::tools::{RawTensor, args, run_ok, write};

/// The f32 noise floor of these models against f64 is up to 1e-6 (in the cases' metadata).
const TOLERANCE: f64 = 1e-5;

/// The timesteps of the first token and of the last in place of those of all; true if they were those of all.
fn by_frame(inputs: &mut NamedTensors) -> bool {
    let timesteps = f32s(&inputs["timestep"]);
    let each = timesteps.ndim() == 2;
    if let [_, tokens] = *timesteps.shape() {
        let of = |token: usize| Tensor::from(timesteps.index_axis(Axis(1), token).to_owned());
        inputs.insert("first_frame_timestep".into(), of(0));
        inputs.insert("timestep".into(), of(tokens - 1));
    }
    each
}

fn check_variant(variant: &str) {
    let folder = fixtures().join("wan/transformer").join(variant);
    let model = random_weights::made(&folder);
    let built = Built::plain(model.root());
    for mode in WEIGHT_MODES {
        let mut session = built.session("transformer", "step", mode);
        for path in cases(&folder) {
            let mut case = Case::read(&path);
            let what = format!("{variant} {} {mode:?}", case.name);
            let given = case.inputs.clone();
            if by_frame(&mut case.inputs) {
                let mut each = built.session("transformer", "step_tokens", mode);
                let outputs = run(&mut *each, &given);
                assert_close(
                    &format!("{what} each token"),
                    &f32s(&outputs["sample"]),
                    &case.output("sample"),
                    TOLERANCE,
                );
            }
            let outputs = run(&mut *session, &case.inputs);
            assert_close(&what, &f32s(&outputs["sample"]), &case.output("sample"), TOLERANCE);
        }
    }
}

#[test]
fn text_to_video_equals_diffusers() {
    check_variant("t2v");
}

#[test]
fn image_to_video_with_image_embeddings_equals_diffusers() {
    check_variant("i2v_2_1");
}

#[test]
fn first_and_last_frame_equals_diffusers() {
    check_variant("flf2v");
}

#[test]
fn image_to_video_without_image_embeddings_equals_diffusers() {
    check_variant("i2v_2_2");
}

#[test]
fn timestep_for_the_first_frame_equals_diffusers() {
    check_variant("ti2v");
}

#[test]
fn model_without_cross_norm_and_with_other_patches_equals_diffusers() {
    check_variant("no_cross_norm");
}

#[test]
fn every_form_equals_diffusers_on_openvino() {
    for variant in ["t2v", "i2v_2_1", "flf2v", "i2v_2_2", "ti2v"] {
        let folder = fixtures().join("wan/transformer").join(variant);
        let model = random_weights::made(&folder);
        let options = CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() };
        let built = Built::with(model.root(), &ExportOptions::default(), &options);
        let mut session = built.on_openvino("transformer", "step");
        for path in cases(&folder) {
            let mut case = Case::read(&path);
            by_frame(&mut case.inputs);
            let outputs = run(&mut *session, &case.inputs);
            let what = format!("{variant} {} on OpenVINO", case.name);
            assert_close(&what, &f32s(&outputs["sample"]), &case.output("sample"), TOLERANCE);
        }
    }
}

/// Wan's own names of diffusers' layers in a block and around the blocks.
const NATIVE: [(&str, &str); 20] = [
    ("attn1.to_q", "self_attn.q"),
    ("attn1.to_k", "self_attn.k"),
    ("attn1.to_v", "self_attn.v"),
    ("attn1.to_out.0", "self_attn.o"),
    ("attn2.to_q", "cross_attn.q"),
    ("attn2.to_k", "cross_attn.k"),
    ("attn2.to_v", "cross_attn.v"),
    ("attn2.to_out.0", "cross_attn.o"),
    ("attn2.add_k_proj", "cross_attn.k_img"),
    ("attn2.add_v_proj", "cross_attn.v_img"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("proj_out", "head.head"),
];

/// A LoRA of rank 1 on every layer, `name` giving the file's name of a layer.
fn write_lora(path: &Path, built: &Built, name: impl Fn(&str) -> String) -> usize {
    let mut tensors = BTreeMap::new();
    let slots = built.engine("transformer").manifest().slots.clone();
    for (at, slot) in slots.iter().enumerate() {
        let name = name(&slot.name);
        let value = 0.01 * (1 + at % 5) as f32;
        tensors.insert(format!("{name}.lora_A.weight"), RawTensor::f32s(&[1, slot.in_features], value));
        tensors.insert(format!("{name}.lora_B.weight"), RawTensor::f32s(&[slot.out_features, 1], value));
    }
    write(path, &tensors, None);
    slots.len()
}

#[test]
fn every_linear_layer_takes_adapters_under_all_names() {
    for (variant, layers) in [("t2v", 26), ("i2v_2_1", 32), ("flf2v", 32), ("i2v_2_2", 26), ("ti2v", 26)] {
        let folder = fixtures().join("wan/transformer").join(variant);
        let model = random_weights::made(&folder);
        let built = Built::plain(model.root());
        let file = |name: &str| built.folder.path().join(name);
        let native = |name: &str| {
            let (diffusers, own) = NATIVE.iter().find(|(diffusers, _)| name.ends_with(diffusers)).unwrap();
            format!("{}{own}", name.strip_suffix(diffusers).unwrap())
        };
        assert_eq!(write_lora(&file("diffusers"), &built, |name| format!("transformer.{name}")), layers);
        write_lora(&file("native"), &built, |name| format!("diffusion_model.{}", native(name)));
        write_lora(&file("kohya"), &built, |name| format!("lora_unet_{}", native(name).replace('.', "_")));
        let mut case = Case::read(&cases(&folder)[0]);
        by_frame(&mut case.inputs);
        v2l_runtime::io::weights::write_tensors(file("inputs"), &case.inputs, &Default::default()).unwrap();
        let engine = built.engines().join("transformer.engine");
        let outputs = |name: &str, lora: &[std::ffi::OsString]| {
            let run = args!["--engine", &engine, "--inputs", file("inputs"), "--outputs", file(name)];
            run_ok("run", &[run, lora].concat());
            v2l_runtime::io::weights::read_tensors(file(name)).unwrap()
        };
        let base = outputs("base", args![]);
        let steered = |lora: &str| outputs("steered", args!["--lora", file(lora)]);
        let diffusers = steered("diffusers");
        assert!(diffusers != base, "{variant}");
        for other in ["native", "kohya"] {
            assert!(steered(other) == diffusers, "{variant} {other}");
        }
    }
}

#[test]
fn layer_that_serves_two_timesteps_takes_adapters_beside_it() {
    let folder = fixtures().join("wan/transformer/ti2v");
    let model = random_weights::made(&folder);
    let compile = CompileOptions { lora_rank: Some(2), ..CompileOptions::default() };
    let built = Built::with(model.root(), &ExportOptions::default(), &compile);
    let file = |name: &str| built.folder.path().join(name);
    write_lora(&file("lora"), &built, |name| format!("transformer.{name}"));
    let mut case = Case::read(&cases(&folder)[0]);
    by_frame(&mut case.inputs);
    v2l_runtime::io::weights::write_tensors(file("inputs"), &case.inputs, &Default::default()).unwrap();
    let engine = built.engines().join("transformer.engine");
    let [fused, beside] = ["fuse", "branch"].map(|mode| {
        let run = args!["--engine", &engine, "--inputs", file("inputs"), "--outputs", file(mode), "--fuse-mode", mode];
        run_ok("run", &[run, args!["--lora", file("lora")]].concat());
        f32s(&v2l_runtime::io::weights::read_tensors(file(mode)).unwrap()["sample"])
    });
    assert_close("beside the layers", &beside, &fused, TOLERANCE);
}

#[test]
fn passes_find_what_they_rewrite() {
    for (variant, attentions) in [("t2v", 4), ("i2v_2_1", 6), ("flf2v", 6), ("i2v_2_2", 4), ("ti2v", 4)] {
        let model = random_weights::made(&fixtures().join("wan/transformer").join(variant));
        let (bundle, engines) = (model.path("bundle"), model.path("engines"));
        v2l_export::export(model.root(), &bundle, &ExportOptions::default(), &mut |_| {}).unwrap();
        let report = v2l_export::compile(&bundle, &engines, &CompileOptions::default(), &mut |_| {}).unwrap();
        let fired: BTreeMap<Pass, usize> = report.engines[0].passes[0].fired.iter().copied().collect();
        // Of two blocks: queries and keys; the norms before attention and feed-forward, and the last one.
        let found = [Pass::Rotary, Pass::Attention, Pass::ModulatedNorm].map(|pass| fired[&pass]);
        assert_eq!(found, [4, attentions, 5], "{variant}");
    }
}

#[test]
fn work_that_is_the_same_in_every_step_leaves_the_step() {
    for (variant, precomputed) in [("t2v", 4), ("i2v_2_1", 8), ("ti2v", 4)] {
        let model = random_weights::made(&fixtures().join("wan/transformer").join(variant));
        let built = Built::plain(model.root());
        let engine = built.engine("transformer");
        let graphs = engine.graph("step").unwrap().precomputed.clone().unwrap();
        // Keys and values of the cross-attention, of two blocks.
        assert_eq!(graphs.precompute.unwrap().outputs.len(), precomputed, "{variant}");
        // Embedding and modulation, of both timesteps.
        let timestep_rows = graphs.timestep_rows.unwrap();
        assert_eq!(timestep_rows.graph.outputs.len(), if variant == "ti2v" { 4 } else { 2 }, "{variant}");
    }
}
