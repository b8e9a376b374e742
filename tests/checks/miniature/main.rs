//! How well the miniature's videos carry their reference's effect, through the product's own path.
//!
//! ```text
//! cargo run --release -p v2l-checks --bin miniature -- [--count N] [--model DIR] [--sheet PNG] [--quick | --precisions] [--bank DIR] [--pictures DIR] [--json]
//! ```
//!
//! For the first N held-out trials of every effect (a reference, and the first frame of another scene with its caption),
//! each from the same noise in every mode:
//! `reconstructed` (the reference through the autoencoder and back), `base` (no adapter), `steered` (the reference's
//! adapter), `other` (the adapter of the next effect's reference), then `steered` again for every storage precision and
//! way to give weights to ONNX Runtime. A clip counts if the classifier, out of all its classes, says the nominal effect.
//!
//! A model folder with `predictor/` is the second miniature, whose adapters come from prompts: `effects` says what is scored then.
//!
//! `--precisions` is about the transformer's precision alone: `steered` in float32, then with weights stored in bf16 and
//! fp16, in the arithmetic of an fp16 precision plan, and with weights in 8 bits, then on OpenVINO in bf16 and in 8 bits; each with the size of the transformer's
//! engine, the time, and the relative L2 distance of its pixels from those in float32.

mod effects;
mod lab;
mod measures;
mod prompts;
mod score;
mod trials;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use serde_json::json;
use v2l_runtime::backends::openvino::OpenVinoPrecision;
use v2l_runtime::media::video::{Frames, write_contact_sheet};
use v2l_runtime::options::OrtWeights;
use v2l_runtime::tensor::Dtype;

use lab::{Lab, Setup};
use measures::Classifier;
use score::{Score, listed};
use trials::{Index, Trial};

/// Score the trained miniature: base model, steered, steered by another effect, every precision and fusion mode.
#[derive(Parser)]
#[command(name = "miniature")]
struct Args {
    /// Trials of each effect.
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: usize,
    /// The model folder.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/miniature"))]
    model: PathBuf,
    /// Write a contact sheet: the first trial of each effect, three rows each (reference, base, steered).
    #[arg(long, value_name = "PNG")]
    sheet: Option<PathBuf>,
    /// Leave out the other precisions and fusion modes.
    #[arg(long, conflicts_with = "precisions")]
    quick: bool,
    /// Compare precisions of the transformer, and nothing else.
    #[arg(long, conflicts_with = "sheet")]
    precisions: bool,
    /// The adapters that the predictor learned from, `<effect>.safetensors`; those of the model folder, if not given.
    #[arg(long, value_name = "DIR")]
    bank: Option<PathBuf>,
    /// Write `sweep.png` and `blends.png`: effects at rising strengths, and pairs of effects.
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
    /// Print one JSON event per line.
    #[arg(long)]
    json: bool,
}

/// What a mode's clips cost, and how far they are from those in float32.
struct Cost {
    seconds: f64,
    transformer_bytes: u64,
    /// Relative L2 distance of the pixels.
    distance: Option<f64>,
}

/// Relative L2 distance of the pixels of `clips` from `exact`.
fn distance(clips: &[Frames], exact: &[Frames]) -> f64 {
    let pairs = || clips.iter().zip(exact).flat_map(|(clip, exact)| clip.data().iter().zip(exact.data()));
    let difference: f64 = pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm: f64 = pairs().map(|(_, b)| f64::from(*b).powi(2)).sum();
    (difference / norm).sqrt()
}

struct Evaluation<'a> {
    args: &'a Args,
    index: Index,
    classifier: Classifier,
    effects: Vec<String>,
    trials: Vec<Trial>,
}

/// What a mode animates a trial with.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Reconstructed,
    Base,
    Steered,
    Other,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.count > 0, "--count 0: expected at least one trial of each effect");
    if args.model.join("predictor").is_dir() {
        return effects::score(&args);
    }
    let index = Index::read(&args.model)?;
    let effects: Vec<String> = index.effects().cloned().collect();
    let gather = |effects: &[String]| -> anyhow::Result<Vec<Trial>> {
        let groups: anyhow::Result<Vec<_>> =
            effects.iter().map(|effect| index.trials(&args.model, effect, args.count)).collect();
        Ok(groups?.into_iter().flatten().collect())
    };
    let (trials, unseen) = (gather(&effects)?, gather(&index.zero_shot)?);
    let classifier = Classifier::read(&args.model.join("classifier.json"))?;
    let mut this = Evaluation { args: &args, index, classifier, effects, trials };

    let in_f32 = Setup { weights: OrtWeights::F32, ..Setup::default() };
    let stored = Setup { weights: OrtWeights::Stored, ..in_f32 };
    let fp16 = Setup { storage: Some(Dtype::F16), ..in_f32 };
    let fp32 = Setup { storage: Some(Dtype::F32), ..in_f32 };
    if args.precisions {
        let int8 = Setup { branches: true, int8: true, ..fp32 };
        let mut exact = None;
        for (name, setup) in [
            ("fp32", fp32),
            ("bf16 stored", in_f32),
            ("fp16 stored", fp16),
            ("fp16 plan", Setup { plan: true, ..fp16 }),
            ("fp32, branches", Setup { branches: true, ..fp32 }),
            ("int8, branches", int8),
            ("openvino bf16", Setup { openvino: Some(OpenVinoPrecision::Auto), ..in_f32 }),
            ("openvino int8, branches", Setup { openvino: Some(OpenVinoPrecision::F32), ..int8 }),
            ("openvino int8, rows too", Setup { openvino: Some(OpenVinoPrecision::Int8), ..int8 }),
        ] {
            let clips = this.mode(&mut Lab::new(&args.model, setup)?, name, Mode::Steered, exact.as_deref())?;
            exact.get_or_insert(clips);
        }
        return Ok(());
    }
    let mut lab = Lab::new(&args.model, in_f32)?;
    this.mode(&mut lab, "reconstructed", Mode::Reconstructed, None)?;
    let base = this.mode(&mut lab, "base", Mode::Base, None)?;
    let steered = this.mode(&mut lab, "steered", Mode::Steered, None)?;
    this.mode(&mut lab, "other", Mode::Other, None)?;
    if let Some(path) = &args.sheet {
        let firsts = (0..this.effects.len()).map(|effect| effect * args.count);
        let rows = firsts.flat_map(|i| [&this.trials[i].reference, &base[i], &steered[i]]);
        write_contact_sheet(path, &rows.collect::<Vec<_>>())?;
    }
    if !args.quick {
        for (name, setup) in [
            ("steered, bf16 stored", stored),
            ("steered, fp16 in f32", fp16),
            ("steered, fp16 stored", Setup { storage: Some(Dtype::F16), ..stored }),
            ("steered, fp32", fp32),
            ("steered, bf16 stored, branches", Setup { branches: true, ..stored }),
        ] {
            this.mode(&mut Lab::new(&args.model, setup)?, name, Mode::Steered, None)?;
        }
    }
    this.effects = std::mem::take(&mut this.index.zero_shot);
    this.trials = unseen;
    this.index.families.clear();
    this.mode(&mut lab, "zero-shot, base", Mode::Base, None)?;
    this.mode(&mut lab, "zero-shot, steered", Mode::Steered, None)?;
    Ok(())
}

impl Evaluation<'_> {
    /// Makes and scores one clip for each trial, and prints the score; with the clips in float32, the distance from them.
    fn mode(&self, lab: &mut Lab, name: &str, mode: Mode, exact: Option<&[Frames]>) -> anyhow::Result<Vec<Frames>> {
        let start = Instant::now();
        let shows_progress = !self.args.json && std::io::stderr().is_terminal();
        lab.steer(Vec::new())?;
        let mut clips = Vec::with_capacity(self.trials.len());
        for (i, trial) in self.trials.iter().enumerate() {
            let reference = match mode {
                Mode::Reconstructed => {
                    clips.push(lab.reconstruct(&trial.reference)?);
                    continue;
                }
                Mode::Base => None,
                Mode::Steered => Some(&trial.reference),
                Mode::Other => Some(&self.trials[self.of_next_effect(i)].reference),
            };
            if let Some(reference) = reference {
                let tokens = lab.tokens(reference)?;
                let adapter = lab.adapter(&tokens)?;
                lab.steer(vec![(adapter, 1.0)])?;
            }
            clips.push(lab.generate(trial, i as u64)?);
            if shows_progress {
                eprint!("\r{name}: {}/{}", i + 1, self.trials.len());
            }
        }
        if shows_progress {
            eprint!("\r{:60}\r", "");
        }
        let answers: Vec<&str> = clips.iter().map(|clip| self.classifier.classify(clip)).collect();
        let score = self.score(&answers, |i| &self.trials[i].effect);
        let follows = (mode == Mode::Other).then(|| {
            let followed = self.score(&answers, |i| &self.trials[self.of_next_effect(i)].effect);
            followed.share(&self.effects)
        });
        let cost = Cost {
            seconds: start.elapsed().as_secs_f64(),
            transformer_bytes: lab.transformer_bytes(),
            distance: exact.map(|exact| distance(&clips, exact)),
        };
        self.print(name, &score, follows, &answers, &cost);
        Ok(clips)
    }

    /// The same trial of the effect after this one's.
    fn of_next_effect(&self, trial: usize) -> usize {
        (trial + self.args.count) % self.trials.len()
    }

    fn score<'b>(&'b self, answers: &[&str], expected: impl Fn(usize) -> &'b String) -> Score {
        let hit = |(i, answer): (usize, &&str)| (&self.trials[i].effect, expected(i) == answer);
        Score::new(answers.iter().enumerate().map(hit))
    }

    fn print(&self, name: &str, score: &Score, follows: Option<f64>, answers: &[&str], cost: &Cost) {
        let (families, effects) = (score.families(&self.index.families), score.effects(&self.effects));
        let overall = score.share(&self.effects);
        if self.args.json {
            let pairs = self.trials.iter().zip(answers).map(|(trial, answer)| json!([trial.effect, answer]));
            let event = json!({
                "event": "mode", "mode": name, "clips": answers.len(), "accuracy": overall, "families": families,
                "effects": effects, "follows": follows, "answers": pairs.collect::<Vec<_>>(),
                "seconds": cost.seconds, "transformer_bytes": cost.transformer_bytes, "distance": cost.distance,
            });
            println!("{event}");
            return;
        }
        let megabytes = cost.transformer_bytes as f64 / 1e6;
        print!("{name}: {overall:.3} of {} clips ({:.0} s, {megabytes:.2} MB", answers.len(), cost.seconds);
        match cost.distance {
            Some(distance) => println!(", {distance:.1e} from fp32)"),
            None => println!(")"),
        }
        if let Some(follows) = follows {
            println!("  shows the effect of the reference it was given: {follows:.3}");
        }
        if !families.is_empty() {
            println!("  families: {}", listed(&families));
        }
        println!("  effects: {}", listed(&effects));
    }
}
