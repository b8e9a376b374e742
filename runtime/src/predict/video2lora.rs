//! Video2LoRA: a hypernetwork that turns a reference's latents into an adapter.
//!
//! It has two graphs: `predict` (latents → one token per slot, a few kilobytes) and `expand` (tokens → low-rank factors).

use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

use super::error::PredictorError;
use super::inputs::{Input, Inputs};
use super::key::{Key, KeyParts};
use super::kind::{Entry, Predicted, Predictor, Tokens};
use super::lazy::LazySession;
use super::network::{Target, check_targets, described};
use super::outputs::{cube, matrix};
use crate::backends::OpenEngine;
use crate::components::{HYPERNETWORK, VAE_ENCODER};
use crate::engine::Engine;
use crate::engine::manifest::{Manifest, Slot};
use crate::engine::session::Session;
use crate::error::Error;
use crate::events::Observer;
use crate::lora::adapter::{Adapter, AuxiliaryFactors, LightLora, LowRank, auxiliary_hash};
use crate::options::OpenOptions;
use crate::pipeline::{LatentChoice, Reference};
use crate::tensor::Tensor;

pub(super) const ENTRY: Entry = Entry {
    kind: KIND,
    reads: &[Input::Reference],
    open: |engine, options| Ok(Box::new(Video2Lora::open(engine, options)?)),
};

/// The attribute `kind` of engines that this module runs.
pub const KIND: &str = "video2lora";

/// What a hypernetwork engine says of itself, in its manifest's attributes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictorConfig {
    /// [`KIND`].
    pub kind: String,
    /// Rows of the auxiliary down factors.
    pub down_dim: usize,
    /// Columns of the auxiliary up factors.
    pub up_dim: usize,
    /// Rank of the predicted updates.
    pub rank: usize,
    /// Values per token: `(down_dim + up_dim) · rank`.
    pub weight_dim: usize,
    /// Tokens: one per slot.
    pub weight_num: usize,
    /// Attention heads of the decoder.
    pub heads: usize,
    /// Times that the decoder refines the tokens.
    pub iterations: usize,
    /// Layers that the tokens are for, in token order.
    pub slots: Vec<TargetSlot>,
}

impl PredictorConfig {
    /// Checks that the numbers agree with each other.
    fn check(&self) -> Result<(), String> {
        let Self { down_dim, up_dim, rank, weight_dim, weight_num, .. } = *self;
        let width = down_dim.checked_add(up_dim).and_then(|n| n.checked_mul(rank));
        if width != Some(weight_dim) || rank == 0 {
            return Err(format!("weight_dim: expected ({down_dim} + {up_dim}) · {rank}, found {weight_dim}"));
        }
        if self.slots.len() != weight_num {
            return Err(format!("slots: expected {weight_num}, found {}", self.slots.len()));
        }
        Ok(())
    }
}

/// A layer that a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetSlot {
    /// Module path in the backbone.
    pub name: String,
    /// Input features of the layer.
    pub in_features: usize,
    /// Output features of the layer.
    pub out_features: usize,
}

/// A hypernetwork, ready to run.
pub struct Video2Lora {
    config: PredictorConfig,
    auxiliary: String,
    /// Most of the weights belong to it; a saved or kept prediction does not need it.
    predict: LazySession,
    expand: Box<dyn Session>,
}

impl Video2Lora {
    /// Opens a hypernetwork engine on its backend; the graph `predict` not before it is needed.
    ///
    /// # Errors
    /// [`PredictorError::Config`], [`PredictorError::Open`].
    pub fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, PredictorError> {
        let path = engine.path().display().to_string();
        let manifest = engine.manifest().clone();
        let mut open = OpenEngine::open(engine, options)?;
        open.engine().graph("predict")?;
        let expand = open.session("expand")?;
        let (config, auxiliary) = read_config(&path, &manifest)?;
        let predict = LazySession::Closed { engine: open, graph: "predict".to_owned() };
        Ok(Self { config, auxiliary, predict, expand })
    }

    /// A predictor over open graphs; `path` serves error messages.
    ///
    /// # Errors
    /// [`PredictorError::Config`].
    pub fn from_sessions(
        path: &str,
        manifest: &Manifest,
        predict: Box<dyn Session>,
        expand: Box<dyn Session>,
    ) -> Result<Self, PredictorError> {
        let (config, auxiliary) = read_config(path, manifest)?;
        Ok(Self { config, auxiliary, predict: LazySession::Open(predict), expand })
    }

    /// What the engine says of itself.
    pub fn config(&self) -> &PredictorConfig {
        &self.config
    }

    /// Checks that a backbone has every layer that the tokens are for, of the right size.
    ///
    /// # Errors
    /// [`PredictorError::Backbone`] for the first layer that is missing or differs.
    pub fn check_slots(&self, slots: &[Slot]) -> Result<(), PredictorError> {
        let targets = self.config.slots.iter().map(|slot| {
            let TargetSlot { name, out_features, in_features } = slot;
            Target { slot: name, out_features: *out_features, in_features: *in_features }
        });
        check_targets(slots, targets)
    }

    /// Predicts tokens `[weight_num, weight_dim]` from one reference's latents `[1, 16, frames, height, width]`, scaled as
    /// the checkpoint wants them.
    ///
    /// # Errors
    /// [`PredictorError::Session`] if the latents do not fit, [`PredictorError::Shape`] for more than one reference,
    /// [`PredictorError::NotFinite`].
    pub fn predict_tokens(&mut self, latents: &Tensor) -> Result<Array2<f32>, PredictorError> {
        self.tokens_unless(latents, &|| false)
    }

    fn tokens_unless(&mut self, latents: &Tensor, cancelled: &dyn Fn() -> bool) -> Result<Array2<f32>, PredictorError> {
        if latents.shape().first() != Some(&1) {
            return Err(PredictorError::Shape {
                what: "latents".to_owned(),
                expected: "one reference, [1, 16, frames, height, width]".to_owned(),
                found: format!("{:?}", latents.shape()),
            });
        }
        let mut outputs = self.predict.open()?.run_unless(&[("latents", latents)], cancelled)?;
        let expected = [1, self.config.weight_num, self.config.weight_dim];
        Ok(cube(&mut outputs, "pred_weights", expected)?.index_axis_move(Axis(0), 0))
    }

    /// Expands tokens `[weight_num, weight_dim]` into an adapter for the backbone, `ΔW = strength · up · down`.
    ///
    /// # Errors
    /// [`PredictorError::Shape`], [`PredictorError::NotFinite`], [`PredictorError::Session`].
    pub fn expand_tokens(&mut self, tokens: &Array2<f32>) -> Result<Adapter, PredictorError> {
        let expected = [self.config.weight_num, self.config.weight_dim];
        if tokens.shape() != expected {
            return Err(shape_error("pred_weights", &expected, format!("{:?}", tokens.shape())));
        }
        let tokens = Tensor::F32(tokens.clone().into_dyn());
        let mut outputs = self.expand.run(&[("pred_weights", &tokens)])?;
        let rank = self.config.rank;
        let mut layers = IndexMap::with_capacity(self.config.slots.len());
        for slot in &self.config.slots {
            let down = matrix(&mut outputs, &format!("{}.lora_down", slot.name), [rank, slot.in_features])?;
            let up = matrix(&mut outputs, &format!("{}.lora_up", slot.name), [slot.out_features, rank])?;
            layers.insert(slot.name.clone(), LowRank { down, up, alpha: rank as f32 }.into());
        }
        Ok(Adapter { name: "predicted".to_owned(), layers })
    }
}

impl Predictor for Video2Lora {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn reads(&self) -> &'static [Input] {
        ENTRY.reads
    }

    fn check_backbone(&self, slots: &[Slot]) -> Result<(), Error> {
        Ok(self.check_slots(slots)?)
    }

    fn key(&self, inputs: &mut Inputs<'_>) -> Result<Key, Error> {
        // Folders of predictions outlive versions: what is hashed here must stay as it is.
        let mut parts = KeyParts::new("v2l prediction 1");
        match inputs.reference()? {
            Reference::Frames(frames) => {
                parts.add("frames");
                parts.add(format!("{} {} {:?}", frames.width(), frames.height(), frames.fps()));
                if let Some(starts) = frames.starts() {
                    parts.add(format!("{starts:?}"));
                }
                parts.add(frames.data());
            }
            Reference::Pixels(pixels) => {
                parts.add("pixels");
                parts.add(format!("{:?}", pixels.shape()));
                parts.add_elements(&Tensor::F32(pixels.clone().into_dyn()));
            }
        }
        parts.add(format!("{:?}", inputs.size()?));
        let (knobs, seed) = inputs.preparation()?;
        parts.add(format!("{knobs:?}"));
        parts.add(format!("{:?}", inputs.config()?.family.as_ref().and_then(|family| family.vae())));
        // The mean needs no random number.
        parts.add(if knobs.latent == LatentChoice::Sample { seed } else { 0 }.to_le_bytes());
        let (encoder, hypernetwork) = (inputs.engine(VAE_ENCODER)?, inputs.engine(HYPERNETWORK)?);
        parts.add_engines(&[&encoder, &hypernetwork], inputs.options());
        Ok(parts.key())
    }

    fn predict(&mut self, inputs: &mut Inputs<'_>) -> Result<Predicted, Error> {
        let latents = inputs.reference_latents()?;
        let observer: &dyn Observer = inputs.observer();
        let tokens = self.tokens_unless(&Tensor::from(latents.into_dyn()), &|| observer.cancelled())?;
        let adapter = self.expand_tokens(&tokens)?;
        Ok(Predicted { adapter, tokens: Some(Tokens::light(self, tokens)) })
    }

    fn tokens(&mut self) -> Option<&mut dyn Tokens> {
        Some(self)
    }
}

impl Tokens for Video2Lora {
    fn light(&self, tokens: Array2<f32>) -> LightLora {
        let PredictorConfig { down_dim, up_dim, rank, .. } = self.config;
        LightLora { tokens, down_dim, up_dim, rank, auxiliary: self.auxiliary.clone() }
    }

    fn expand(&mut self, tokens: &LightLora) -> Result<Adapter, Error> {
        if tokens.auxiliary != self.auxiliary {
            let (expected, found) = (tokens.auxiliary.clone(), self.auxiliary.clone());
            return Err(PredictorError::OtherAuxiliary { expected, found }.into());
        }
        Ok(self.expand_tokens(&tokens.tokens)?)
    }
}

/// What a predictor's manifest says, checked, and the hash of its auxiliary factors.
fn read_config(path: &str, manifest: &Manifest) -> Result<(PredictorConfig, String), PredictorError> {
    let config = described((path, manifest), KIND, |config: &PredictorConfig| &config.kind, PredictorConfig::check)?;
    let fail = |reason: String| PredictorError::Config { path: path.to_owned(), reason };
    let auxiliary = manifest_hash(manifest, &config.slots).map_err(fail)?;
    Ok((config, auxiliary))
}

/// Checks that the tokens of a LightLoRA file belong to this predictor, without running it; gives the number of slots.
///
/// # Errors
/// [`PredictorError::Config`], [`PredictorError::OtherAuxiliary`], [`PredictorError::Shape`].
pub fn check_light(light: &LightLora, path: &std::path::Path, manifest: &Manifest) -> Result<usize, PredictorError> {
    let (config, found) = read_config(&path.display().to_string(), manifest)?;
    if light.auxiliary != found {
        return Err(PredictorError::OtherAuxiliary { expected: light.auxiliary.clone(), found });
    }
    let expected = [config.weight_num, config.weight_dim];
    if light.tokens.shape() != expected {
        return Err(shape_error("pred_weights", &expected, format!("{:?}", light.tokens.shape())));
    }
    Ok(config.slots.len())
}

/// The auxiliary factors that a hypernetwork engine's tokens are expanded with, in token order and the storage type: a copy
/// of them all.
///
/// # Errors
/// [`PredictorError::Config`], [`PredictorError::Engine`].
pub fn auxiliary_factors(engine: &Engine) -> Result<Vec<AuxiliaryFactors>, PredictorError> {
    let path = engine.path().display().to_string();
    let fail = |reason: String| PredictorError::Config { path: path.clone(), reason };
    let (config, _) = read_config(&path, engine.manifest())?;
    let read = |name: &str| {
        let tensor = engine.weight(name)?.to_tensor();
        tensor.ok_or_else(|| fail(format!("the length of tensor `{name}` disagrees with its shape")))
    };
    let factors = |slot: TargetSlot| {
        let [down, up] = auxiliary_names(engine.manifest(), &slot.name).map_err(fail)?;
        Ok(AuxiliaryFactors { down: read(&down)?, up: read(&up)?, slot: slot.name })
    };
    config.slots.into_iter().map(factors).collect()
}

/// The tensors with a layer's auxiliary factors, down and up.
fn auxiliary_names(manifest: &Manifest, slot: &str) -> Result<[String; 2], String> {
    let underscored = slot.replace('.', "_");
    let stems = [slot.to_owned(), format!("lora_unet__{underscored}"), format!("lora_unet_{underscored}")];
    let find = |part: &str| {
        let names = stems.iter().map(|stem| format!("{stem}.{part}"));
        let name = names.into_iter().find(|name| manifest.tensors.contains_key(name));
        name.ok_or_else(|| format!("expected a tensor `{slot}.{part}`, found none"))
    };
    Ok([find("down_aux")?, find("up_aux")?])
}

/// The hash of the auxiliary factors, by the manifest's hashes.
fn manifest_hash(manifest: &Manifest, slots: &[TargetSlot]) -> Result<String, String> {
    let mut hashes = Vec::new();
    for slot in slots {
        hashes.extend(auxiliary_names(manifest, &slot.name)?.map(|name| manifest.tensors[&name].blake3));
    }
    Ok(auxiliary_hash(hashes))
}

fn shape_error(what: &str, expected: &[usize], found: String) -> PredictorError {
    PredictorError::Shape { what: format!("`{what}`"), expected: format!("f32 {expected:?}"), found }
}

#[cfg(test)]
pub(crate) mod tests {
    use ndarray::{ArrayD, IxDyn};
    use serde_json::json;

    use super::*;
    use crate::engine::session::{Port, SessionError};
    use crate::tensor::{Dtype, NamedTensors};
    use crate::testing::engines;

    /// Gives the same outputs whatever comes in.
    pub(crate) struct Fixed(pub(crate) NamedTensors);

    impl Session for Fixed {
        fn inputs(&self) -> &[Port] {
            &[]
        }
        fn outputs(&self) -> &[Port] {
            &[]
        }
        fn run(&mut self, _: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
            Ok(self.0.clone())
        }
    }

    fn filled(shape: &[usize], value: f32) -> Tensor {
        Tensor::F32(ArrayD::from_elem(IxDyn(shape), value))
    }

    fn manifest() -> Manifest {
        let tensors = NamedTensors::from([
            ("a.down_aux".to_owned(), filled(&[2, 3], 1.0)),
            ("a.up_aux".to_owned(), filled(&[4, 1], 1.0)),
        ]);
        let attributes = json!({
            "kind": "video2lora", "down_dim": 2, "up_dim": 1, "rank": 1, "weight_dim": 3, "weight_num": 1,
            "heads": 1, "iterations": 4, "slots": [{"name": "a", "in_features": 3, "out_features": 4}],
        });
        Manifest { attributes, ..engines::manifest(&tensors, Dtype::F32, vec![], vec![]) }
    }

    fn predictor(manifest: &Manifest, value: f32) -> Result<Video2Lora, PredictorError> {
        let predict = NamedTensors::from([("pred_weights".to_owned(), filled(&[1, 1, 3], value))]);
        let expand = NamedTensors::from([
            ("a.lora_down".to_owned(), filled(&[1, 3], 2.0)),
            ("a.lora_up".to_owned(), filled(&[4, 1], 3.0)),
        ]);
        Video2Lora::from_sessions("h.engine", manifest, Box::new(Fixed(predict)), Box::new(Fixed(expand)))
    }

    fn slot(out_features: usize) -> Slot {
        Slot::linear("a", out_features, 3)
    }

    #[test]
    fn predictor_predicts_and_expands_to_an_adapter_of_scale_one() {
        let mut predictor = predictor(&manifest(), 0.5).unwrap();
        predictor.check_slots(&[slot(4)]).unwrap();
        let tokens = predictor.predict_tokens(&filled(&[1, 16, 1, 2, 2], 0.0)).unwrap();
        assert_eq!(tokens, Array2::from_elem((1, 3), 0.5));
        let adapter = predictor.expand_tokens(&tokens).unwrap();
        assert_eq!(adapter.layers["a"].scale(), 1.0);
        assert_eq!(adapter.layers["a"].to_low_rank().up.dim(), (4, 1));
        let light = predictor.light(tokens);
        assert_eq!(Tokens::expand(&mut predictor, &light).unwrap(), adapter);
        let other = LightLora { auxiliary: "00".into(), ..light };
        let error = Tokens::expand(&mut predictor, &other).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(PredictorError::OtherAuxiliary { .. })), "{error}");
    }

    #[test]
    fn predictor_names_what_a_backbone_lacks() {
        let predictor = predictor(&manifest(), 0.5).unwrap();
        let message = |slots: &[Slot]| predictor.check_slots(slots).unwrap_err().to_string();
        assert!(message(&[]).contains("slot `a`: expected a linear layer 3 → 4 in the backbone, found none"));
        assert!(message(&[slot(5)]).contains("found 3 → 5"));
    }

    #[test]
    fn predictor_rejects_nan_and_more_than_one_reference() {
        let mut predictor = predictor(&manifest(), f32::NAN).unwrap();
        let latents = filled(&[1, 16, 1, 2, 2], 0.0);
        assert!(matches!(predictor.predict_tokens(&latents), Err(PredictorError::NotFinite { .. })));
        let two = filled(&[2, 16, 1, 2, 2], 0.0);
        assert!(matches!(predictor.predict_tokens(&two), Err(PredictorError::Shape { .. })));
        assert!(predictor.expand_tokens(&Array2::zeros((1, 4))).is_err());
    }

    #[test]
    fn predictor_rejects_attributes_that_contradict_themselves() {
        for (key, value) in
            [("weight_dim", json!(4)), ("weight_num", json!(2)), ("kind", json!("other")), ("rank", json!(0))]
        {
            let mut manifest = manifest();
            manifest.attributes[key] = value;
            assert!(matches!(predictor(&manifest, 0.0), Err(PredictorError::Config { .. })), "{key}");
        }
        let mut manifest = manifest();
        manifest.tensors.shift_remove("a.up_aux");
        let Err(error) = predictor(&manifest, 0.0) else { panic!("expected an error") };
        assert!(error.to_string().contains("`a.up_aux`"), "{error}");
    }
}
