//! Adapters of every form, rank and strength against what PEFT and diffusers fuse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use indexmap::IndexMap;
use safetensors::SafeTensors;
use tempfile::TempDir;
use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::engine::Engine;
use v2l_runtime::io::weights::{WeightFile, read_tensors, write_tensors};
use v2l_runtime::lora::adapter::{
    Adapter, AdapterError, AdapterFormat, ReadOptions, Update, read_adapter, write_adapter,
};
use v2l_runtime::lora::fuse::{FuseTarget, fuse};
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::support::{Built, Case, assert_close, f32s, fixtures, open_with, run, ways};
use crate::tools::{Scratch, args, run_ok, sample, sample_model};

/// Relative to the norm of the weight.
const TOLERANCE: f64 = 1e-6;
/// Share of bf16 weights that may be the neighbour of the exact sum's nearest: sums are rounded to f32 before.
const NEIGHBOURS: f64 = 1e-3;

const STRENGTHS: [f32; 5] = [-1.0, 0.0, 0.5, 1.0, 2.0];
const RANKS: [(&str, usize, f32); 3] = [("rank_1", 1, 3.0), ("rank_4", 4, 7.0), ("rank_16", 16, 5.0)];
const FUSED: [&str; 3] =
    ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_v", "transformer_blocks.1.ff.net.2"];

/// Suffixes that trainers write instead of kohya's, and diffusers' form of its older attention processors.
const DIALECTS: [(&str, &str); 6] = [
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_A", ".lora_B"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_down.weight", ".lora_up.weight"),
];

fn golden(name: &str) -> PathBuf {
    fixtures().join("adapter/golden").join(name)
}

/// The golden model compiled with its weights stored in f32 and in bf16, which hold the same values.
struct Golden {
    engines: Vec<(FuseTarget, Engine, Built)>,
    expected: Vec<u8>,
    scratch: TempDir,
}

impl Golden {
    fn new() -> Self {
        let engine = |(target, storage)| {
            let built = Built::new(&golden("transformer"), &ExportOptions::default(), Some(storage));
            (target, Engine::open(built.engines().join("transformer.engine")).unwrap(), built)
        };
        let engines =
            [(FuseTarget::F32, Dtype::F32), (FuseTarget::F32, Dtype::Bf16), (FuseTarget::Storage, Dtype::Bf16)];
        Self {
            engines: engines.map(engine).into(),
            expected: std::fs::read(golden("fused.safetensors")).unwrap(),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    fn read(&self, path: &Path) -> Adapter {
        read_adapter(path, &self.engines[0].1.manifest().slots, &ReadOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .adapter
    }

    /// The exact fused weight of a case such as `rank_4@-1`.
    fn expected(&self, case: &str, module: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        let name = format!("{case}.{module}");
        let bytes = tensors.tensor(&name).unwrap_or_else(|e| panic!("{name}: {e}")).data();
        bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// Fuses in every way, and compares each weight with the exact one.
    #[track_caller]
    fn check(&self, what: &str, case: &str, adapters: &[(&Adapter, f32)]) {
        for (target, engine, _) in &self.engines {
            let fused = fuse(engine, adapters, *target).unwrap();
            for module in FUSED {
                let what = format!("{what} {case} {module} {:?} {target:?}", engine.manifest().storage);
                let (bytes, exact) = (&fused.weights[&format!("{module}.weight")], self.expected(case, module));
                if *target == FuseTarget::Storage {
                    let stored = bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()));
                    assert_eq!(stored.len(), exact.len(), "{what}");
                    let apart = |(stored, exact): (bf16, &f64)| stored.to_bits().abs_diff(nearest(*exact).to_bits());
                    let apart: Vec<u16> = stored.zip(&exact).map(apart).collect();
                    let off = apart.iter().filter(|&&steps| steps > 0).count() as f64 / apart.len() as f64;
                    assert!(
                        apart.iter().all(|&steps| steps <= 1) && off <= NEIGHBOURS,
                        "{what}: {off:e} are neighbours"
                    );
                } else {
                    let found: Vec<f64> =
                        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect();
                    let error = distance(&found, &exact);
                    assert!(error <= TOLERANCE, "{what}: {error:e}");
                }
            }
        }
    }

    /// A copy of a file with other keys.
    fn renamed(&self, from: &Path, rename: impl Fn(&str) -> String) -> PathBuf {
        let tensors: NamedTensors =
            read_tensors(from).unwrap().into_iter().map(|(key, tensor)| (rename(&key), tensor)).collect();
        let path = self.scratch.path().join("renamed.safetensors");
        write_tensors(&path, &tensors, &IndexMap::new()).unwrap();
        path
    }
}

/// Relative L2 distance of `a` from `b`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// The bf16 number next to an f64 number, ties to even; through f32 it would be rounded twice.
fn nearest(exact: f64) -> bf16 {
    let near = bf16::from_f64(exact).to_bits();
    let distance = |bits: u16| (f64::from(bf16::from_bits(bits)) - exact).abs();
    let candidates = [near.wrapping_sub(1), near, near.wrapping_add(1)];
    let finite = candidates.into_iter().filter(|&bits| bf16::from_bits(bits).is_finite());
    let best = finite.min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
    bf16::from_bits(best.unwrap())
}

#[test]
fn every_form_at_every_rank_and_strength_fuses_to_the_weights_of_peft() {
    let golden_model = Golden::new();
    for (name, rank, alpha) in RANKS {
        let kohya = golden(name).join("kohya.safetensors");
        let mut forms: Vec<(String, Adapter)> =
            ["peft", "diffusers.safetensors", "kohya.safetensors", "comfy.safetensors"]
                .map(|form| (form.to_owned(), golden_model.read(&golden(name).join(form))))
                .into();
        let videox = golden_model.renamed(&kohya, |key| key.replace("lora_unet_", "lora_unet__"));
        forms.push(("videox-fun".to_owned(), golden_model.read(&videox)));
        for (down, up) in DIALECTS {
            let dialect = golden_model.renamed(&golden(name).join("comfy.safetensors"), |key| {
                key.replace("diffusion_model.", "").replace(".lora_A.weight", down).replace(".lora_B.weight", up)
            });
            forms.push((format!("without a prefix, {down}"), golden_model.read(&dialect)));
        }
        for format in [
            AdapterFormat::Peft,
            AdapterFormat::Diffusers,
            AdapterFormat::Kohya,
            AdapterFormat::VideoxFun,
            AdapterFormat::Comfy,
        ] {
            let path = golden_model.scratch.path().join(format!("{name}-{}.safetensors", format.name()));
            write_adapter(&path, &forms[0].1, format).unwrap();
            forms.push((format!("written as {}", format.name()), golden_model.read(&path)));
        }
        for (form, adapter) in &forms {
            assert_eq!(adapter.layers.len(), 5, "{name} {form}");
            assert!(
                adapter.layers.values().all(|l| (l.rank(), l.to_low_rank().alpha) == (rank, alpha)),
                "{name} {form}"
            );
            assert_eq!(adapter.layers, reordered(&forms[0].1, adapter), "{name} {form}");
            for strength in STRENGTHS {
                golden_model.check(form, &format!("{name}@{strength}"), &[(adapter, strength)]);
            }
        }
    }
}

/// The layers of `adapter` in the order of `like`.
fn reordered(adapter: &Adapter, like: &Adapter) -> IndexMap<String, Arc<Update>> {
    like.layers.keys().map(|name| (name.clone(), adapter.layers[name].clone())).collect()
}

#[test]
fn patterns_of_rank_and_alpha_and_rank_stabilised_scales_fuse_to_the_weights_of_peft() {
    let golden_model = Golden::new();
    for (name, strength) in [("mixed", 1.0), ("rslora", 0.5)] {
        for form in ["peft", "diffusers.safetensors"] {
            let adapter = golden_model.read(&golden(name).join(form));
            golden_model.check(form, &format!("{name}@{strength}"), &[(&adapter, strength)]);
        }
    }
    let mixed = golden_model.read(&golden("mixed/peft"));
    let of = |module: &str| (mixed.layers[module].rank(), mixed.layers[module].to_low_rank().alpha);
    assert_eq!(FUSED.map(of), [(4, 7.0), (1, 3.0), (16, 5.5)]);
}

#[test]
fn two_adapters_fuse_to_the_weights_of_peft_in_either_order() {
    let golden_model = Golden::new();
    let [one, two] = ["rank_1", "rank_16"].map(|name| golden_model.read(&golden(name).join("comfy.safetensors")));
    for (first, second) in [(0.5, 0.5), (0.7, -0.3)] {
        let case = format!("rank_1+rank_16@{first},{second}");
        golden_model.check("in order", &case, &[(&one, first), (&two, second)]);
        golden_model.check("reversed", &case, &[(&two, second), (&one, first)]);
    }
}

#[test]
fn an_adapter_shifted_by_one_block_is_refused_or_fuses_to_other_weights() {
    let golden_model = Golden::new();
    let slots = &golden_model.engines[0].1.manifest().slots;
    let kohya = golden("rank_4/kohya.safetensors");
    let shifted =
        golden_model.renamed(&kohya, |key| key.replace("blocks_1", "blocks_2").replace("blocks_0", "blocks_1"));
    let Err(AdapterError::Unmatched { coverage }) = read_adapter(&shifted, slots, &ReadOptions::default()) else {
        panic!("an adapter for a block that is not there was accepted")
    };
    assert_eq!(coverage.counts(), (9, 0, 6));
    // The model has both blocks the other way round: every key matches, and the result is another.
    let swapped = golden_model.renamed(&kohya, other_block);
    let adapter = golden_model.read(&swapped);
    for (target, engine, _) in &golden_model.engines {
        let fused = fuse(engine, &[(&adapter, 1.0)], *target).unwrap();
        for module in FUSED {
            assert!(!fused.weights.contains_key(&format!("{module}.weight")), "{module} was changed");
        }
    }
}

/// The golden forward passes are of the model and adapter in `adapter/`, not of those in `adapter/golden/`.
#[test]
fn an_adapter_under_wrong_names_moves_the_output_away_from_that_of_peft() {
    let folder = fixtures().join("adapter");
    let compile = CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() };
    let built = Built::with(&folder.join("transformer"), &ExportOptions::default(), &compile);
    let case = Case::read(&folder.join("case.safetensors"));
    let slots = built.engine("transformer").manifest().slots.clone();
    let sample = |path: &Path, strength, way: OpenOptions| {
        let adapter = read_adapter(path, &slots, &ReadOptions::default()).unwrap().adapter;
        let mut engine = open_with(built.engine("transformer"), &way, &[(&adapter, strength)]);
        let mut session = engine.session("step").unwrap();
        f32s(&run(&mut *session, &case.inputs)["sample"])
    };
    let kohya = folder.join("kohya.safetensors");
    for way in ways() {
        let what = format!("{:?}, weights {:?}", way.backend.name(), way.weights);
        assert_close(&what, &sample(&kohya, 1.0, way.clone()), &case.output("sample_strength_1"), 1e-5);
        assert_close(&what, &sample(&kohya, -0.5, way), &case.output("sample_strength_minus_half"), 1e-5);
    }
    let scratch = Scratch::new();
    let swapped: NamedTensors =
        read_tensors(&kohya).unwrap().into_iter().map(|(key, t)| (other_block(&key), t)).collect();
    let path = scratch.path("swapped.safetensors");
    write_tensors(&path, &swapped, &IndexMap::new()).unwrap();
    let (wrong, right) = (sample(&path, 1.0, OpenOptions::default()), case.output("sample_strength_1"));
    let distance = distance(
        &wrong.iter().map(|&v| v.into()).collect::<Vec<_>>(),
        &right.iter().map(|&v| v.into()).collect::<Vec<_>>(),
    );
    assert!(distance > 1e-2, "the output does not depend on which block an adapter is for: {distance:e}");
}

/// A key of a model of two blocks, for the other block.
fn other_block(key: &str) -> String {
    if key.contains("blocks_0") { key.replace("blocks_0", "blocks_1") } else { key.replace("blocks_1", "blocks_0") }
}

#[test]
fn predicted_adapters_are_equal_with_and_without_the_auxiliary_factors_in_the_file() {
    let (scratch, sample) = (Scratch::new(), sample());
    let slots = Engine::open(sample.engine("transformer")).unwrap().manifest().slots.clone();
    let predict = |format: &str| {
        let path = scratch.path(&format!("{format}.safetensors"));
        let reference = sample_model().join("image.png");
        let engines = sample.engines();
        run_ok(
            "run",
            args!["--engine", engines, "--reference", reference, "--save-lora", &path, "--lora-format", format],
        );
        path
    };
    let read = |format: &str| read_adapter(&predict(format), &slots, &ReadOptions::default()).unwrap().adapter.layers;
    let (expanded, full) = (read("videox-fun"), read("light-full"));
    assert_eq!(full.len(), 21);
    for (slot, update) in &full {
        let other = &expanded[slot];
        assert_close(slot, &update.delta().into_dyn(), &other.delta().into_dyn(), TOLERANCE);
    }
    // The tokens alone: their values, and a kilobyte at most.
    let light = predict("light");
    let Some(Tensor::F32(tokens)) = read_tensors(&light).unwrap().swap_remove("pred_weights") else {
        panic!("no tokens in f32")
    };
    assert_eq!(tokens.shape(), [21, 150]);
    assert!(std::fs::metadata(&light).unwrap().len() as usize <= size_of::<f32>() * tokens.len() + 1024);
    let named = |path: &Path| WeightFile::open(path).unwrap().metadata("auxiliary").map(str::to_owned);
    assert_eq!(named(&light), named(&scratch.path("light-full.safetensors")));
    assert_eq!(named(&light).unwrap().len(), 64);
}
