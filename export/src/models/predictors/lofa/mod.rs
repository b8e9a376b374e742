//! `lofa`: two stages that read patches of a base's weights and a prompt. The first finds where a layer responds, the second its
//! factors and their scale.
//!
//! Follows LoFA's official code. The graphs are those of [`v2l_runtime::predict::lofa`].

use serde_json::Value as Json;
use v2l_runtime::engine::manifest::{Slot, slots_by_name};
use v2l_runtime::io::json;
use v2l_runtime::predict::lofa::{KIND, NetworkConfig, Sample};

use super::package::{Base, Exported, Package, PackageKind, Text, attributes};
use crate::component::Component;
use crate::{Checkpoint, ExportError};

mod describe;
mod graphs;

use describe::{Config, Sizes};

/// Rows of the text that the official code gives to the network: those of Wan's text encoder.
const TEXT_LENGTH: usize = 512;

/// LoFA.
pub(super) struct Lofa;

impl PackageKind for Lofa {
    fn name(&self) -> &'static str {
        "lofa"
    }

    fn recognises(&self, config: &Json) -> bool {
        config["model_type"] == KIND
    }

    fn export(&self, package: &Package, base: &Base<'_>) -> Result<Exported, ExportError> {
        let config: Config = json::typed(&package.config).map_err(|e| package.misfit(e.to_string()))?;
        let sizes = Sizes::read(package, &config)?;
        let network = NetworkConfig {
            kind: KIND.to_owned(),
            width: sizes.width,
            tokens: sizes.grid * sizes.grid + 1,
            hidden_dim: sizes.d,
            n_heads: sizes.heads,
            n_layer: sizes.blocks,
            rank: sizes.rank,
            text_dim: sizes.context,
            text_len: TEXT_LENGTH,
            samples: samples(package, &config, base.slots, sizes.width)?,
        };
        network.check().map_err(|reason| package.misfit(reason))?;
        let text = Text { width: sizes.context, length: TEXT_LENGTH, encoder: None, of_base: true };
        Ok(Exported { component: component(&package.checkpoint, &sizes, &network)?, text })
    }
}

/// What a layer of Wan's authors is called in diffusers.
fn slot_of(depth: usize, name: &str) -> Option<String> {
    let (module, layer) = name.split_once('.')?;
    let module = match module {
        "self_attn" => "attn1",
        "cross_attn" => "attn2",
        _ => return None,
    };
    let layer = match layer {
        "q" => "to_q",
        "k" => "to_k",
        "v" => "to_v",
        "o" => "to_out.0",
        _ => return None,
    };
    Some(format!("blocks.{depth}.{module}.{layer}"))
}

/// The layers that it predicts for: every type of every depth, which the base must have, and no depth more.
fn samples(package: &Package, config: &Config, slots: &[Slot], width: usize) -> Result<Vec<Sample>, ExportError> {
    let known = slots_by_name(slots);
    let mut samples = Vec::new();
    for depth in 0..config.depths {
        for (kind, name) in config.types.iter().enumerate() {
            let name = slot_of(depth, name).ok_or_else(|| {
                package.misfit(format!(
                    "`types` has `{name}`; expected self_attn or cross_attn, and q, k, v or o, as in `self_attn.q`"
                ))
            })?;
            let found = match known.get(&name[..]) {
                Some(slot) if (slot.out_features, slot.in_features) == (width, width) => {
                    samples.push(Sample { slot: name, depth, kind });
                    continue;
                }
                Some(slot) => format!("is {} → {}", slot.in_features, slot.out_features),
                None => "is not there".to_owned(),
            };
            return Err(package.misfit(format!(
                "the base's layer `{name}` {found}, and the predictor reads {width} → {width}; it is for another base"
            )));
        }
    }
    let beyond = format!("blocks.{}.", config.depths);
    match slots.iter().find(|slot| slot.name.starts_with(&beyond)) {
        Some(slot) => Err(package.misfit(format!(
            "the base has `{}`, and the predictor knows {} blocks; it is for another base",
            slot.name, config.depths
        ))),
        None => Ok(samples),
    }
}

/// The component `hypernetwork`.
fn component(checkpoint: &Checkpoint, sizes: &Sizes, network: &NetworkConfig) -> Result<Component, ExportError> {
    let graphs = graphs::all(checkpoint, sizes)?;
    // The first stage's own heads say where it expects changes; nothing reads that.
    for name in ["A", "B"] {
        let rows = sizes.rank * sizes.width;
        for (part, shape) in [("weight", vec![rows, sizes.d]), ("bias", vec![rows])] {
            checkpoint.tensor(&format!("stage1.head_{name}.{part}"), &shape)?;
        }
    }
    checkpoint.finish("LoFA")?;
    Component {
        name: "hypernetwork".into(),
        graphs,
        precision: checkpoint.precision()?,
        slots: Vec::<Slot>::new(),
        attributes: attributes(&network),
    }
    .seal()
}
