//! What an adapter was made to be sampled with: its recipe.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::AdapterError;
use super::distilled::Name;
use super::parts::locate;
use crate::io::weights::{WeightError, WeightFile};

/// The header's entry that holds a recipe as JSON.
const METADATA: &str = "v2l.recipe";
/// What a recipe beside `effect.safetensors` is called: `effect.recipe.json`.
const BESIDE: &str = "recipe.json";
/// The longest recipe that is read, in bytes.
const LONGEST: u64 = 1 << 16;
/// The largest guidance of either sign, as in a request.
const MAX_GUIDANCE: f64 = 1000.0;

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
        let too_far = |scale: f64| !(-MAX_GUIDANCE..=MAX_GUIDANCE).contains(&scale);
        let wrong = [
            (
                "num_inference_steps",
                self.num_inference_steps.is_some_and(|steps| !(1..=100_000).contains(&steps)),
                "1 to 100000",
            ),
            ("shift", self.shift.is_some_and(|shift| !positive(shift)), "a number above 0"),
            ("guidance_scale", self.guidance_scale.is_some_and(too_far), "-1000 to 1000"),
            ("guidance_scale_2", self.guidance_scale_2.is_some_and(too_far), "-1000 to 1000"),
            ("boundary_ratio", self.boundary_ratio.is_some_and(|ratio| !(0.0..=1.0).contains(&ratio)), "0 to 1"),
        ];
        match wrong.into_iter().find(|(_, wrong, _)| *wrong) {
            Some((key, _, expected)) => Err(format!("`{key}`: expected {expected}")),
            None => Ok(()),
        }
    }
}

/// Distillations of Wan, which their files' names say.
struct Known {
    /// True for the words of a name of such a file.
    is: fn(&Name) -> bool,
    of: &'static str,
    steps: usize,
    shift: Option<f64>,
    scheduler: Option<&'static str>,
}

/// Recipes of LightX2V's configurations and of Wan2GP's profiles. All were distilled without guidance.
const KNOWN: [Known; 4] = [
    Known {
        // Effects are called lightning, too, and what is made for LightX2V: the second word tells a distillation.
        is: |name| {
            name.has("lightx2v") && (name.has("distill") || name.steps.is_some())
                || name.follow("step", "distill")
                || name.steps.is_some() && (name.has("lightning") || name.has("seko"))
                // LightX2V's own folders have a date in the place of a name.
                || name.steps.is_some() && name.dated && name.has("wan") && name.has("a14b")
        },
        of: "LightX2V",
        steps: 4,
        shift: Some(5.0),
        scheduler: Some("euler_simple"),
    },
    Known { is: |name| name.has("fastwan"), of: "FastWan", steps: 3, shift: Some(3.0), scheduler: None },
    Known {
        is: |name| name.has("fusionx") || name.has("fusionix"),
        of: "FusionX",
        steps: 10,
        shift: Some(2.0),
        scheduler: None,
    },
    Known { is: |name| name.has("causvid"), of: "CausVid", steps: 9, shift: None, scheduler: None },
];

/// The recipe of an adapter's file: the header's entry `v2l.recipe`, else a file `<name>.recipe.json` beside it, else, for Wan's transformers,
/// what is known of distillations that are called so. A name that has any word which files of distillations do not have says nothing.
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
    let name = Name::of(&said_name(&path));
    let known = name.as_ref().and_then(|name| KNOWN.iter().find(|known| (known.is)(name)));
    let known = known.filter(|_| file.names().iter().any(|key| is_wan_key(key)));
    Ok(known.map(|known| {
        let recipe = Recipe {
            num_inference_steps: Some(name.as_ref().and_then(|name| name.steps).unwrap_or(known.steps)),
            scheduler: known.scheduler.map(str::to_owned),
            shift: known.shift,
            guidance_scale: Some(1.0),
            ..Recipe::default()
        };
        FoundRecipe { recipe, source: RecipeSource::Known(known.of) }
    }))
}

/// A file's own name, or its folder's if the file is called as every other.
fn said_name(path: &Path) -> String {
    const COMMON: [&str; 4] = ["adapter_model", "pytorch_lora_weights", "high_noise_model", "low_noise_model"];
    let own = path.file_stem().unwrap_or_default().to_string_lossy();
    let folder = path.parent().and_then(Path::file_name).filter(|_| COMMON.contains(&&own[..]));
    folder.map_or_else(|| own.clone().into_owned(), |folder| folder.to_string_lossy().into_owned())
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

    /// Names as files on the hubs have them, each with the recipe that it says.
    #[test]
    fn name_says_a_recipe_only_where_files_of_distillations_alone_have_it() {
        let (mut distilled, mut traps) = (0, 0);
        for line in include_str!("recipe/names.txt").lines().filter(|line| !line.starts_with('#')) {
            let (name, expected) = line.split_once(" = ").unwrap();
            let name = Name::of(name);
            let known = name.as_ref().and_then(|name| KNOWN.iter().find(|known| (known.is)(name)));
            let found = known.map(|known| {
                format!("{} {}", known.of, name.as_ref().and_then(|name| name.steps).unwrap_or(known.steps))
            });
            assert_eq!(found.as_deref().unwrap_or("nothing"), expected, "{line}");
            if expected == "nothing" { traps += 1 } else { distilled += 1 }
        }
        assert!(distilled >= 30 && traps >= 40, "{distilled} distilled, {traps} traps");
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
        for (text, word) in [
            ("{\"steps\": 4}", "steps"),
            ("{\"shift\": -1}", "`shift`: expected"),
            ("{\"guidance_scale\": 1001}", "`guidance_scale`: expected"),
            ("[", "EOF"),
        ] {
            write(&path, key, &[(METADATA, text)]);
            let error = recipe_of(&path).unwrap_err().to_string();
            assert!(error.contains("recipe: ") && error.contains(word), "{error}");
        }
        // Steps are read from the name, and a folder's name counts.
        let named = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write(&path, key, &[]);
            recipe_of(&path).unwrap().and_then(|found| found.recipe.num_inference_steps)
        };
        assert_eq!(named("ice_and_lightning_storm-step00000800.safetensors"), None);
        assert_eq!(named("Wan2.2-Lightning_T2V-A14B-8steps.safetensors"), Some(8));
        assert_eq!(named("wan_lightx2v_step_distill/pytorch_lora_weights.safetensors"), Some(4));
        assert_eq!(named("Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/high_noise_model.safetensors"), Some(4));
        assert_eq!(named("ice_storm-4steps/adapter_model.safetensors"), None);
        // The name of another model's file says nothing.
        let other = folder.path().join("cogvideox_lightning_4steps.safetensors");
        write(&other, "transformer_blocks.0.attn1.to_q.lora_A.weight", &[]);
        assert_eq!(recipe_of(&other).unwrap(), None);
    }
}
