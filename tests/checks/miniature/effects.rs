//! How well the second miniature's videos carry the effect that a prompt names, how strengths scale, and how effects combine.
//!
//! Every clip starts from its own noise, the same in every mode. `base`: no adapter. `bank`: the adapters that the predictor learned
//! from, of those that there are. `seen` and `held-out`: adapters predicted from prompts that training saw, and from others. `other`: from
//! a prompt of the next effect. A clip counts if the classifier, out of all effects, pairs and `still`, says its effect and nothing else.
//!
//! Blends are of two predicted adapters, prompts held out, at strength 1 each, for each way to compose them. An effect is
//! there if the classifier names it, alone or in a pair.
//!
//! The sweep takes each effect's predicted adapter at seven strengths, and measures how far the clips go from `still` (0) to the mean of
//! the effect (1). It gives the rank correlation of size and strength, and how far sizes lie from a line through them: the root mean
//! square of what is left, as a share of the line's rise.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::json;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::lora::algebra::{Composition, NormConsistency, compose};
use v2l_runtime::media::video::{Frames, write_contact_sheet};

use crate::Args;
use crate::measures::Classifier;
use crate::prompts::{Phrasings, Prompted};
use crate::score::{Score, listed};
use crate::trials::{Index, Trial};

const STRENGTHS: [f32; 7] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5];

/// Where a clip's adapter comes from.
#[derive(Clone, Copy)]
enum Mode {
    Base,
    Bank,
    Seen,
    HeldOut,
    Other,
}

/// One effect at rising strengths.
struct Swept {
    /// Mean size at each of [`STRENGTHS`].
    sizes: Vec<f64>,
    rank: f64,
    line: f64,
}

struct Evaluation<'a> {
    args: &'a Args,
    model: Prompted,
    index: Index,
    classifier: Classifier,
    effects: Vec<String>,
    bank: PathBuf,
    predicted: HashMap<String, Adapter>,
}

/// Scores the model folder of `args`.
pub(crate) fn score(args: &Args) -> anyhow::Result<()> {
    let index = Index::read(&args.model)?;
    let effects = index.effects().cloned().collect();
    let mut this = Evaluation {
        args,
        model: Prompted::new(&args.model)?,
        index,
        classifier: Classifier::read(&args.model.join("classifier.json"))?,
        effects,
        bank: args.bank.clone().unwrap_or_else(|| args.model.join("bank")),
        predicted: HashMap::new(),
    };
    for (name, mode) in [
        ("base", Mode::Base),
        ("bank", Mode::Bank),
        ("seen", Mode::Seen),
        ("held-out", Mode::HeldOut),
        ("other", Mode::Other),
    ] {
        this.mode(name, mode)?;
    }
    for (name, how) in [
        ("add", Composition::Add),
        ("norm", Composition::Norm(NormConsistency::default())),
        ("orthogonal", Composition::Orthogonal),
    ] {
        this.blends(name, how)?;
    }
    this.sweep()?;
    if let Some(folder) = &args.pictures {
        std::fs::create_dir_all(folder)?;
        this.draw_sweep(&folder.join("sweep.png"))?;
        this.draw_blends(&folder.join("blends.png"))?;
    }
    Ok(())
}

/// One of some phrasings.
fn phrasing(prompts: &[String], trial: usize) -> &String {
    &prompts[trial % prompts.len()]
}

impl Evaluation<'_> {
    fn trials(&self, effect: &str, count: usize) -> anyhow::Result<Vec<Trial>> {
        self.index.trials(&self.args.model, effect, count)
    }

    fn phrasings(&self, effect: &str) -> &Phrasings {
        &self.model.index.prompts[effect]
    }

    fn predict(&mut self, prompt: &str) -> anyhow::Result<Adapter> {
        if let Some(found) = self.predicted.get(prompt) {
            return Ok(found.clone());
        }
        let found = self.model.predict(prompt)?;
        self.predicted.insert(prompt.to_owned(), found.clone());
        Ok(found)
    }

    /// The adapter of a prompt that training did not see.
    fn held_out(&mut self, effect: &str, trial: usize) -> anyhow::Result<Adapter> {
        let prompt = phrasing(&self.phrasings(effect).held_out, trial).clone();
        self.predict(&prompt)
    }

    fn clip(&mut self, trial: &Trial, adapters: &[(&Adapter, f32)], seed: usize) -> anyhow::Result<Frames> {
        Ok(self.model.generate(trial, adapters, seed as u64)?.frames)
    }

    fn mode(&mut self, name: &str, mode: Mode) -> anyhow::Result<()> {
        let mut answers: Vec<(String, String, String)> = Vec::new();
        for (number, effect) in self.effects.clone().iter().enumerate() {
            let file = self.bank.join(format!("{effect}.safetensors"));
            if matches!(mode, Mode::Bank) && !file.is_file() {
                continue;
            }
            let asked = match mode {
                Mode::Other => self.effects[(number + 1) % self.effects.len()].clone(),
                _ => effect.clone(),
            };
            for (i, trial) in self.trials(effect, self.args.count)?.iter().enumerate() {
                let adapter = match mode {
                    Mode::Base => None,
                    Mode::Bank => Some(self.model.load(&file)?),
                    Mode::Seen => Some(self.predict(&phrasing(&self.phrasings(effect).seen, i).clone())?),
                    Mode::HeldOut | Mode::Other => Some(self.held_out(&asked, i)?),
                };
                let adapters: Vec<(&Adapter, f32)> = adapter.iter().map(|adapter| (adapter, 1.0)).collect();
                let clip = self.clip(trial, &adapters, number * 1000 + i)?;
                let answer = self.classifier.classify(&clip).to_owned();
                answers.push((effect.clone(), asked.clone(), answer));
            }
        }
        let score = Score::new(answers.iter().map(|(effect, _, answer)| (effect, effect == answer)));
        let follows = Score::new(answers.iter().map(|(effect, asked, answer)| (effect, asked == answer)));
        let follows = matches!(mode, Mode::Other).then(|| follows.share(&self.effects));
        let overall = score.share(&self.effects);
        let shown: Vec<String> =
            self.effects.iter().filter(|e| answers.iter().any(|(a, ..)| a == *e)).cloned().collect();
        let mut families = score.families(&self.index.families);
        families.retain(|_, share| share.is_finite());
        let effects = score.effects(&shown);
        if self.args.json {
            let pairs: Vec<_> = answers.iter().map(|(effect, _, answer)| json!([effect, answer])).collect();
            let event = json!({
                "event": "mode", "mode": name, "clips": answers.len(), "accuracy": overall, "families": families,
                "effects": effects, "follows": follows, "answers": pairs,
            });
            println!("{event}");
            return Ok(());
        }
        println!("{name}: {overall:.3} of {} clips", answers.len());
        if let Some(follows) = follows {
            println!("  shows the effect that the prompt names: {follows:.3}");
        }
        println!("  families: {}", listed(&families));
        println!("  effects: {}", listed(&effects));
        Ok(())
    }

    /// The clip of a pair's first effect's trial, with both effects' predicted adapters.
    fn blended(&mut self, pair: &str, trial: usize, how: Composition) -> anyhow::Result<Frames> {
        let adapters: Vec<Adapter> =
            pair.split('+').map(|effect| self.held_out(effect, trial)).collect::<anyhow::Result<_>>()?;
        let given: Vec<(&Adapter, f32)> = adapters.iter().map(|adapter| (adapter, 1.0)).collect();
        let composed = compose(&given, how)?;
        let given: Vec<(&Adapter, f32)> = composed.iter().map(|composed| (&composed.adapter, 1.0)).collect();
        let first = pair.split('+').next().unwrap_or(pair);
        let number = self.model.index.pairs.iter().position(|other| other == pair).unwrap_or(0);
        let trials = self.trials(first, trial + 1)?;
        self.clip(&trials[trial], &given, 100_000 + number * 1000 + trial)
    }

    fn blends(&mut self, name: &str, how: Composition) -> anyhow::Result<()> {
        let each = self.args.count.div_ceil(5);
        let (mut both, mut first, mut second, mut neither) = (0, 0, 0, 0);
        let mut answers = Vec::new();
        for pair in self.model.index.pairs.clone() {
            for trial in 0..each {
                let clip = self.blended(&pair, trial, how)?;
                let answer = self.classifier.classify(&clip).to_owned();
                let mut shown = pair.split('+').map(|effect| answer.split('+').any(|part| part == effect));
                match (shown.next().unwrap_or(false), shown.next().unwrap_or(false)) {
                    (true, true) => both += 1,
                    (true, false) => first += 1,
                    (false, true) => second += 1,
                    (false, false) => neither += 1,
                }
                answers.push(json!([pair, answer]));
            }
        }
        let clips = answers.len();
        let share = |count: i32| f64::from(count) / clips as f64;
        let [both, first, second, neither] = [both, first, second, neither].map(share);
        if self.args.json {
            let event = json!({
                "event": "blend", "compose": name, "clips": clips, "both": both, "first": first, "second": second,
                "neither": neither, "answers": answers,
            });
            println!("{event}");
        } else {
            println!(
                "blends, {name}: both {both:.3} of {clips} clips, one alone {:.3}, neither {neither:.3}",
                first + second
            );
        }
        Ok(())
    }

    fn sweep(&mut self) -> anyhow::Result<()> {
        let each = self.args.count.div_ceil(2);
        let mut found: IndexMap<String, Swept> = IndexMap::new();
        for (number, effect) in self.effects.clone().iter().enumerate() {
            let trials = self.trials(effect, each)?;
            let mut sizes = Vec::new();
            for strength in STRENGTHS {
                let mut sum = 0.0;
                for (i, trial) in trials.iter().enumerate() {
                    let adapter = self.held_out(effect, i)?;
                    let clip = self.clip(trial, &[(&adapter, strength)], number * 1000 + i)?;
                    sum += self.classifier.size(&clip, effect).unwrap_or(f64::NAN);
                }
                sizes.push(sum / trials.len() as f64);
            }
            let strengths: Vec<f64> = STRENGTHS.iter().map(|s| f64::from(*s)).collect();
            let (rank, line) = (rank_correlation(&strengths, &sizes), deviation_from_line(&strengths, &sizes));
            found.insert(effect.clone(), Swept { sizes, rank, line });
        }
        let mean = |of: &dyn Fn(&Swept) -> f64| found.values().map(of).sum::<f64>() / found.len() as f64;
        let (rank, line) = (mean(&|swept| swept.rank), mean(&|swept| swept.line));
        if self.args.json {
            let effects: IndexMap<&String, _> = found
                .iter()
                .map(|(effect, swept)| (effect, json!({"sizes": swept.sizes, "rank": swept.rank, "line": swept.line})))
                .collect();
            let event = json!({
                "event": "sweep", "strengths": STRENGTHS, "clips_each": each, "rank": rank, "line": line,
                "effects": effects,
            });
            println!("{event}");
            return Ok(());
        }
        println!("sweep, {each} clips at each strength: rank correlation {rank:.3}, deviation from a line {line:.3}");
        for (effect, Swept { sizes, rank, line }) in &found {
            let sizes: Vec<String> = sizes.iter().map(|size| format!("{size:.2}")).collect();
            println!("  {effect}: {} (rank {rank:.2}, line {line:.2})", sizes.join(" "));
        }
        Ok(())
    }

    /// A row for each effect: the last frame at each strength.
    fn draw_sweep(&mut self, path: &Path) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for (number, effect) in self.effects.clone().iter().enumerate() {
            let trial = self.trials(effect, 1)?.remove(0);
            let adapter = self.held_out(effect, 0)?;
            let clips = STRENGTHS.map(|strength| self.clip(&trial, &[(&adapter, strength)], number * 1000));
            rows.push(last_frames(&clips.into_iter().collect::<anyhow::Result<Vec<_>>>()?)?);
        }
        Ok(write_contact_sheet(path, &rows.iter().collect::<Vec<_>>())?)
    }

    /// A matrix of one image: the first row has the image and the effects that columns are of, the first column those of rows.
    fn draw_blends(&mut self, path: &Path) -> anyhow::Result<()> {
        const ROWS: [&str; 4] = ["left", "up", "grow", "squash"];
        const COLUMNS: [&str; 4] = ["to_red", "to_blue", "to_green", "night"];
        let trial = self.trials(ROWS[0], 1)?.remove(0);
        let mut rows = Vec::new();
        for row in [None].into_iter().chain(ROWS.map(Some)) {
            let mut clips = Vec::new();
            for column in [None].into_iter().chain(COLUMNS.map(Some)) {
                let effects = row.into_iter().chain(column);
                let adapters: Vec<Adapter> =
                    effects.map(|effect| self.held_out(effect, 0)).collect::<anyhow::Result<_>>()?;
                let given: Vec<(&Adapter, f32)> = adapters.iter().map(|adapter| (adapter, 1.0)).collect();
                clips.push(match given.is_empty() {
                    true => trial.image.clone(),
                    false => self.clip(&trial, &given, 7)?,
                });
            }
            rows.push(last_frames(&clips)?);
        }
        Ok(write_contact_sheet(path, &rows.iter().collect::<Vec<_>>())?)
    }
}

/// The last frames of some clips, as one clip.
fn last_frames(clips: &[Frames]) -> anyhow::Result<Frames> {
    let data: Vec<u8> = clips.iter().filter_map(|clip| clip.iter().last()).flatten().copied().collect();
    Ok(Frames::new(clips[0].width(), clips[0].height(), data, None)?)
}

/// Spearman's, without ties.
fn rank_correlation(x: &[f64], y: &[f64]) -> f64 {
    let ranks = |values: &[f64]| -> Vec<f64> {
        values.iter().map(|value| values.iter().filter(|other| *other < value).count() as f64).collect()
    };
    let (x, y) = (ranks(x), ranks(y));
    let middle = (x.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - middle) * (b - middle)).sum::<f64>();
    product(&x, &y) / (product(&x, &x) * product(&y, &y)).sqrt()
}

/// Root mean square distance from the least squares line, as a share of the line's rise over all of `x`.
fn deviation_from_line(x: &[f64], y: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let slope = x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>()
        / x.iter().map(|x| (x - mx).powi(2)).sum::<f64>();
    let left = x.iter().zip(y).map(|(x, y)| (y - my - slope * (x - mx)).powi(2)).sum::<f64>() / x.len() as f64;
    left.sqrt() / (slope * (x[x.len() - 1] - x[0])).abs()
}
