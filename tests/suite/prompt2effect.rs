//! Prompt2Effect in its profiles, against a second reading of its definition (`tests/reference/prompt2effect.py`).

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::AdapterSet;
use v2l_runtime::lora::adapter::{Adapter, ReadOptions, read_adapter};
use v2l_runtime::predict::Pristine;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::bad_input::{edit_json, refuse};
use crate::packages::{self, factors, kept, norm, open, predict};
use crate::support::{Built, assert_close, f32s, fixtures};
use crate::tools::{Scratch, args, command, run_ok, sample_model, tamper};

const TOLERANCE: f64 = 1e-5;
/// Cases with the fixtures of their bases.
pub(crate) const CASES: [(&str, &str); 5] = [
    ("paper_wan", "wan/transformer/t2v"),
    ("paper_cogvideox", "transformer/rotary_t2v"),
    ("square", "wan/transformer/flf2v"),
    ("simpletuner", "wan/transformer/t2v"),
    ("between", "wan/transformer/t2v"),
];

pub(crate) fn case(name: &str) -> PathBuf {
    fixtures().join("prompt2effect").join(name)
}

fn base_of(name: &str) -> PathBuf {
    let (_, base) = CASES.iter().find(|(case, _)| *case == name).unwrap();
    fixtures().join(base)
}

/// The base of a case with its predictor, both free to be changed before they are compiled.
fn build(name: &str, change: impl FnOnce(&Path, &Path)) -> Built {
    packages::build(&case(name), &base_of(name), change)
}

fn given(name: &str) -> NamedTensors {
    packages::given(&case(name))
}

fn distance(name: &str, adapter: &Adapter) -> f64 {
    packages::distance(&case(name), adapter)
}

#[test]
fn factors_of_every_profile_are_those_of_its_definition_with_the_cache_cold_and_warm() {
    for (name, _) in CASES {
        let found = distance(name, &packages::check_kept(name, &build(name, |_, _| {}), &given(name)));
        assert!(found <= TOLERANCE, "{name}: {found:e}");
    }
}

#[test]
fn what_is_kept_belongs_to_one_base_and_one_predictor() {
    let (cache, tensors) = (Scratch::new(), given("square"));
    let before = predict(&mut open(&build("square", |_, _| {}), cache.root()), &tensors);
    let nudge = |file: &Path, name: &str| {
        tamper(file, |tensors| {
            let mut first = f32::from_le_bytes(tensors[name].data[..4].try_into().unwrap());
            first += 0.5;
            tensors.get_mut(name).unwrap().data[..4].copy_from_slice(&first.to_le_bytes());
        });
    };
    let weights = "diffusion_pytorch_model.safetensors";
    let other_base = build("square", |_, base| nudge(&base.join(weights), "blocks.0.attn1.to_q.weight"));
    assert_ne!(predict(&mut open(&other_base, cache.root()), &tensors), before);
    assert_eq!(kept(cache.root()).len(), 2, "one element of a weight");
    let other = build("square", |package, _| nudge(&package.join("model.safetensors"), "latents"));
    assert_ne!(predict(&mut open(&other, cache.root()), &tensors), before);
    assert_eq!(kept(cache.root()).len(), 3, "one element of the predictor");
}

/// Exchanges two tensors of a checkpoint.
fn exchange(file: &Path, names: [&str; 2]) {
    tamper(file, |tensors| {
        let [a, b] = names.map(|name| tensors[name].clone());
        tensors.insert(names[0].to_owned(), b);
        tensors.insert(names[1].to_owned(), a);
    });
}

/// Exchanges two rows of a table.
fn exchange_rows(file: &Path, name: &str, [a, b]: [usize; 2]) {
    tamper(file, |tensors| {
        let table = tensors.get_mut(name).unwrap();
        let width = table.data.len() / table.shape[0];
        for i in 0..width {
            table.data.swap(a * width + i, b * width + i);
        }
    });
}

#[test]
fn wrong_orders_change_the_factors_beyond_the_tolerance() {
    const FAR: f64 = 100.0 * TOLERANCE;
    let far = |what: &str, name: &str, adapter: &Adapter| {
        let found = distance(name, adapter);
        assert!(found > FAR, "{what}: {found:e}");
    };
    let built = build("simpletuner", |package, _| {
        exchange_rows(&package.join("model.safetensors"), "layer_emb.weight", [0, 3]);
    });
    far("layers numbered differently", "simpletuner", &factors(&built, &given("simpletuner")));
    let built = build("square", |package, _| {
        let file = package.join("model.safetensors");
        for part in ["weight", "bias"] {
            exchange(&file, [&format!("row_enc.{part}"), &format!("col_enc.{part}")]);
        }
    });
    far("rows and columns swapped", "square", &factors(&built, &given("square")));
    for name in ["paper_wan", "simpletuner"] {
        let mut unmasked = given(name);
        unmasked.shift_remove("text_attention_mask").unwrap();
        far("the text's mask dropped", name, &factors(&build(name, |_, _| {}), &unmasked));
    }
}

#[test]
fn rows_behind_the_mask_change_nothing() {
    let (built, tensors) = (build("paper_wan", |_, _| {}), given("paper_wan"));
    let mut padded = tensors.clone();
    let mut hidden = f32s(&tensors["text_hidden"]);
    hidden.slice_mut(ndarray::s![.., 5.., ..]).fill(9.0);
    padded.insert("text_hidden".to_owned(), Tensor::F32(hidden));
    assert_eq!(factors(&built, &padded), factors(&built, &tensors));
}

#[test]
fn weights_are_read_pristine_whatever_is_fused() {
    let (built, tensors, cache) = (build("simpletuner", |_, _| {}), given("simpletuner"), Scratch::new());
    let mut generator = open(&built, cache.root());
    let first = predict(&mut generator, &tensors);
    generator.set_adapters(&AdapterSet::from([(&first, 4.0)]), None).unwrap();
    std::fs::remove_file(&kept(cache.root())[0]).unwrap();
    assert_eq!(predict(&mut generator, &tensors), first);
    // The control: a base into which the adapter was written gives something else.
    let engine = built.engine("transformer");
    let fused = build("simpletuner", |_, base| {
        tamper(&base.join("diffusion_pytorch_model.safetensors"), |weights| {
            for (slot, layer) in &first.layers {
                let found = engine.manifest().slot(slot).unwrap();
                let whole = Pristine::open(&engine, found).unwrap().row_panel(0, found.out_features);
                let layer = layer.to_low_rank();
                let whole = whole + layer.up.dot(&layer.down) * 4.0;
                let data = whole.iter().flat_map(|x| x.to_le_bytes()).collect();
                weights.get_mut(&format!("{slot}.weight")).unwrap().data = data;
            }
        });
    });
    let found = distance("simpletuner", &factors(&fused, &tensors));
    assert!(found > 100.0 * TOLERANCE, "fused in place of pristine: {found:e}");
}

/// The tools' own directory of a case.
fn compiled(scratch: &Scratch, name: &str) -> PathBuf {
    let (package, base) = (scratch.path("package"), scratch.path("base"));
    scratch.copy(&case(name), "package");
    scratch.copy(&base_of(name), "base");
    run_ok("export", args![base, "-o", scratch.path("bundle"), "--predictor", package]);
    run_ok("compile", args![scratch.path("bundle"), "-o", scratch.path("engines")]);
    scratch.path("engines")
}

#[test]
fn effects_blend_exactly_and_recompress_with_the_energy_that_they_keep() {
    let scratch = Scratch::new();
    let engines = compiled(&scratch, "simpletuner");
    let file = case("simpletuner").join("effect.safetensors");
    let mut other = given("simpletuner");
    other.insert("text_hidden".to_owned(), Tensor::F32(f32s(&other["text_hidden"]) * -0.7));
    let second = scratch.path("other.safetensors");
    write_tensors(&second, &other, &Default::default()).unwrap();
    let weighted = |path: &Path, weight: &str| format!("{}={weight}", path.display());
    let cache = scratch.path("cache");
    let run = |extra: &[std::ffi::OsString], to: &str| {
        let to = scratch.path(to);
        let own = args!["--engine", &engines, "--prediction-cache", &cache, "--save-lora", &to];
        let run = run_ok("run", &[own, extra].concat());
        let engine = v2l_runtime::engine::Engine::open(engines.join("transformer.engine")).unwrap();
        (read_adapter(&to, engine.manifest(), &ReadOptions::default()).unwrap().adapter, run.stderr)
    };
    let (a, _) = run(args!["--effect-embeds", &file], "a.safetensors");
    let (b, _) = run(args!["--effect-embeds", &second], "b.safetensors");
    let parts = args!["--effect-embeds", weighted(&file, "0.7"), "--effect-embeds", weighted(&second, "-0.3")];
    let (blend, _) = run(parts, "blend.safetensors");
    let rank2 = [parts, args!["--effect-rank", "8"]].concat();
    let (whole, said) = run(&rank2, "whole.safetensors");
    assert!(said.contains("rank 8 keeps 100.00 %"), "{said}");
    for (slot, layer) in &blend.layers {
        assert_eq!(layer.rank(), a.layers[slot].rank() + b.layers[slot].rank());
        let delta = |adapter: &Adapter| {
            let layer = adapter.layers[slot].to_low_rank();
            layer.up.mapv(f64::from).dot(&layer.down.mapv(f64::from)) * f64::from(layer.scale())
        };
        let expected = delta(&a) * 0.7 - delta(&b) * 0.3;
        let as_f32 = |x: ndarray::Array2<f64>| x.mapv(|x| x as f32).into_dyn();
        assert_close(slot, &as_f32(delta(&blend)), &as_f32(expected.clone()), 1e-6);
        assert_close(slot, &as_f32(delta(&whole)), &as_f32(expected), 1e-5);
    }
    let (alone, _) = run(&[args!["--effect-embeds", weighted(&file, "1")], args![]].concat(), "alone.safetensors");
    assert_eq!(alone.layers, a.layers, "the end of an interpolation is its end");
    // A factor's mean is another update.
    let slot = &a.layers.keys().next().unwrap().clone();
    let (x, y) = (a.layers[slot].to_low_rank(), b.layers[slot].to_low_rank());
    let mean = (&x.up + &y.up).dot(&(&x.down + &y.down)) * 0.25;
    let exact = (x.up.dot(&x.down) + y.up.dot(&y.down)) * 0.5;
    assert!(norm(&(&mean - &exact)) > 0.1 * norm(&exact));
}

#[test]
fn prompt_goes_through_the_pipelines_own_encoder_or_one_beside_the_predictor() {
    let (scratch, cache) = (Scratch::new(), Scratch::new());
    let package = scratch.copy(&case("paper_cogvideox"), "package");
    edit_json(&package.join("config.json"), |config| config["text_len"] = json!(12));
    let run = |engines: &Path, extra: &[std::ffi::OsString]| {
        command("run", &[args!["--engine", engines, "--prediction-cache", cache.root()], extra].concat())
    };
    // The sample's transformer has other sizes in between, and the same layers.
    run_ok("export", args![sample_model(), "-o", scratch.path("b1"), "--predictor", &package]);
    run_ok("compile", args![scratch.path("b1"), "-o", scratch.path("e1")]);
    let own = scratch.path("own.safetensors");
    let saved = crate::tools::output(run(&scratch.path("e1"), args!["--effect", "a red fox", "--save-lora", &own]));
    assert_eq!(saved.code, 0, "{}", saved.stderr);
    let long = "a very long prompt of many words that goes on and on and on without any end in sight".repeat(3);
    let unknown = "the tokenizer knows nothing of it";
    for (text, expected) in [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("\u{1F525}\u{1F525}", unknown),
        ("\u{200B}\u{200D}", unknown),
        (&long[..], "the predictor reads 12 at most"),
    ] {
        let message =
            refuse(&scratch, run(&scratch.path("e1"), args!["--effect", text, "--save-lora", scratch.path("x")]), 2);
        assert!(message.contains(expected), "{message}");
    }
    // Without an encoder the way out is named; with one beside the predictor it is taken.
    let transformer = sample_model().join("transformer");
    run_ok("export", args![&transformer, "-o", scratch.path("b2"), "--predictor", &package]);
    run_ok("compile", args![scratch.path("b2"), "-o", scratch.path("e2")]);
    let message =
        refuse(&scratch, run(&scratch.path("e2"), args!["--effect", "a fox", "--save-lora", scratch.path("x")]), 2);
    assert!(message.contains("--effect-embeds FILE") && message.contains("--predictor-text-encoder"), "{message}");
    scratch.copy(&sample_model().join("text_encoder"), "package/text_encoder");
    scratch.copy(&sample_model().join("tokenizer"), "package/text_encoder/tokenizer");
    run_ok("export", args![&transformer, "-o", scratch.path("b3"), "--predictor", &package]);
    run_ok("compile", args![scratch.path("b3"), "-o", scratch.path("e3")]);
    let beside = scratch.path("beside.safetensors");
    run_ok(
        "run",
        args![
            "--engine",
            scratch.path("e3"),
            "--effect",
            "a red fox",
            "--save-lora",
            &beside,
            "--prediction-cache",
            cache.root()
        ],
    );
    // CogVideoX's own pipeline lets its encoder see padding, which a predictor's own does not.
    let (first, second) = (read_tensors(&own).unwrap(), read_tensors(&beside).unwrap());
    assert!(first.keys().eq(second.keys()));
    let rain = scratch.path("rain.safetensors");
    run_ok(
        "run",
        args![
            "--engine",
            scratch.path("e3"),
            "--effect",
            "heavy rain",
            "--save-lora",
            &rain,
            "--prediction-cache",
            cache.root()
        ],
    );
    assert_ne!(read_tensors(&rain).unwrap(), second);
}

fn export(scratch: &Scratch, base: &Path, package: &Path) -> std::process::Command {
    command("export", args![base, "-o", scratch.path("bundle"), "--predictor", package])
}

#[test]
fn predictors_that_do_not_fit_are_refused_with_what_they_lack() {
    let scratch = Scratch::new();
    let wan = scratch.copy(&fixtures().join("wan/transformer/t2v"), "wan");
    let cogvideox = scratch.copy(&fixtures().join("transformer/rotary_t2v"), "cogvideox");
    let package = scratch.copy(&case("paper_wan"), "package");
    let message = refuse(&scratch, export(&scratch, &cogvideox, &package), 5);
    assert!(message.contains("of the type `cross_attn.q`") && message.contains("another base"), "{message}");
    let listed = scratch.copy(&case("simpletuner"), "listed");
    let config = package.join("config.json");
    let refused = |change: &dyn Fn(&mut Json), exit: i32| {
        let before = std::fs::read(&config).unwrap();
        edit_json(&config, change);
        let message = refuse(&scratch, export(&scratch, &wan, &package), exit);
        std::fs::write(&config, before).unwrap();
        message
    };
    let message = refused(&|config| config["enc_groups"]["ffn.0"]["d_in"] = json!(99), 5);
    assert!(message.contains("the predictor reads 99"), "{message}");
    let message = refused(&|config| _ = config["module_vocab"].as_array_mut().unwrap().pop(), 5);
    assert!(message.contains("a type is missing"), "{message}");
    let message = refused(&|config| config["model_type"] = json!("prompt3effect"), 4);
    assert!(message.contains("`prompt3effect`"), "{message}");
    let message = refused(&|config| config["pos_code"] = json!("rotary"), 5);
    assert!(message.contains("sinus, none"), "{message}");
    let message = refused(&|config| config["rank"] = json!(5), 5);
    assert!(message.contains("`rank` is 5"), "{message}");
    tamper(&listed.join("model.safetensors"), |tensors| _ = tensors.remove("latents"));
    let message = refuse(&scratch, export(&scratch, &wan, &listed), 5);
    assert!(message.contains("`latents`"), "{message}");
    let message = refuse(&scratch, export(&scratch, &wan, &scratch.path("package/model.safetensors.none")), 9);
    assert!(!message.is_empty());
}

#[test]
fn pickles_and_archives_are_refused_with_the_converters_name() {
    let scratch = Scratch::new();
    let wan = scratch.copy(&fixtures().join("wan/transformer/t2v"), "wan");
    for (name, start) in [("a.pt", &b"PK\x03\x04rest"[..]), ("b.pth", &[0x80, 2, b'}', b'q'])] {
        let file = scratch.write(name, start);
        let message = refuse(&scratch, export(&scratch, &wan, &file), 4);
        assert!(message.contains("export/convert/predictor.py"), "{message}");
        let folder = scratch.write(&format!("folder_{name}/{name}"), start);
        let message = refuse(&scratch, export(&scratch, &wan, folder.parent().unwrap()), 4);
        assert!(message.contains("export/convert/predictor.py"), "{message}");
    }
}
