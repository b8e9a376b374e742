//! Steps whose precompute graph and timestep rows are computed apart give what whole steps give, whatever is swapped.

use ndarray::{Axis, concatenate};
use v2l_export::{CompileOptions, ExportError, ExportOptions, Pass, Passes};
use v2l_graphs::{ExternalDataWriter, ReadOptions, encode_model, read_model};
use v2l_runtime::components::Components;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::session::Session;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::lora::{AdapterSet, branch};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};
use crate::swaps::adapter;

/// The products of many rows at once round otherwise than those of one.
const TOLERANCE: f64 = 1e-6;

fn built(variant: &str, precomputed: bool) -> Built {
    let off = if precomputed { vec![] } else { vec![Pass::Precompute, Pass::TimestepRows] };
    let options = CompileOptions { passes: Passes::without(off), lora_rank: Some(4), ..CompileOptions::default() };
    Built::with(&fixtures().join("transformer").join(variant), &ExportOptions::default(), &options)
}

fn case(variant: &str) -> Case {
    Case::read(&cases(&fixtures().join("transformer").join(variant))[0])
}

fn sample(session: &mut dyn Session, inputs: &NamedTensors) -> ndarray::ArrayD<f32> {
    f32s(&run(session, inputs)["sample"])
}

/// The inputs at another timestep, of every sample.
fn at(inputs: &NamedTensors, timesteps: &[i64]) -> NamedTensors {
    let mut inputs = inputs.clone();
    inputs.insert("timestep".to_owned(), Tensor::I64(ndarray::arr1(timesteps).into_dyn()));
    inputs
}

/// The first sample of every input, `times` times.
fn repeated(inputs: &NamedTensors, times: usize) -> NamedTensors {
    let batched = ["hidden_states", "encoder_hidden_states", "inpaint_latents"];
    let repeat = |name: &str, tensor: &Tensor| match tensor {
        Tensor::F32(array) if batched.contains(&name) => {
            let first = array.slice_axis(Axis(0), (0..1).into());
            Tensor::F32(concatenate(Axis(0), &vec![first.view(); times]).unwrap())
        }
        _ => tensor.clone(),
    };
    inputs.iter().map(|(name, tensor)| (name.clone(), repeat(name, tensor))).collect()
}

#[test]
fn transformers_with_hoisted_graphs_keep_their_inputs_and_store_them_over_the_same_weights() {
    for variant in ["rotary_t2v", "sincos_t2v", "learned_i2v", "fun_inp", "v15_t2v", "v15_i2v"] {
        let (split, whole) = (built(variant, true), built(variant, false));
        for graph in ["step", "step.branch"] {
            let (engine, plain) = (split.engine(TRANSFORMER), whole.engine(TRANSFORMER));
            let (graph, plain) = (engine.graph(graph).unwrap(), plain.graph(graph).unwrap());
            assert_eq!((&graph.inputs, &graph.outputs), (&plain.inputs, &plain.outputs), "{variant}");
            let mut weights: Vec<&String> = graph.parts().flat_map(|part| &part.weights).collect();
            weights.sort_unstable();
            weights.dedup();
            assert_eq!(weights.len(), plain.weights.len(), "{variant}");
            let precomputed = graph.precomputed.as_ref().unwrap();
            let timestep_rows = precomputed.timestep_rows.as_ref().unwrap();
            assert_eq!(timestep_rows.rows, ["timestep"]);
            for layer in ["time_embedding.linear_1", "transformer_blocks.0.norm1.linear", "norm_out.linear"] {
                assert!(timestep_rows.graph.weights.contains(&format!("{layer}.weight")), "{variant} {layer}");
                assert!(!graph.weights.contains(&format!("{layer}.weight")), "{variant} {layer}");
            }
            let text = "patch_embed.text_proj.weight".to_owned();
            assert!(precomputed.precompute.as_ref().unwrap().weights.contains(&text) && !graph.weights.contains(&text));
        }
    }
}

#[test]
fn tables_serve_any_batch_order_and_setting_and_prepared_ones_the_same() {
    for variant in ["fun_inp", "v15_i2v"] {
        let (split, whole) = (built(variant, true), built(variant, false));
        let base = repeated(&case(variant).inputs, 1);
        for mode in WEIGHT_MODES {
            let mut plain = whole.session(TRANSFORMER, "step", mode);
            let mut session = split.session(TRANSFORMER, "step", mode);
            let mut prepared = split.session(TRANSFORMER, "step", mode);
            let mut schedule = at(&base, &[999, 500, 20, 500]);
            schedule.retain(|name, _| name != "hidden_states");
            let schedule: Vec<(&str, &Tensor)> = schedule.iter().map(|(name, t)| (&name[..], t)).collect();
            prepared.prepare(&schedule, &|| false).unwrap();
            for timesteps in [&[500][..], &[20], &[999, 20], &[20, 999], &[500, 500, 7], &[500]] {
                let inputs = at(&repeated(&base, timesteps.len()), timesteps);
                let expected = sample(&mut *plain, &inputs);
                let what = format!("{variant} {mode:?} {timesteps:?}");
                assert_close(&what, &sample(&mut *session, &inputs), &expected, TOLERANCE);
                assert_close(&what, &sample(&mut *prepared, &inputs), &expected, TOLERANCE);
            }
            // Another prompt, another offset, and back.
            let usual = at(&base, &[500]);
            let mut other = usual.clone();
            for name in ["encoder_hidden_states", "ofs"].into_iter().filter(|name| usual.contains_key(*name)) {
                other.insert(name.to_owned(), Tensor::F32(f32s(&usual[name]) * 0.5));
                let expected = sample(&mut *plain, &other);
                assert_ne!(expected, sample(&mut *plain, &usual), "{name} counts");
                assert_close(&format!("{variant} other {name}"), &sample(&mut *session, &other), &expected, TOLERANCE);
            }
            let (found, expected) = (sample(&mut *session, &usual), sample(&mut *plain, &usual));
            assert_close(&format!("{variant} again"), &found, &expected, TOLERANCE);
            let missing: Vec<(&str, &Tensor)> = usual.iter().skip(1).map(|(name, t)| (&name[..], t)).collect();
            assert_eq!(
                session.run(&missing).unwrap_err().to_string(),
                plain.run(&missing).unwrap_err().to_string(),
                "errors are those of the whole step"
            );
        }
    }
}

#[test]
fn rows_have_the_same_bits_whichever_rows_they_were_computed_with_and_before_or_after() {
    let split = built("fun_inp", true);
    let base = repeated(&case("fun_inp").inputs, 1);
    for mode in WEIGHT_MODES {
        let open = || split.session(TRANSFORMER, "step", mode);
        let alone = sample(&mut *open(), &at(&base, &[500]));
        let many = [999, 500, 20, 7, 1, 400, 300];
        let mut prepared = open();
        let schedule = at(&base, &many);
        let schedule: Vec<(&str, &Tensor)> = schedule.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
        prepared.prepare(&schedule, &|| false).unwrap();
        let mut used = open();
        sample(&mut *used, &at(&repeated(&base, many.len()), &many));
        for (what, session) in [("prepared", &mut prepared), ("used", &mut used)] {
            assert_eq!(sample(&mut **session, &at(&base, &[500])), alone, "{mode:?} {what}");
        }
        // The order of rows is theirs, too.
        let pair = |timesteps: [i64; 2]| sample(&mut *open(), &at(&repeated(&base, 2), &timesteps));
        let (there, back) = (pair([500, 20]), pair([20, 500]));
        assert_eq!(there.index_axis(Axis(0), 0), back.index_axis(Axis(0), 1), "{mode:?}");
    }
}

/// An adapter of the adaptive norms' linear layers, which only the tables read.
fn norms(built: &Built, seed: u64) -> Adapter {
    let manifest = built.engine(TRANSFORMER).manifest().clone();
    let only = |name: &str| name.contains(".norm1.") || name.contains(".norm2.") || name.starts_with("norm_out.");
    adapter("norms", manifest.slots.iter().filter(|slot| only(&slot.name)), 3, seed)
}

#[test]
fn adapters_of_adaptive_norms_alone_change_the_output_and_leave_nothing_behind() {
    let (split, whole) = (built("fun_inp", true), built("fun_inp", false));
    let (a, b) = (norms(&split, 1), norms(&split, 2));
    let inputs = case("fun_inp").inputs;
    for weights in WEIGHT_MODES {
        let open =
            |b: &Built| EngineDirectory::open(b.engines(), OpenOptions { weights, ..Default::default() }).unwrap();
        let (mut directory, mut plain) = (open(&split), open(&whole));
        let mut base = None;
        let states: [&[_]; 5] = [&[], &[(&a, 1.0)], &[(&b, 0.5)], &[(&a, 1.0)], &[]];
        for adapters in states.map(AdapterSet::from) {
            let [found, expected] = [&mut directory, &mut plain].map(|directory| {
                directory.set_adapters(&adapters, None).unwrap();
                sample(directory.session(TRANSFORMER, "step").unwrap(), &inputs)
            });
            assert_close(&format!("{weights:?} {} adapters", adapters.len()), &found, &expected, TOLERANCE);
            let base = base.get_or_insert_with(|| found.clone());
            assert_eq!(found == *base, adapters.is_empty(), "{weights:?}");
        }
    }
}

#[test]
fn factors_of_adaptive_norms_alone_change_the_tables_of_side_branches() {
    let (split, whole) = (built("fun_inp", true), built("fun_inp", false));
    let engine = split.engine(TRANSFORMER);
    let (a, b) = (norms(&split, 1), norms(&split, 2));
    let mut session = split.session(TRANSFORMER, "step.branch", OrtWeights::F32);
    let mut plain = whole.session(TRANSFORMER, "step.branch", OrtWeights::F32);
    let mut base = None;
    for adapters in [&[][..], &[(&a, 1.0)], &[(&b, 0.5)], &[(&a, -1.0)], &[]] {
        let mut inputs = case("fun_inp").inputs;
        inputs.extend(branch::inputs(&engine, engine.graph("step.branch").unwrap(), adapters).unwrap());
        let found = sample(&mut *session, &inputs);
        assert_close("branches", &found, &sample(&mut *plain, &inputs), TOLERANCE);
        assert_eq!(found == *base.get_or_insert_with(|| found.clone()), adapters.is_empty());
    }
}

#[test]
fn compile_precomputes_from_an_unknown_graph_what_its_step_inputs_allow() {
    let whole = built("rotary_t2v", false);
    let mut model = read_model(&whole.bundle().join("transformer/step.onnx"), &ReadOptions::default()).unwrap();
    model.metadata.retain(|key, _| key != "v2l.component");
    let folder = tempfile::tempdir().unwrap();
    let weights = std::fs::File::create(folder.path().join("weights.bin")).unwrap();
    let mut writer = ExternalDataWriter::new(weights, "weights.bin");
    for (name, weight) in model.graph.initializers.iter().filter(|(_, weight)| weight.external) {
        writer.append(name, &weight.data).unwrap();
    }
    let file = folder.path().join("foreign.onnx");
    std::fs::write(&file, encode_model(&model, &|name| writer.location(name).cloned()).unwrap()).unwrap();
    drop(writer);
    let engine = folder.path().join("foreign.engine");
    let compile = |step: Option<&[&str]>| {
        let step_inputs = step.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        let options = CompileOptions { step_inputs, ..CompileOptions::default() };
        v2l_export::compile(&file, &engine, &options, &mut |_| {})?;
        Ok::<_, ExportError>(
            v2l_runtime::engine::Engine::open(&engine).unwrap().manifest().graphs[0].precomputed.is_some(),
        )
    };
    assert!(!compile(None).unwrap(), "nothing is known of the graph");
    assert!(compile(Some(&["hidden_states", "timestep"])).unwrap());
    let error = compile(Some(&["hidden_states", "timesteps"])).unwrap_err().to_string();
    assert!(error.contains("`timesteps`") && error.contains("encoder_hidden_states"), "{error}");
}
