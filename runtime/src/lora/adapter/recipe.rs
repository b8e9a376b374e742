//! What an adapter was made to be sampled with: its recipe.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::AdapterError;
use super::parts::{locate, name_of};
use crate::io::weights::{WeightError, WeightFile};

/// The header's entry that holds a recipe as JSON.
const METADATA: &str = "v2l.recipe";
/// What a recipe beside `effect.safetensors` is called: `effect.recipe.json`.
const BESIDE: &str = "recipe.json";
/// The longest recipe that is read, in bytes.
const LONGEST: u64 = 1 << 16;

/// Steps, scheduler, shift, guidance and boundary that an adapter was made for; what is absent it does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Sampler steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<usize>,
    /// The scheduler, by the name of its sampler or of diffusers' class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The scheduler's shift.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Guidance; 1: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Guidance of the second of two transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale_2: Option<f64>,
    /// Where the second of two transformers takes over, as a part of the noise levels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundary_ratio: Option<f64>,
}

/// Where a recipe stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipeSource {
    /// In the file's header.
    Metadata,
    /// In a file beside it.
    Beside(PathBuf),
    /// In v2l's table of distillations, found by the file's name.
    Known(&'static str),
}

/// A recipe, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundRecipe {
    /// What it says.
    pub recipe: Recipe,
    /// Where it stands.
    pub source: RecipeSource,
}

impl fmt::Display for RecipeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata => f.write_str("its header says so"),
            Self::Beside(path) => write!(f, "{} says so", path.display()),
            Self::Known(name) => write!(f, "its name is that of a distillation of {name}"),
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |what: &str, value: Option<f64>| value.map(|value| format!("{what} {value}"));
        let said = [
            self.num_inference_steps.map(|steps| format!("{steps} steps")),
            self.scheduler.as_ref().map(|name| format!("scheduler {name}")),
            number("shift", self.shift),
            number("guidance", self.guidance_scale),
            number("guidance 2", self.guidance_scale_2),
            number("boundary", self.boundary_ratio),
        ];
        f.write_str(&said.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl Recipe {
    /// # Errors
    /// The key that is out of range, in words.
    fn check(&self) -> Result<(), String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let wrong = [
            (
                "num_inference_steps",
                self.num_inference_steps.is_some_and(|steps| !(1..=100_000).contains(&steps)),
                "1 to 100000",
            ),
            ("shift", self.shift.is_some_and(|shift| !positive(shift)), "a number above 0"),
            ("guidance_scale", self.guidance_scale.is_some_and(|scale| !scale.is_finite()), "a number"),
            ("guidance_scale_2", self.guidance_scale_2.is_some_and(|scale| !scale.is_finite()), "a number"),
            ("boundary_ratio", self.boundary_ratio.is_some_and(|ratio| !(0.0..=1.0).contains(&ratio)), "0 to 1"),
        ];
        match wrong.into_iter().find(|(_, wrong, _)| *wrong) {
            Some((key, _, expected)) => Err(format!("`{key}`: expected {expected}")),
            None => Ok(()),
        }
    }
}

/// Distillations of Wan by what their files are called: all words of any of these lists, letters and digits alone, lower case.
struct Known {
    words: &'static [&'static [&'static str]],
    of: &'static str,
    steps: usize,
    shift: Option<f64>,
    scheduler: Option<&'static str>,
}

/// Recipes of LightX2V's configurations and of Wan2GP's profiles. All were distilled without guidance.
const KNOWN: [Known; 4] = [
    Known {
        // The second word tells a distillation from an effect of that name.
        words: &[
            &["lightx2v"],
            &["stepdistill"],
            &["lightning", "step"],
            &["lightning", "seko"],
            &["wan22lightning"],
            &["wan21lightning"],
        ],
        of: "LightX2V",
        steps: 4,
        shift: Some(5.0),
        scheduler: Some("euler_simple"),
    },
    Known { words: &[&["fastwan"]], of: "FastWan", steps: 3, shift: Some(3.0), scheduler: None },
    Known { words: &[&["fusionx"], &["fusionix"]], of: "FusionX", steps: 10, shift: Some(2.0), scheduler: None },
    Known { words: &[&["causvid"]], of: "CausVid", steps: 9, shift: None, scheduler: None },
];

/// The recipe of an adapter's file: the header's entry `v2l.recipe`, else a file `<name>.recipe.json` beside it, else, for Wan's transformers,
/// what is known of distillations that are called so.
///
/// # Errors
/// [`AdapterError::Config`] for a recipe that is no such JSON or out of range; [`AdapterError::Weights`] if a file cannot be read.
pub fn recipe_of(path: &Path) -> Result<Option<FoundRecipe>, AdapterError> {
    let path = locate(path)?;
    let read = |file: &Path, text: &str| {
        let fail = |reason: String| AdapterError::Config { path: file.to_owned(), reason: format!("recipe: {reason}") };
        let recipe: Recipe = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        recipe.check().map_err(fail)?;
        Ok::<_, AdapterError>(recipe)
    };
    let file = WeightFile::open(&path)?;
    if let Some(text) = file.metadata(METADATA) {
        return Ok(Some(FoundRecipe { recipe: read(&path, text)?, source: RecipeSource::Metadata }));
    }
    let beside = path.with_extension(BESIDE);
    if beside.is_file() {
        let io = |source| AdapterError::Weights(WeightError::Io { path: beside.clone(), source });
        let mut text = String::new();
        File::open(&beside).map_err(io)?.take(LONGEST).read_to_string(&mut text).map_err(io)?;
        return Ok(Some(FoundRecipe { recipe: read(&beside, &text)?, source: RecipeSource::Beside(beside) }));
    }
    let name: String = name_of(&path).to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
    let called = |words: &&[&str]| words.iter().all(|word| name.contains(word));
    let known = KNOWN.iter().find(|known| known.words.iter().any(called));
    let known = known.filter(|_| file.names().iter().any(|key| is_wan_key(key)));
    Ok(known.map(|known| {
        let recipe = Recipe {
            num_inference_steps: Some(steps_in(&name).unwrap_or(known.steps)),
            scheduler: known.scheduler.map(str::to_owned),
            shift: known.shift,
            guidance_scale: Some(1.0),
            ..Recipe::default()
        };
        FoundRecipe { recipe, source: RecipeSource::Known(known.of) }
    }))
}

/// The number before `step` in a name of letters and digits, of at most two digits.
fn steps_in(name: &str) -> Option<usize> {
    let before = name.split_once("step")?.0;
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    (1..=2).contains(&digits).then(|| before[before.len() - digits..].parse().ok()).flatten().filter(|&steps| steps > 0)
}

/// True for a key of a layer of Wan's transformers, under their own names or diffusers'.
fn is_wan_key(key: &str) -> bool {
    ["self_attn", "cross_attn"].iter().any(|word| key.contains(word))
        || (key.contains("blocks.") && !key.contains("transformer_blocks.") && key.contains(".attn1."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::weights::write_tensors;
    use crate::tensor::{NamedTensors, Tensor};
    use indexmap::IndexMap;

    fn write(path: &Path, key: &str, metadata: &[(&str, &str)]) {
        let tensors = NamedTensors::from([(key.to_owned(), Tensor::F32(ndarray::ArrayD::zeros(vec![1, 1])))]);
        let metadata: IndexMap<String, String> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        write_tensors(path, &tensors, &metadata).unwrap();
    }

    #[test]
    fn recipe_comes_from_the_header_then_a_file_beside_it_then_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank64.safetensors");
        let key = "diffusion_model.blocks.0.self_attn.q.lora_A.weight";
        write(&path, key, &[]);
        let found = recipe_of(&path).unwrap().unwrap();
        assert_eq!(found.source, RecipeSource::Known("LightX2V"));
        assert_eq!((found.recipe.num_inference_steps, found.recipe.guidance_scale), (Some(4), Some(1.0)));

        let beside = path.with_extension("recipe.json");
        std::fs::write(&beside, r#"{"num_inference_steps": 6, "boundary_ratio": 0.9}"#).unwrap();
        let found = recipe_of(&path).unwrap().unwrap();
        assert_eq!(
            (found.recipe.to_string(), found.source),
            ("6 steps, boundary 0.9".to_owned(), RecipeSource::Beside(beside.clone()))
        );

        write(&path, key, &[(METADATA, r#"{"shift": 8}"#)]);
        assert_eq!(recipe_of(&path).unwrap().unwrap().source, RecipeSource::Metadata);
        for (text, word) in [("{\"steps\": 4}", "steps"), ("{\"shift\": -1}", "`shift`: expected"), ("[", "EOF")] {
            write(&path, key, &[(METADATA, text)]);
            let error = recipe_of(&path).unwrap_err().to_string();
            assert!(error.contains("recipe: ") && error.contains(word), "{error}");
        }
        // An effect that is called like a distillation is none, steps are read from the name, and a folder's name counts.
        let named = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write(&path, key, &[]);
            recipe_of(&path).unwrap().and_then(|found| found.recipe.num_inference_steps)
        };
        assert_eq!(named("ice_and_lightning_storm.safetensors"), None);
        assert_eq!(named("Wan2.2-Lightning_T2V-A14B-8steps.safetensors"), Some(8));
        assert_eq!(named("wan_lightx2v/pytorch_lora_weights.safetensors"), Some(4));
        // The name of another model's file says nothing.
        let other = folder.path().join("cogvideox_lightning_4steps.safetensors");
        write(&other, "transformer_blocks.0.attn1.to_q.lora_A.weight", &[]);
        assert_eq!(recipe_of(&other).unwrap(), None);
    }
}
