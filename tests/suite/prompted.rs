//! The second trained miniature: its videos carry the effect that a prompt names, and stop doing so when something on the way is
//! broken; PyTorch makes the same videos from the same noise.

use std::path::{Path, PathBuf};

use ndarray::Array5;
use v2l_runtime::lora::AdapterSet;
use v2l_runtime::lora::adapter::{Adapter, LowRank};
use v2l_runtime::media::video::{Frames, read_frames};
use v2l_runtime::request::Request;

use crate::measures::Classifier;
use crate::miniature::in_unit_range;
use crate::prompts::Prompted;
use crate::support::{Case, assert_close, cases, factors_mut, fixtures, header};
use crate::trials::{Index, Trial};

/// Relative L2 distance of final latents from PyTorch's after all steps.
const TOLERANCE: f64 = 1e-3;

fn model() -> PathBuf {
    fixtures().join("miniature2")
}

fn classifier() -> Classifier {
    Classifier::read(&model().join("classifier.json")).unwrap()
}

/// The first trial of an effect.
fn trial(effect: &str) -> Trial {
    Index::read(&model()).unwrap().trials(&model(), effect, 1).unwrap().remove(0)
}

/// A prompt that training did not see.
fn prompt(lab: &Prompted, effect: &str) -> String {
    lab.index.prompts[effect].held_out[0].clone()
}

/// One effect of each family.
const EFFECTS: [&str; 3] = ["right", "to_green", "grow"];

/// Whether each effect's trial shows it with these adapters.
fn shown(lab: &mut Prompted, adapters: &[Option<Adapter>; 3]) -> [bool; 3] {
    let classifier = classifier();
    std::array::from_fn(|i| {
        let given: Vec<(&Adapter, f32)> = adapters[i].iter().map(|adapter| (adapter, 1.0)).collect();
        let video = lab.generate(&trial(EFFECTS[i]), &given, i as u64).unwrap();
        classifier.classify(&video.frames) == EFFECTS[i]
    })
}

fn changed(adapter: &Adapter, change: impl Fn(&str, &mut LowRank)) -> Option<Adapter> {
    let mut changed = adapter.clone();
    changed.layers.iter_mut().for_each(|(slot, update)| change(slot, factors_mut(update)));
    Some(changed)
}

/// The semantic test, and the ways to break what it must notice.
#[test]
fn videos_show_the_effect_of_their_prompt_and_only_with_its_adapter_as_it_was_predicted() {
    let mut lab = Prompted::new(&model()).unwrap();
    let predicted = EFFECTS.map(|effect| {
        let asked = prompt(&lab, effect);
        assert!(!lab.index.prompts[effect].seen.contains(&asked));
        lab.predict(&asked).unwrap()
    });
    assert_eq!(shown(&mut lab, &predicted.each_ref().map(|a| Some(a.clone()))), [true; 3], "as predicted");
    assert_ne!(shown(&mut lab, &[None, None, None]), [true; 3], "the base model");

    // The prompt is ignored: all get the first one's adapter.
    let ignored = shown(&mut lab, &predicted.each_ref().map(|_| Some(predicted[0].clone())));
    assert_eq!(ignored, [true, false, false], "one adapter for every prompt");
    // A and B change places, where a layer is square.
    let swapped = predicted.each_ref().map(|adapter| {
        changed(adapter, |_, update| {
            if update.up.nrows() == update.down.ncols() {
                (update.down, update.up) = (update.up.t().to_owned(), update.down.t().to_owned());
            }
        })
    });
    assert_ne!(shown(&mut lab, &swapped), [true; 3], "A and B swapped");
    // The signs of one type of layer, which weighs more than others; of any, `requests_equal_pytorch_from_the_same_noise` tells.
    let flipped = predicted.each_ref().map(|adapter| {
        changed(adapter, |slot, update| {
            if slot.ends_with("attn1.to_q") {
                update.up *= -1.0;
            }
        })
    });
    assert_ne!(shown(&mut lab, &flipped), [true; 3], "signs flipped in the queries of self-attention");
}

/// Relative distance of two adapters' factors.
fn distance(a: &Adapter, b: &Adapter) -> f32 {
    let squares = |of: &dyn Fn(&LowRank, &LowRank) -> f32| {
        a.layers.iter().map(|(slot, x)| of(&x.to_low_rank(), &b.layers[slot].to_low_rank())).sum::<f32>()
    };
    let difference = squares(&|x, y| (&x.up - &y.up).mapv(|v| v * v).sum() + (&x.down - &y.down).mapv(|v| v * v).sum());
    let norm = squares(&|_, y| y.up.mapv(|v| v * v).sum() + y.down.mapv(|v| v * v).sum());
    (difference / norm).sqrt()
}

#[test]
fn prediction_reads_the_pristine_weights_whatever_is_fused() {
    let asked = {
        let lab = Prompted::new(&model()).unwrap();
        prompt(&lab, "left")
    };
    let pristine = Prompted::new(&model()).unwrap().predict(&asked).unwrap();
    // With folders of its own: nothing is kept from above.
    let mut lab = Prompted::new(&model()).unwrap();
    let bank = lab.load(&model().join("bank/grow.safetensors")).unwrap();
    lab.generator.set_adapters(&AdapterSet::from([(&bank, 1.0)]), None).unwrap();
    assert!(lab.predict(&asked).unwrap() == pristine, "an adapter that is fused changes the prediction");

    // The same adapter in the checkpoint itself does: the prediction depends on the weights.
    let folder = tempfile::tempdir().unwrap();
    crate::tools::copy(&model(), folder.path());
    crate::tools::tamper(&folder.path().join("transformer/diffusion_pytorch_model.safetensors"), |tensors| {
        for (slot, update) in &bank.layers {
            let tensor = tensors.get_mut(&format!("{slot}.weight")).unwrap();
            let change = update.delta();
            for (bytes, change) in tensor.data.chunks_exact_mut(2).zip(change.iter()) {
                let weight = half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                bytes.copy_from_slice(&half::bf16::from_f32(weight + change).to_le_bytes());
            }
        }
    });
    let elsewhere = Prompted::new(folder.path()).unwrap().predict(&asked).unwrap();
    let moved = distance(&elsewhere, &pristine);
    assert!(moved > 1e-2, "over other weights the prediction moves by {moved} only");
}

#[test]
fn effects_grow_with_strength_and_two_of_them_combine() {
    let mut lab = Prompted::new(&model()).unwrap();
    let classifier = classifier();
    let bank = lab.load(&model().join("bank/left.safetensors")).unwrap();
    let sizes = [0.25, 0.5, 1.0].map(|strength| {
        let video = lab.generate(&trial("left"), &[(&bank, strength)], 3).unwrap();
        classifier.size(&video.frames, "left").unwrap()
    });
    assert!(sizes[0] < sizes[1] && sizes[1] < sizes[2] && (0.6..1.4).contains(&sizes[2]), "{sizes:?}");

    let pair = "left+to_red";
    assert!(lab.index.pairs.iter().any(|other| other == pair));
    let adapters: Vec<Adapter> =
        pair.split('+').map(|e| lab.load(&model().join(format!("bank/{e}.safetensors"))).unwrap()).collect();
    let given: Vec<(&Adapter, f32)> = adapters.iter().map(|adapter| (adapter, 1.0)).collect();
    let video = lab.generate(&trial("left"), &given, 5).unwrap();
    assert_eq!(classifier.classify(&video.frames), pair);
}

/// Whole requests from given noise: prompts, adapters, all steps, decoder.
#[test]
fn requests_equal_pytorch_from_the_same_noise() {
    let mut lab = Prompted::new(&model()).unwrap();
    let golden = cases(&model().join("golden"));
    assert_eq!(golden.len(), 3);
    for path in golden {
        match header(&path).contains_key("effects") {
            true => check_steered(&mut lab, &path),
            false => check_base(&mut lab, &path),
        }
    }
}

fn initial_noise(case: &Case) -> Option<Array5<f32>> {
    Some(case.input("latents").into_dimensionality().unwrap())
}

fn check_steered(lab: &mut Prompted, path: &Path) {
    let (case, facts) = (Case::read(path), header(path));
    let effects: Vec<(String, f32)> = serde_json::from_str(&facts["effects"]).unwrap();
    let adapters: Vec<Adapter> = effects.iter().map(|(prompt, _)| lab.predict(prompt).unwrap()).collect();
    let update = adapters[0].layers[&facts["layer"]].to_low_rank();
    assert_close("A", &update.down.clone().into_dyn(), &case.output("adapter_A"), 1e-4);
    assert_close("B", &update.up.clone().into_dyn(), &case.output("adapter_B"), 1e-4);
    let given: Vec<(&Adapter, f32)> = adapters.iter().zip(&effects).map(|(a, (_, strength))| (a, *strength)).collect();
    let trial = trial(&facts["effect"]);
    assert_eq!(trial.caption, facts["prompt"]);
    let request = Request { initial_noise: initial_noise(&case), ..lab.request(&trial) };
    let video = lab.finish(&request, &given).unwrap();
    assert_close(&case.name, &video.latents.into_dyn(), &case.output("latents_final"), TOLERANCE);
    // A level that is on the edge may fall to the next.
    assert_close("frames", &in_unit_range(&video.frames), &case.levels().mapv(|level| f32::from(level) / 255.0), 5e-4);
}

/// No adapter; with guidance, and of another height and length.
fn check_base(lab: &mut Prompted, path: &Path) {
    let (case, facts) = (Case::read(path), header(path));
    let number = |name: &str| facts[name].parse::<usize>().unwrap();
    let sheet = read_frames(&model().join(format!("trials/{}.png", facts["effect"])), None).unwrap();
    let (width, height) = (sheet.width(), number("height"));
    let image = Frames::new(width, height, sheet.data()[..width * height * 3].to_vec(), None).unwrap();
    let trial = Trial { image, ..trial(&facts["effect"]) };
    assert_eq!(trial.caption, facts["prompt"]);
    let request = Request {
        initial_noise: initial_noise(&case),
        num_frames: Some(number("num_frames")),
        guidance_scale: Some(facts["guidance_scale"].parse().unwrap()),
        negative_prompt: Some(facts["negative_prompt"].clone()),
        ..lab.request(&trial)
    };
    let video = lab.finish(&request, &[]).unwrap();
    assert_close(&case.name, &video.latents.into_dyn(), &case.output("latents_final"), TOLERANCE);
}
