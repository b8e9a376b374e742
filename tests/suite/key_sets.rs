//! Forty key sets: what eight trainers and tools write for five of Wan's transformers, and what becomes of every key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{Array2, ArrayD, Axis};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::io::weights::write_tensors;
use v2l_runtime::lora::adapter::{AdapterError, CoveredAdapter, LowRank, Outcome, ReadOptions, Update, read_adapter};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::random_weights;
use crate::support::{Built, fixtures};
use crate::swaps::numbers;
use crate::tools::Scratch;

const MODELS: [&str; 5] = ["t2v", "i2v_2_1", "flf2v", "i2v_2_2", "ti2v"];
const RANK: usize = 2;

/// How a tool spells its keys.
struct Dialect {
    name: &'static str,
    prefix: &'static str,
    /// Wan's own names, not those of diffusers.
    native: bool,
    underscores: bool,
    down: &'static str,
    up: &'static str,
    /// Alpha, and whether it is an integer.
    alpha: Option<bool>,
    /// It writes what is no block's linear layer, too, and differences of biases, norms and tables; these by this ending.
    tables: Option<&'static str>,
}

const PLAIN: Dialect = Dialect {
    name: "diffusion-pipe",
    prefix: "diffusion_model.",
    native: true,
    underscores: false,
    down: ".lora_A.weight",
    up: ".lora_B.weight",
    alpha: None,
    tables: None,
};

const DIALECTS: [Dialect; 8] = [
    PLAIN,
    Dialect {
        name: "musubi-tuner",
        prefix: "lora_unet_",
        underscores: true,
        down: ".lora_down.weight",
        up: ".lora_up.weight",
        alpha: Some(false),
        ..PLAIN
    },
    Dialect { name: "diffusers", prefix: "transformer.", native: false, ..PLAIN },
    Dialect { name: "peft", prefix: "base_model.model.", native: false, ..PLAIN },
    Dialect {
        name: "diffsynth",
        prefix: "pipe.dit.",
        down: ".lora_A.default.weight",
        up: ".lora_B.default.weight",
        ..PLAIN
    },
    Dialect {
        name: "videox-fun",
        prefix: "lora_unet__",
        underscores: true,
        down: ".lora_down.weight",
        up: ".lora_up.weight",
        alpha: Some(false),
        ..PLAIN
    },
    Dialect { name: "lightx2v", tables: Some(".diff_m"), ..PLAIN },
    Dialect {
        name: "comfyui",
        down: ".lora_down.weight",
        up: ".lora_up.weight",
        alpha: Some(true),
        tables: Some(".modulation.diff"),
        ..PLAIN
    },
];

/// Wan's own name of a module, from the conversion that diffusers ships.
fn native(module: &str) -> String {
    let mut name = module.to_owned();
    for (diffusers, own) in [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
        ("proj_out", "head.head"),
        ("attn1.to_out.0", "self_attn.o"),
        ("attn2.to_out.0", "cross_attn.o"),
        ("attn2.add_k_proj", "cross_attn.k_img"),
        ("attn2.add_v_proj", "cross_attn.v_img"),
        ("attn2.norm_added_k", "cross_attn.norm_k_img"),
        ("attn1.to_", "self_attn."),
        ("attn2.to_", "cross_attn."),
        ("attn1.norm", "self_attn.norm"),
        ("attn2.norm", "cross_attn.norm"),
        (".norm2", ".norm3"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
    ] {
        name = name.replace(diffusers, own);
    }
    name
}

fn engine(model: &str) -> (Built, Arc<Engine>) {
    let model = random_weights::made(&fixtures().join("wan/transformer").join(model));
    let built = Built::plain(model.root());
    let engine = built.engine("transformer");
    (built, engine)
}

/// The same values for the same name.
fn values(name: &str, rows: usize, columns: usize) -> Array2<f32> {
    let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    Array2::from_shape_simple_fn((rows, columns), numbers(seed))
}

/// The file that a tool writes for a model, and what each slot's or parameter's update is.
fn file(dialect: &Dialect, engine: &Engine) -> (NamedTensors, BTreeMap<String, Update>) {
    let (mut tensors, mut expected) = (NamedTensors::new(), BTreeMap::new());
    let spelled = |module: &str| {
        let module = if dialect.native { native(module) } else { module.to_owned() };
        let module = if dialect.underscores { module.replace('.', "_") } else { module };
        format!("{}{module}", dialect.prefix)
    };
    let layers = engine.manifest().slots.iter();
    for slot in layers.filter(|slot| dialect.tables.is_some() || slot.name.starts_with("blocks.")) {
        let Slot { name, out_features, in_features, .. } = slot;
        let down = values(&format!("{name} down"), RANK, *in_features);
        let up = values(&format!("{name} up"), *out_features, RANK);
        let alpha = dialect.alpha.map_or(RANK as f32, |_| 1.0);
        let stem = spelled(name);
        tensors.insert(format!("{stem}{}", dialect.down), Tensor::F32(down.clone().into_dyn()));
        tensors.insert(format!("{stem}{}", dialect.up), Tensor::F32(up.clone().into_dyn()));
        if let Some(integer) = dialect.alpha {
            let alpha = if integer {
                Tensor::I64(ArrayD::from_elem(&[][..], 1))
            } else {
                Tensor::F32(ArrayD::from_elem(&[][..], 1.0))
            };
            tensors.insert(format!("{stem}.alpha"), alpha);
        }
        expected.insert(name.clone(), LowRank { down, up, alpha }.into());
    }
    let Some(tables) = dialect.tables else { return (tensors, expected) };
    for Slot { name, out_features, in_features, .. } in engine.parameters() {
        let difference = values(name, *out_features, *in_features);
        let key = match name.rsplit_once('.') {
            Some((module, "weight")) => format!("{}.diff", spelled(module)),
            Some((module, "bias")) => format!("{}.diff_b", spelled(module)),
            Some((module, "scale_shift_table")) => format!("{}{tables}", spelled(module)),
            None => format!("{}{tables}", spelled("head")),
            Some((_, "pos_embed")) => format!("{}img_emb.emb_pos.diff", dialect.prefix),
            other => panic!("{name}: {other:?}"),
        };
        let stored = match name.ends_with("scale_shift_table") {
            true => difference.clone().insert_axis(Axis(0)).into_dyn(),
            false if *out_features == 1 => difference.index_axis(Axis(0), 0).to_owned().into_dyn(),
            false => difference.clone().into_dyn(),
        };
        tensors.insert(key, Tensor::F32(stored));
        expected.insert(name.clone(), Update::Full(difference));
    }
    (tensors, expected)
}

fn read(tensors: &NamedTensors, engine: &Engine, allow_partial: bool) -> Result<CoveredAdapter, AdapterError> {
    let scratch = Scratch::new();
    let path: PathBuf = scratch.path("lora.safetensors");
    write_tensors(&path, tensors, &IndexMap::new()).unwrap();
    read_adapter(&path, engine, &ReadOptions { allow_partial, ..ReadOptions::default() })
}

#[test]
fn every_key_of_forty_sets_is_applied_to_what_it_names() {
    let mut sets = 0;
    for model in MODELS {
        let (_built, engine) = engine(model);
        for dialect in &DIALECTS {
            let what = format!("{} for {model}", dialect.name);
            let (tensors, expected) = file(dialect, &engine);
            let loaded = read(&tensors, &engine, false).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(loaded.coverage.counts(), (tensors.len(), 0, 0), "{what}");
            assert_eq!(loaded.coverage.covered(), expected.len(), "{what}");
            for (slot, update) in &expected {
                assert!(loaded.adapter.layers.get(slot).is_some_and(|found| **found == *update), "{what}: {slot}");
            }
            sets += 1;
        }
    }
    assert_eq!(sets, 40);
}

/// A file for one model on another: what it lacks is an error key by key, and alone left out where that is allowed.
#[test]
fn keys_for_layers_that_a_model_lacks_are_errors_and_nothing_else() {
    let engines = MODELS.map(|model| (model, engine(model)));
    for (theirs, (_, from)) in &engines {
        for (ours, (_, to)) in &engines {
            let names =
                |engine: &Engine| engine.changeable().iter().map(|slot| slot.name.clone()).collect::<BTreeSet<_>>();
            let (theirs_have, ours_have) = (names(from), names(to));
            let (tensors, expected) = file(&DIALECTS[7], from);
            let lacking: BTreeSet<&String> = theirs_have.difference(&ours_have).collect();
            let fits = |slot: &Slot| {
                from.changeable().iter().any(|other| {
                    (&other.name, other.out_features, other.in_features)
                        == (&slot.name, slot.out_features, slot.in_features)
                })
            };
            // Of other widths nothing of the file is applied.
            if !to.changeable().iter().filter(|slot| theirs_have.contains(&slot.name)).all(fits) {
                assert!(matches!(read(&tensors, to, true), Err(AdapterError::Mismatch { .. })), "{theirs} on {ours}");
                continue;
            }
            let strict = read(&tensors, to, false);
            assert_eq!(strict.is_ok(), lacking.is_empty(), "{theirs} on {ours}");
            let loaded = read(&tensors, to, true).unwrap_or_else(|error| panic!("{theirs} on {ours}: {error}"));
            let applied: BTreeSet<&String> = loaded.adapter.layers.keys().collect();
            assert_eq!(applied, expected.keys().filter(|name| !lacking.contains(name)).collect(), "{theirs} on {ours}");
            let ignored =
                loaded.coverage.keys.iter().filter(|key| matches!(key.outcome, Outcome::Ignored { .. })).count();
            assert_eq!(ignored > 0, !lacking.is_empty(), "{theirs} on {ours}");
        }
    }
}
