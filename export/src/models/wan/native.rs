//! The names that Wan's authors and ComfyUI give the transformer's tensors, and transformers that only look like it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use v2l_runtime::io::json;

use super::transformer;
use crate::checkpoint::is_folding;
use crate::models::recognised::{Recognised, Shapes};
use crate::{Checkpoint, ExportError};

/// What may stand before every name.
const PREFIXES: [&str; 7] =
    ["", "model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "model.", "transformer."];
/// A tensor that every transformer under the authors' names has, and one that each under diffusers' has.
const NATIVE: &str = "head.modulation";
const DIFFUSERS: &str = "condition_embedder.time_proj.weight";

/// Tensors that only other models have, under the authors' names, and what these are called.
const OTHERS: [(&str, &str); 10] = [
    ("vace_patch_embedding.weight", "VACE"),
    ("control_adapter.conv.weight", "Fun-Camera"),
    ("casual_audio_encoder.encoder.final_linear.weight", "S2V (speech to video)"),
    ("audio_proj.audio_proj_glob_1.layer.bias", "HuMo"),
    ("face_adapter.fuser_blocks.0.k_norm.weight", "Animate"),
    ("patch_embedding_mask.weight", "SCAIL-2"),
    ("patch_embedding_pose.weight", "SCAIL"),
    ("patch_embedding_global.weight", "WanDancer"),
    ("music_encoder.0.weight", "WanDancer"),
    ("ref_conv.weight", "a Fun model with a reference image"),
];

/// What the metadata of a single file may call the model.
const MODEL_TYPES: [&str; 3] = ["t2v", "i2v", "ti2v"];

/// A tensor's name in diffusers, of its name in the authors' code.
fn to_diffusers(name: &str) -> Option<String> {
    const ROOTS: [(&str, &str); 13] = [
        ("patch_embedding.", "patch_embedding."),
        ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
        ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
        ("time_projection.1.", "condition_embedder.time_proj."),
        ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
        ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
        ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1."),
        ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."),
        ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."),
        ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2."),
        ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
        ("head.head.", "proj_out."),
        ("head.modulation", "scale_shift_table"),
    ];
    if let Some(rest) = name.strip_prefix("blocks.") {
        let (block, rest) = rest.split_once('.')?;
        return Some(format!("blocks.{block}.{}", of_block(rest)?));
    }
    let (from, to) = ROOTS.iter().find(|(from, _)| name.starts_with(from))?;
    Some(format!("{to}{}", &name[from.len()..]))
}

/// The same of the part of a name behind a block's number.
fn of_block(name: &str) -> Option<String> {
    const MODULES: [(&str, &str); 3] = [("norm3.", "norm2."), ("ffn.0.", "ffn.net.0.proj."), ("ffn.2.", "ffn.net.2.")];
    const LAYERS: [(&str, &str); 9] = [
        ("q.", "to_q."),
        ("k.", "to_k."),
        ("v.", "to_v."),
        ("o.", "to_out.0."),
        ("norm_q.", "norm_q."),
        ("norm_k.", "norm_k."),
        ("k_img.", "add_k_proj."),
        ("v_img.", "add_v_proj."),
        ("norm_k_img.", "norm_added_k."),
    ];
    let replaced = |table: &[(&str, &str)], name: &str| {
        let (from, to) = table.iter().find(|(from, _)| name.starts_with(from))?;
        Some(format!("{to}{}", &name[from.len()..]))
    };
    if name == "modulation" {
        return Some("scale_shift_table".to_owned());
    }
    for (from, to) in [("self_attn.", "attn1."), ("cross_attn.", "attn2.")] {
        if let Some(rest) = name.strip_prefix(from) {
            return Some(format!("{to}{}", replaced(&LAYERS, rest)?));
        }
    }
    replaced(&MODULES, name)
}

/// What stands before every name; `None` if the tensors are none of Wan's transformers.
fn prefix(checkpoint: &Checkpoint) -> Option<&'static str> {
    let has = |prefix: &str, name: &str| checkpoint.contains(&format!("{prefix}{name}"));
    PREFIXES.into_iter().find(|prefix| has(prefix, NATIVE) || has(prefix, DIFFUSERS))
}

/// The tensors' names in diffusers where they have others; `None` if they are none of Wan's transformers.
///
/// # Errors
/// Names a model that is built on Wan's.
pub(super) fn names(checkpoint: &Checkpoint) -> Result<Option<BTreeMap<String, String>>, ExportError> {
    let Some(prefix) = prefix(checkpoint) else { return Ok(None) };
    refuse_others(checkpoint, prefix)?;
    Ok(Some(match checkpoint.contains(&format!("{prefix}{NATIVE}")) {
        true => Recognised::names_by(checkpoint, prefix, to_diffusers),
        false => Recognised::names_by(checkpoint, prefix, |name| Some(name.to_owned())),
    }))
}

/// A transformer by its tensors, `beside` a `config.json` of whatever kind; `None` if it is none of Wan's.
pub(super) fn recognise(checkpoint: &Checkpoint, beside: &Json) -> Result<Option<Recognised>, ExportError> {
    let Some(names) = names(checkpoint)? else { return Ok(None) };
    let config = config(&Shapes::new(checkpoint, &names), checkpoint.label(), beside)?;
    Ok(Some(Recognised { config, names }))
}

/// Refuses by name what has Wan's tensors and others.
fn refuse_others(checkpoint: &Checkpoint, prefix: &str) -> Result<(), ExportError> {
    let unsupported = |model: &str, why: String| ExportError::Unsupported {
        what: format!("{}: {model}, which is built on Wan,", checkpoint.label()),
        reason: format!("{why}; expected text to video, image to video, first and last frame, or TI2V"),
    };
    if let Some((tensor, model)) = OTHERS.iter().find(|(name, _)| checkpoint.contains(&format!("{prefix}{name}"))) {
        return Err(unsupported(model, format!("it has a tensor `{tensor}`")));
    }
    let metadata = checkpoint.metadata("config").and_then(|text| json::read::<Json>(text.as_bytes()).ok());
    let named = metadata.as_ref().and_then(|json| json["transformer"]["model_type"].as_str());
    if let Some(model) = named.filter(|named| !MODEL_TYPES.contains(named)) {
        return Err(unsupported(&format!("`{model}`"), "its metadata name it so".to_owned()));
    }
    let [kernel, bias] =
        ["weight", "bias"].map(|of| checkpoint.shape(&format!("{prefix}patch_embedding.{of}")).unwrap_or_default());
    let channels = Patch::read(kernel, bias, PATCH).map(|patch| patch.channels);
    let image = checkpoint.contains(&format!("{prefix}img_emb.proj.0.bias"));
    if let Some(channels) = channels.filter(|&channels| image && channels >= 32 && channels != 36) {
        let what = if channels == 48 { "Fun-Control" } else { "another Fun model" };
        return Err(unsupported(what, format!("it takes images and {channels} channels")));
    }
    Ok(())
}

/// Frames, rows and columns of a patch of every published model.
const PATCH: [usize; 3] = [1, 2, 2];

/// What the patch embedding's kernel `[width, channels, frames, rows, columns]` says.
#[derive(Debug, PartialEq, Eq)]
struct Patch {
    width: usize,
    channels: usize,
    size: [usize; 3],
}

impl Patch {
    /// Reads the shape of the kernel and of its bias. GGUF may have folded axes, and left out those of 1: the width is the bias's
    /// then, and the patch's `size` decides about the rest. `None` if that is no reading.
    fn read(kernel: &[usize], bias: &[usize], size: [usize; 3]) -> Option<Self> {
        if let &[width, channels, frames, rows, columns] = kernel {
            return Some(Self { width, channels, size: [frames, rows, columns] });
        }
        let count = |extents: &[usize]| extents.iter().try_fold(1usize, |all, extent| all.checked_mul(*extent));
        let (elements, volume, &[width]) = (count(kernel)?, count(&size)?, bias) else { return None };
        let channels = elements.checked_div(width.checked_mul(volume)?)?;
        let [frames, rows, columns] = size;
        is_folding(kernel, &[width, channels, frames, rows, columns]).then_some(Self { width, channels, size })
    }
}

/// The patch embedding, of a size that `beside` may say.
fn patch(shapes: &Shapes<'_>, label: &str, beside: &Json, ours: bool) -> Result<Patch, ExportError> {
    const NAME: &str = "patch_embedding";
    let [kernel, bias] = [shapes.shape(&format!("{NAME}.weight"))?, shapes.shape(&format!("{NAME}.bias"))?];
    let side = |axis: usize| Some(beside["patch_size"][axis].as_u64()? as usize);
    let said = || Some([side(0)?, side(1)?, side(2)?]);
    let size = Some(beside).filter(|_| ours).and_then(|_| said());
    Patch::read(kernel, bias, size.unwrap_or(PATCH)).ok_or_else(|| ExportError::NotAModel {
        path: label.into(),
        reason: format!(
            "tensor `{NAME}.weight` has shape {kernel:?}; expected [{}, channels, frames, rows, columns] of a patch, or that with axes \
             folded, for patches of {:?}: {}",
            bias.first().map_or_else(|| "width".to_owned(), usize::to_string),
            size.unwrap_or(PATCH),
            if size.is_some() {
                "config.json is another model's"
            } else {
                "put the model's config.json beside the file, which says their size"
            }
        ),
    })
}

/// What `config.json` of diffusers would say.
fn config(shapes: &Shapes<'_>, label: &str, beside: &Json) -> Result<Json, ExportError> {
    let ours = beside["_class_name"].as_str().is_none_or(|class| class.starts_with("Wan"));
    let Patch { width, channels, size: patch_size } = patch(shapes, label, beside, ours)?;
    let volume = patch_size.iter().product::<usize>().max(1);
    let stated = |names: [&str; 2]| names.iter().find_map(|name| beside[*name].as_u64()).filter(|_| ours);
    let heads = stated(["num_attention_heads", "num_heads"]).map_or(width / 128, |heads| heads as usize);
    if heads == 0 || !width.is_multiple_of(heads) || (beside.is_null() && !width.is_multiple_of(128)) {
        return Err(ExportError::NotAModel {
            path: label.into(),
            reason: format!(
                "the width {width} does not say the number of heads, which is width / 128 in every published model; put the \
                 model's config.json beside the file"
            ),
        });
    }
    let image = "condition_embedder.image_embedder";
    let optional = |name: &str, axis: usize| shapes.has(name).then(|| shapes.extent(name, axis)).transpose();
    // `[1, positions, width]`, of which GGUF may leave out the first.
    let places = format!("{image}.pos_embed");
    let positions = match shapes.has(&places) {
        true => shapes.shape(&places)?.iter().rev().nth(1).copied(),
        false => None,
    };
    let mut config = json!({
        "_class_name": transformer::CLASS,
        "patch_size": patch_size,
        "num_attention_heads": heads,
        "attention_head_dim": width / heads,
        "in_channels": channels,
        "out_channels": shapes.extent("proj_out.weight", 0)? / volume,
        "text_dim": shapes.extent("condition_embedder.text_embedder.linear_1.weight", 1)?,
        "freq_dim": shapes.extent("condition_embedder.time_embedder.linear_1.weight", 1)?,
        "ffn_dim": shapes.extent("blocks.0.ffn.net.0.proj.weight", 0)?,
        "num_layers": shapes.count("blocks."),
        "cross_attn_norm": shapes.has("blocks.0.norm2.weight"),
        "image_dim": optional(&format!("{image}.norm1.weight"), 0)?,
        "added_kv_proj_dim": optional("blocks.0.attn2.add_k_proj.weight", 1)?,
        "pos_embed_seq_len": positions,
    });
    for key in ["eps", "rope_max_seq_len"] {
        if ours && !beside[key].is_null() {
            config[key] = beside[key].clone();
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_is_read_off_every_folding_of_its_kernel_and_of_nothing_else() {
        let patch = |channels, size| Some(Patch { width: 48, channels, size });
        for kernel in [&[48, 16, 1, 2, 2][..], &[48, 16, 2, 2], &[768, 1, 2, 2], &[48, 64], &[48, 16, 4]] {
            assert_eq!(Patch::read(kernel, &[48], PATCH), patch(16, PATCH), "{kernel:?}");
        }
        assert_eq!(Patch::read(&[48, 36, 2, 2], &[48], PATCH), patch(36, PATCH));
        assert_eq!(Patch::read(&[48, 64], &[48], [2, 2, 2]), patch(8, [2, 2, 2]));
        assert_eq!(Patch::read(&[48, 16, 2, 2, 2], &[48], PATCH), patch(16, [2, 2, 2]));
        for kernel in [&[64, 48][..], &[48, 63], &[48, 16, 3, 3], &[47, 64], &[]] {
            assert_eq!(Patch::read(kernel, &[48], PATCH), None, "{kernel:?}");
        }
        assert_eq!(Patch::read(&[48, 64], &[0], PATCH), None);
        assert_eq!(Patch::read(&[48, 64], &[48], [0, 2, 2]), None);
        assert_eq!(Patch::read(&[usize::MAX, 4], &[48], PATCH), None);
    }

    #[test]
    fn every_tensor_of_the_authors_has_one_name_in_diffusers() {
        for (native, diffusers) in [
            ("patch_embedding.bias", "patch_embedding.bias"),
            ("time_projection.1.weight", "condition_embedder.time_proj.weight"),
            ("img_emb.proj.4.bias", "condition_embedder.image_embedder.norm2.bias"),
            ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
            ("blocks.12.self_attn.o.bias", "blocks.12.attn1.to_out.0.bias"),
            ("blocks.0.cross_attn.norm_k_img.weight", "blocks.0.attn2.norm_added_k.weight"),
            ("blocks.0.norm3.bias", "blocks.0.norm2.bias"),
            ("blocks.3.ffn.2.weight", "blocks.3.ffn.net.2.weight"),
            ("blocks.3.modulation", "blocks.3.scale_shift_table"),
            ("head.modulation", "scale_shift_table"),
            ("head.head.weight", "proj_out.weight"),
        ] {
            assert_eq!(to_diffusers(native).as_deref(), Some(diffusers));
        }
        for stranger in
            ["blocks.0.norm2.weight", "blocks.0.cross_attn.x.weight", "vace_blocks.0.norm3.weight", "head.x"]
        {
            assert_eq!(to_diffusers(stranger), None, "{stranger}");
        }
    }
}
