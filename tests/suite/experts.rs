//! Adapters of Wan 2.2's two transformers: which of them a file is for, and swaps of both as one transaction.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array5, ArrayD};
use v2l_runtime::components::{Components, TRANSFORMER, TRANSFORMER_2};
use v2l_runtime::engine::Engine;
use v2l_runtime::error::ErrorClass;
use v2l_runtime::generator::{Generator, Options};
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::AdapterSet;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat, Experts, LowRank, ReadOptions, Update, write_adapter};
use v2l_runtime::lora::fuse::{FuseReport, FusedCache};
use v2l_runtime::options::OrtWeights;
use v2l_runtime::request::Request;
use v2l_runtime::tensor::Tensor;

use crate::support::{Case, WEIGHT_MODES, factors_mut, run};
use crate::swaps::{adapter, numbers};
use crate::tools::{Run, Scratch, args, command, output, run_ok, tamper};
use crate::wan_pipelines::{arguments, difference, engines, folder, runs, tensor, write_one};

/// A model with two transformers, an adapter file for each, and the noise to begin with.
pub(crate) struct Pair {
    pub(crate) model: Scratch,
    high: PathBuf,
    low: PathBuf,
    noise: PathBuf,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let model = engines(&runs()["experts"]);
        let made = |component: &str, name: &str, seed| {
            let engine = Engine::open(model.path(&format!("engines/{component}.engine"))).unwrap();
            let blocks = engine.manifest().slots.iter().filter(|slot| slot.name.starts_with("blocks."));
            let file = model.path(name);
            write_adapter(&file, &adapter(name, blocks, 3, seed), AdapterFormat::Comfy).unwrap();
            file
        };
        let high = made("transformer", "effect_HighNoise.safetensors", 1);
        let low = made("transformer_2", "effect_LowNoise.safetensors", 2);
        let noise = model.path("noise.safetensors");
        write_one(&noise, "latents", tensor(&folder().join("experts.safetensors"), "latents").into_dyn().into());
        Self { model, high, low, noise }
    }

    fn command(&self, loras: &[OsString], found: &Path) -> Run {
        let mut arguments = arguments(&runs()["experts"], &self.model);
        arguments.extend(args!["--latents", &self.noise, "--outputs", found].iter().cloned());
        arguments.extend(loras.iter().flat_map(|lora| [OsString::from("--lora"), lora.clone()]));
        output(command("run", &arguments))
    }

    /// The final latents with these `--lora`, and what was said.
    fn latents(&self, loras: &[OsString]) -> (Array5<f32>, String) {
        let found = self.model.path("out.safetensors");
        let Run { code, stderr, .. } = self.command(loras, &found);
        assert_eq!(code, 0, "{stderr}");
        (tensor(&found, "latents"), stderr)
    }
}

fn with(path: &Path, rest: &str) -> OsString {
    let mut text = path.as_os_str().to_owned();
    text.push(rest);
    text
}

/// Adds `strength · up · down` to a transformer's checkpoint.
fn merge(checkpoint: &Path, file: &Path, strength: f32) {
    let adapter = read_tensors(file).unwrap();
    tamper(checkpoint, |tensors| {
        for (key, up) in adapter.iter().filter(|(key, _)| key.ends_with(".lora_B.weight")) {
            let stem = key.strip_suffix(".lora_B.weight").unwrap();
            let matrix = |tensor: &Tensor| tensor.to_f32().unwrap().into_dimensionality::<ndarray::Ix2>().unwrap();
            let (up, down) = (matrix(up), matrix(&adapter[&format!("{stem}.lora_A.weight")]));
            let alpha = adapter[&format!("{stem}.alpha")].to_f32().unwrap().sum();
            let scale = if down.nrows() == 0 { 0.0 } else { strength * alpha / down.nrows() as f32 };
            let native = [
                ("self_attn.q", "attn1.to_q"),
                ("self_attn.k", "attn1.to_k"),
                ("self_attn.v", "attn1.to_v"),
                ("self_attn.o", "attn1.to_out.0"),
                ("cross_attn.q", "attn2.to_q"),
                ("cross_attn.k", "attn2.to_k"),
                ("cross_attn.v", "attn2.to_v"),
                ("cross_attn.o", "attn2.to_out.0"),
                ("ffn.0", "ffn.net.0.proj"),
                ("ffn.2", "ffn.net.2"),
            ];
            let mut name = stem.strip_prefix("diffusion_model.").unwrap().to_owned();
            for (own, diffusers) in native {
                if let Some(block) = name.strip_suffix(own) {
                    name = format!("{block}{diffusers}");
                    break;
                }
            }
            let weight = tensors.get_mut(&format!("{name}.weight")).unwrap();
            let delta = up.dot(&down) * scale;
            for (bytes, delta) in weight.data.chunks_exact_mut(4).zip(&delta) {
                let value = f32::from_le_bytes(bytes.try_into().unwrap()) + delta;
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    });
}

#[test]
fn pair_is_what_merging_each_file_into_its_checkpoint_is() {
    let pair = Pair::new();
    let (base, _) = pair.latents(&[]);
    let (found, said) = pair.latents(&[with(&pair.high, "=3"), with(&pair.low, "=1.5")]);
    assert!(difference(&base, &found) > 0.01);
    assert!(said.contains("for transformer (high noise): its name says so"), "{said}");
    assert!(said.contains("for transformer_2 (low noise): its name says so"), "{said}");
    let (explicit, _) = pair.latents(&[with(&pair.low, "@low=1.5"), with(&pair.high, "@high=3")]);
    assert_eq!(found, explicit);

    // The same adapters in one file, as diffusers spells the two.
    let mut generator = Generator::open(pair.model.path("engines"), &Options::default()).unwrap();
    let mut both = Adapter { name: "both".to_owned(), ..Adapter::default() };
    for (file, strength) in [(&pair.high, 3.0), (&pair.low, 1.5)] {
        let mut read = (*generator.load_adapter(file, &ReadOptions::default()).unwrap().adapter).clone();
        read.layers.values_mut().for_each(|update| factors_mut(update).alpha *= strength);
        both.layers.extend(read.layers);
    }
    let file = pair.model.path("both.safetensors");
    write_adapter(&file, &both, AdapterFormat::Diffusers).unwrap();
    let (together, said) = pair.latents(&[file.clone().into()]);
    assert_eq!(together, found);
    assert!(said.contains("for transformer and transformer_2: its keys say so"), "{said}");
    let refused = write_adapter(&file, &both, AdapterFormat::Comfy).unwrap_err().to_string();
    assert!(refused.contains("transformer_2"), "{refused}");

    for (component, file, strength) in [("transformer", &pair.high, 3.0), ("transformer_2", &pair.low, 1.5)] {
        let checkpoint = format!("model/{component}/diffusion_pytorch_model.safetensors");
        merge(&pair.model.path(&checkpoint), file, strength);
    }
    std::fs::remove_dir_all(pair.model.path("bundle")).unwrap();
    std::fs::remove_dir_all(pair.model.path("engines")).unwrap();
    run_ok("export", args![pair.model.path("model"), "-o", pair.model.path("bundle")]);
    run_ok("compile", args![pair.model.path("bundle"), "-o", pair.model.path("engines")]);
    let (merged, _) = pair.latents(&[]);
    let away = difference(&merged, &found);
    assert!(away <= 1e-4, "{away}");
}

#[test]
fn branches_carry_the_adapters_of_both() {
    let pair = Pair::new();
    // With biases, norms and tables, which no branch stands beside.
    let engine = Engine::open(pair.model.path("engines/transformer.engine")).unwrap();
    let whole = pair.model.path("whole_HighNoise.safetensors");
    let slots = engine.changeable().iter().filter(|slot| !slot.name.starts_with("patch_embedding"));
    write_adapter(&whole, &adapter("whole", slots, 2, 7), AdapterFormat::Comfy).unwrap();
    let loras = [with(&pair.high, "@both=0.5"), with(&pair.low, "@low=0.7"), with(&whole, "=0.2")];
    let (fused, _) = pair.latents(&loras);
    std::fs::remove_dir_all(pair.model.path("engines")).unwrap();
    let (bundle, engines) = (pair.model.path("bundle"), pair.model.path("engines"));
    run_ok("compile", args![bundle, "-o", engines, "--lora-rank", "8", "--fuse-modes", "branch"]);
    let (beside, _) = pair.latents(&loras);
    let away = difference(&fused, &beside);
    assert!(away <= 1e-4, "{away}");
}

#[test]
fn files_that_reach_no_transformer_or_the_wrong_one_are_refused() {
    let pair = Pair::new();
    let found = pair.model.path("refused.safetensors");
    let refuse = |loras: &[OsString], code: i32, words: &str| {
        let run = pair.command(loras, &found);
        assert!(run.code == code && run.stderr.contains(words), "{}: {}", run.code, run.stderr);
        assert!(!found.exists());
    };
    refuse(&[with(&pair.high, "@middle")], 2, "expected high, low or both, found `middle`");
    refuse(&[with(&pair.high, "@high"), with(&pair.high, "=0.5")], 2, "is given twice for transformer");
    refuse(&[with(&pair.high, "@both"), with(&pair.high, "@low")], 2, "is given twice for transformer_2");
    // Of another width.
    let wide = pair.model.path("wide_low_noise.safetensors");
    std::fs::copy(&pair.low, &wide).unwrap();
    tamper(&wide, |tensors| {
        let key = "diffusion_model.blocks.0.self_attn.k.lora_A.weight";
        let wider = tensors[key].resized(&[1, 32]);
        tensors.insert(key.to_owned(), wider);
    });
    refuse(
        &[with(&pair.high, ""), wide.clone().into()],
        5,
        "wide_low_noise.safetensors: key `diffusion_model.blocks.0.self_attn.k",
    );
    // Half a pair.
    std::fs::copy(&pair.low, &wide).unwrap();
    tamper(&wide, |tensors| {
        tensors.remove("diffusion_model.blocks.0.self_attn.k.lora_A.weight");
    });
    refuse(&[wide.clone().into()], 5, "its down factor too");
    // A third transformer.
    std::fs::copy(&pair.low, &wide).unwrap();
    tamper(&wide, |tensors| {
        let renamed = std::mem::take(tensors).into_iter();
        *tensors = renamed.map(|(key, t)| (key.replace("diffusion_model.", "transformer_3."), t)).collect();
    });
    refuse(&[wide.into()], 5, "match no slot");

    let sample = crate::tools::sample();
    let video = pair.model.path("v.safetensors");
    let arguments =
        args!["--engine", sample.engines(), "--lora", with(&pair.high, "@high"), "-o", &video, "--prompt", "a"];
    let run = output(command("run", arguments));
    assert!(run.code == 5 && run.stderr.contains("this model has one"), "{}: {}", run.code, run.stderr);
}

#[test]
fn one_forward_takes_what_is_for_its_component() {
    let pair = Pair::new();
    let step = |component: &str, loras: &[OsString]| {
        let case = folder().parent().unwrap().join("transformer/t2v/case_b1_t1_8x4_s5.safetensors");
        let inputs = pair.model.path("inputs.safetensors");
        let given = read_tensors(case).unwrap();
        let given =
            given.into_iter().filter_map(|(name, t)| Some((name.strip_prefix("input.")?.to_owned(), t))).collect();
        v2l_runtime::io::weights::write_tensors(&inputs, &given, &indexmap::IndexMap::new()).unwrap();
        let found = pair.model.path("forward.safetensors");
        let mut arguments = args![
            "--engine",
            pair.model.path("engines"),
            "--component",
            component,
            "--inputs",
            inputs,
            "--outputs",
            &found
        ]
        .to_vec();
        arguments.extend(loras.iter().flat_map(|lora| [OsString::from("--lora"), lora.clone()]));
        let run = output(command("run", &arguments));
        (
            run.code,
            run.stderr,
            if run.code == 0 {
                read_tensors(found).unwrap()["sample"].to_f32().unwrap()
            } else {
                ArrayD::zeros(vec![0])
            },
        )
    };
    let loras = [with(&pair.high, ""), with(&pair.low, "")];
    for (component, own, other) in [("transformer", &loras[0], &loras[1]), ("transformer_2", &loras[1], &loras[0])] {
        let ((code, said, all), (_, _, alone)) = (step(component, &loras), step(component, std::slice::from_ref(own)));
        assert_eq!(code, 0, "{said}");
        assert_eq!(all, alone);
        assert_ne!(all, step(component, &[]).2);
        let (code, said, _) = step(component, std::slice::from_ref(other));
        assert!(code == 2 && said.contains("no --lora is for"), "{code}: {said}");
    }
}

/// Four steps, so that both transformers run.
fn request() -> Request {
    let settings = &runs()["experts"]["settings"];
    let number = |key: &str| settings[key].as_u64().unwrap() as usize;
    Request {
        prompt: "a cat".to_owned(),
        width: Some(number("width")),
        height: Some(number("height")),
        num_frames: Some(number("num_frames")),
        num_inference_steps: Some(4),
        ..Request::default()
    }
}

#[test]
fn swaps_of_both_are_transactions() {
    let pair = Pair::new();
    let mut generator = Generator::open(pair.model.path("engines"), &Options::default()).unwrap();
    let request = request();
    let mut load = |path: &Path, experts| {
        let options = ReadOptions { experts, ..ReadOptions::default() };
        generator.load_adapter(path, &options).unwrap().adapter
    };
    let (high, low) = (load(&pair.high, None), load(&pair.low, None));
    let both = load(&pair.low, Some(Experts::Both));
    let mut damaged = (*low).clone();
    damaged.name = "damaged".to_owned();
    factors_mut(damaged.layers.values_mut().last().unwrap()).up.fill(f32::NAN);
    let mut latents = |set: &[(&Adapter, f32)]| {
        let applied = generator.set_adapters(&set.into(), None).unwrap();
        assert_eq!(
            applied.slots,
            set.iter().flat_map(|(a, _)| a.layers.keys()).collect::<std::collections::HashSet<_>>().len()
        );
        let kept = generator.prepare(request.clone()).unwrap().sample(&mut ()).unwrap().latents;

        let error = generator.set_adapters(&AdapterSet::from([(&*high, 1.0), (&damaged, 1.0)]), None).unwrap_err();
        assert_eq!(error.class(), ErrorClass::BadAdapter);
        let asked = AtomicUsize::new(0);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) > 2;
        let other = AdapterSet::from([(&*high, 2.0), (&*low, 2.0)]);
        let error = generator.set_adapters(&other, Some(&stop)).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Cancelled);
        assert_eq!(generator.prepare(request.clone()).unwrap().sample(&mut ()).unwrap().latents, kept);
        kept
    };
    let base = latents(&[]);
    let states: [&[(&Adapter, f32)]; 4] =
        [&[(&high, 1.0)], &[(&low, 0.5)], &[(&high, 1.0), (&low, 0.5)], &[(&both, 1.0)]];
    let first = states.map(&mut latents);
    assert!(first.iter().all(|found| *found != base));
    assert!((1..first.len()).all(|i| first[i] != first[i - 1]));
    for i in [2, 0, 3, 1] {
        assert_eq!(latents(states[i]), first[i]);
    }
    assert_eq!(latents(&[]), base);
}

/// The pair's adapters, read for the generator.
fn both_of(pair: &Pair, generator: &mut Generator) -> [Arc<Adapter>; 2] {
    [&pair.high, &pair.low].map(|file| generator.load_adapter(file, &ReadOptions::default()).unwrap().adapter)
}

/// Names of the slots that a report is about, in order.
fn reported(report: &FuseReport) -> Vec<String> {
    let mut names: Vec<String> = report.slots.iter().map(|slot| slot.slot.clone()).collect();
    names.sort();
    names
}

#[test]
fn second_transformer_is_fused_once_when_it_is_opened_and_then_reported_whole() {
    let pair = Pair::new();
    for weights in WEIGHT_MODES {
        let cache = Scratch::new();
        let mut options = Options::default();
        options.engines.weights = weights;
        options.engines.fused_cache = Some(FusedCache { folder: cache.path("fused"), bytes: 1 << 30 });
        let kept = || std::fs::read_dir(cache.path("fused")).map_or(0, Iterator::count);
        let mut generator = Generator::open(pair.model.path("engines"), &options).unwrap();
        let [high, low] = both_of(&pair, &mut generator);
        let second = |report: &FuseReport| {
            let names = reported(report).into_iter();
            names.filter(|name| name.starts_with("transformer_2.")).collect::<Vec<_>>()
        };
        let mut all: Vec<String> = low.layers.keys().cloned().collect();
        all.sort();
        assert!(all.iter().all(|name| name.starts_with("transformer_2.")));

        let applied = generator.set_adapters(&AdapterSet::from([(&*high, 1.0), (&*low, 0.5)]), None).unwrap();
        let sampled = second(&applied.fused.unwrap());
        match weights {
            // Nothing is lost but the last bit.
            OrtWeights::F32 => assert!(sampled.is_empty(), "{sampled:?}"),
            _ => assert!(
                !sampled.is_empty() && sampled.len() < all.len() && sampled.iter().all(|name| all.contains(name)),
                "{sampled:?}"
            ),
        }
        assert_eq!(kept(), 1, "{weights:?}: the first alone is fused");
        assert!(generator.directory().report(TRANSFORMER_2).is_none());

        let video = generator.prepare(request()).unwrap().sample(&mut ()).unwrap().latents;
        assert_eq!(kept(), 2, "{weights:?}: the second is fused when it is opened");
        assert_eq!(second(&generator.directory().fused()), all, "{weights:?}");

        // Opened again, both have what was kept of that one fuse.
        for component in [TRANSFORMER, TRANSFORMER_2] {
            generator.directory().session(component, "step").unwrap();
            assert_eq!(
                generator.directory().report(component).unwrap().fused.kept,
                Some(true),
                "{weights:?} {component}"
            );
        }
        assert_eq!(generator.prepare(request()).unwrap().sample(&mut ()).unwrap().latents, video);
        assert_eq!(kept(), 2, "{weights:?}: nothing else is fused for another video");
        assert_eq!(second(&generator.directory().fused()), all, "{weights:?}");
    }
}

#[test]
fn layers_that_do_not_fit_the_second_transformer_are_refused_before_the_first_changes() {
    let pair = Pair::new();
    for weights in WEIGHT_MODES {
        let mut options = Options::default();
        options.engines.weights = weights;
        let mut generator = Generator::open(pair.model.path("engines"), &options).unwrap();
        let [high, low] = both_of(&pair, &mut generator);
        let parameter = {
            let engine = generator.directory().engine(TRANSFORMER_2).unwrap();
            let bias = engine.parameters().iter().find(|slot| slot.name.starts_with("blocks.")).unwrap().clone();
            (format!("transformer_2.{}", bias.name), ndarray::Array2::zeros((bias.out_features, bias.in_features)))
        };
        let changed = |change: &dyn Fn(&mut Adapter)| {
            let mut adapter = Adapter { name: "misfit".to_owned(), ..(*low).clone() };
            change(&mut adapter);
            adapter
        };
        let last = |adapter: &mut Adapter, change: &dyn Fn(&mut LowRank)| {
            change(factors_mut(adapter.layers.values_mut().last().unwrap()));
        };
        let misfits = [
            ("NaN or infinity", changed(&|adapter| last(adapter, &|factors| factors.up.fill(f32::NAN)))),
            (
                "expected down",
                changed(&|adapter| {
                    last(adapter, &|factors| {
                        factors.down = ndarray::Array2::zeros((factors.down.nrows(), factors.down.ncols() + 1));
                    });
                }),
            ),
            (
                "no slot `nowhere`",
                changed(&|adapter| {
                    let update = adapter.layers.values().next().unwrap().clone();
                    adapter.layers.insert("transformer_2.nowhere".to_owned(), update);
                }),
            ),
            (
                "the difference holds NaN or infinity",
                changed(&|adapter| {
                    let (name, mut difference) = parameter.clone();
                    difference[[0, 0]] = f32::NAN;
                    adapter.layers.insert(name, Arc::new(Update::Full(difference)));
                }),
            ),
            (
                "expected a difference",
                changed(&|adapter| {
                    let update = Update::Full(ndarray::Array2::zeros((1, 1)));
                    adapter.layers.insert(parameter.0.clone(), Arc::new(update));
                }),
            ),
        ];
        for former in [AdapterSet::default(), AdapterSet::from([(&*high, 1.0), (&*low, 0.5)])] {
            generator.set_adapters(&former, None).unwrap();
            let before = generator.prepare(request()).unwrap().sample(&mut ()).unwrap().latents;
            let report = generator.directory().fused();
            for (expected, misfit) in &misfits {
                // Asked as soon as the first begins to be fused, and never before.
                let asked = AtomicUsize::new(0);
                let begun = || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    false
                };
                let set = AdapterSet::from([(&*high, 2.0), (misfit, 1.0)]);
                let error = generator.set_adapters(&set, Some(&begun)).unwrap_err();
                assert_eq!(error.class(), ErrorClass::BadAdapter, "{error}");
                assert!(error.to_string().contains(expected), "{weights:?}: {error}");
                assert_eq!(asked.load(Ordering::Relaxed), 0, "{weights:?}, {expected}: the first is left alone");
                assert_eq!(generator.directory().adapters(), &former);
                assert_eq!(generator.directory().fused(), report);
                assert_eq!(
                    generator.prepare(request()).unwrap().sample(&mut ()).unwrap().latents,
                    before,
                    "{weights:?}, {expected}"
                );
            }
            // What fits is asked about: the count above means something.
            let asked = AtomicUsize::new(0);
            let stop = || asked.fetch_add(1, Ordering::Relaxed) == 0;
            let fits = AdapterSet::from([(&*high, 2.0), (&*low, 1.0)]);
            assert_eq!(generator.set_adapters(&fits, Some(&stop)).unwrap_err().class(), ErrorClass::Cancelled);
            assert!(asked.load(Ordering::Relaxed) > 0);
        }
    }
}

/// Fifty stacks, one after the other, of what a distillation changes (every weight of both transformers) and two effects.
#[test]
fn fifty_swaps_of_stacks_are_each_what_a_fresh_start_gives() {
    let pair = Pair::new();
    let open = || Generator::open(pair.model.path("engines"), &Options::default()).unwrap();
    let case = folder().parent().unwrap().join("transformer/t2v/case_b1_t1_8x4_s5.safetensors");
    let inputs = Case::read(&case).inputs;
    let samples = |generator: &mut Generator| {
        [TRANSFORMER, TRANSFORMER_2].map(|component| {
            let session = generator.directory().session(component, "step").unwrap();
            run(session, &inputs)["sample"].to_f32().unwrap()
        })
    };
    let mut generator = open();
    let made = |generator: &mut Generator, name: &str, component: &str, whole: bool, seed| {
        let engine = generator.directory().engine(component).unwrap();
        let slots = if whole { engine.changeable() } else { &engine.manifest().slots[..] };
        adapter(name, slots.iter(), 2, seed)
    };
    let mut distill = made(&mut generator, "distill", TRANSFORMER, true, 1);
    let second = made(&mut generator, "distill", TRANSFORMER_2, true, 2);
    distill.layers.extend(second.layers.into_iter().map(|(slot, update)| (format!("transformer_2.{slot}"), update)));
    let high = made(&mut generator, "high", TRANSFORMER, false, 3);
    let low = generator.load_adapter(&pair.low, &ReadOptions::default()).unwrap().adapter;
    let base = samples(&mut generator);
    let strengths = [0.0, 0.5, 1.0];
    let (mut next, mut fresh) = (numbers(19), BTreeMap::new());
    let mut pick = || strengths[(((next() + 0.5) * 3.0) as usize).min(2)];
    for round in 0..50 {
        let chosen = [pick(), pick(), pick()];
        let stack = [(&distill, chosen[0]), (&high, chosen[1]), (&low, chosen[2])];
        let stack: Vec<(&Adapter, f32)> = stack.into_iter().filter(|(_, strength)| *strength != 0.0).collect();
        let set = AdapterSet::from(&stack[..]);
        generator.set_adapters(&set, None).unwrap();
        let found = samples(&mut generator);
        let expected = fresh.entry(chosen.map(f32::to_bits)).or_insert_with(|| {
            let mut generator = open();
            generator.set_adapters(&set, None).unwrap();
            samples(&mut generator)
        });
        assert!(found == *expected, "round {round}: {chosen:?}");
        assert_eq!(found == base, stack.is_empty(), "round {round}: {chosen:?}");
    }
    assert!(fresh.len() > 15, "{}", fresh.len());
    generator.set_adapters(&AdapterSet::default(), None).unwrap();
    assert!(samples(&mut generator) == base);
}

#[test]
fn recipe_is_taken_for_what_no_flag_says_and_contradictions_are_said() {
    let pair = Pair::new();
    let found = pair.model.path("out.safetensors");
    let settings = &runs()["experts"]["settings"];
    let latents = |more: &[OsString]| {
        let mut arguments = args!["--engine", pair.model.path("engines"), "--prompt", "a cat"].to_vec();
        for key in ["width", "height", "num_frames"] {
            arguments.extend([format!("--{}", key.replace('_', "-")).into(), settings[key].to_string().into()]);
        }
        arguments.extend(args!["--latents", &pair.noise, "--outputs", &found, "--lora", &pair.high].iter().cloned());
        arguments.extend_from_slice(more);
        let Run { code, stderr, .. } = output(command("run", &arguments));
        assert_eq!(code, 0, "{stderr}");
        (tensor(&found, "latents"), stderr)
    };
    let beside = pair.high.with_extension("recipe.json");
    let recipe = r#"{"num_inference_steps": 3, "scheduler": "euler_simple", "shift": 4, "guidance_scale": 1, "boundary_ratio": 0.7}"#;
    std::fs::write(&beside, recipe).unwrap();
    let (taken, said) = latents(&[]);
    assert!(said.contains("sampled with 3 steps, scheduler euler_simple, shift 4, guidance 1, boundary 0.7"), "{said}");
    assert!(!said.contains("was made for"), "{said}");
    let flags = args![
        "--steps",
        "3",
        "--scheduler",
        "euler_simple",
        "--shift",
        "4",
        "--guidance",
        "1",
        "--boundary-ratio",
        "0.7"
    ];
    let off = args!["--recipe", "off"];
    let (asked, said) = latents(&[flags, off].concat());
    assert!(taken == asked && !said.contains("sampled with"), "{said}");
    let (other, said) = latents(args!["--steps", "5", "--guidance", "3", "--boundary-ratio", "0.5"]);
    assert!(other != taken);
    for words in ["5 is asked for, this adapter was made for 3", "guidance 3 is asked for", "boundary 0.5 is asked for"]
    {
        assert!(said.contains(words), "{said}");
    }
    // What this model cannot do is left out, and nothing else is taken either.
    std::fs::write(&beside, r#"{"num_inference_steps": 2, "scheduler": "ddim"}"#).unwrap();
    let (_, said) = latents(args!["--steps", "3"]);
    assert!(said.contains("scheduler ddim) is left out") && !said.contains("sampled with"), "{said}");
    std::fs::write(&beside, "{\"steps\": 3}").unwrap();
    let arguments =
        args!["--engine", pair.model.path("engines"), "--lora", &pair.high, "--prompt", "a", "--outputs", &found];
    let refused = output(command("run", arguments));
    assert!(refused.code == 5 && refused.stderr.contains("effect_HighNoise.recipe.json"), "{}", refused.stderr);
    let Run { stdout, .. } = {
        std::fs::write(&beside, recipe).unwrap();
        run_ok("inspect", args![&pair.high])
    };
    assert!(stdout.contains("made for 3 steps"), "{stdout}");
}
