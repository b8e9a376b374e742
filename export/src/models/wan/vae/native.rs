//! The names that Wan's authors and ComfyUI give the autoencoder's tensors, and what their shapes say of it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::CLASS;
use crate::models::recognised::{Recognised, Shapes};
use crate::{Checkpoint, ExportError};

/// A tensor that every autoencoder under the authors' names has, and one that each under diffusers' has.
const NATIVE: &str = "decoder.middle.0.residual.0.gamma";
const DIFFUSERS: &str = "decoder.mid_block.resnets.0.norm1.gamma";
/// The end of a tensor that only modules have which change the size.
const RESAMPLE: &str = "resample.1.weight";
/// Most modules in a list, and blocks; both are above any model.
const MOST: usize = 64;

/// Wan 2.2's means of the latent's channels.
const MEAN_2_2: [f64; 48] = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
];
/// Wan 2.2's deviations of the latent's channels.
const DEVIATION_2_2: [f64; 48] = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
];

/// An autoencoder by its tensors, `beside` a `config.json` of whatever kind; `None` if it is none of Wan's.
pub(in super::super) fn recognise(checkpoint: &Checkpoint, beside: &Json) -> Result<Option<Recognised>, ExportError> {
    let Some(names) = names(checkpoint) else { return Ok(None) };
    if beside["_class_name"] == CLASS {
        return Ok(Some(Recognised { config: beside.clone(), names }));
    }
    let config = config(&Shapes::new(checkpoint, &names), checkpoint.label())?;
    Ok(Some(Recognised { config, names }))
}

/// The tensors' names in diffusers where they have the authors'; `None` if it is none of Wan's autoencoders.
pub(in super::super) fn names(checkpoint: &Checkpoint) -> Option<BTreeMap<String, String>> {
    if !checkpoint.contains(NATIVE) && !checkpoint.contains(DIFFUSERS) {
        return None;
    }
    let resample = |i: &usize| checkpoint.contains(&format!("decoder.upsamples.{i}.{RESAMPLE}"));
    let block = (0..MOST).find(resample).map(|i| i + 1);
    Some(Recognised::names_by(checkpoint, "", |name| to_diffusers(name, block)))
}

/// A tensor's name in diffusers, of its name in the authors' code; `block` is the number of modules in a block of the decoder
/// where its list is flat, as in Wan 2.1.
fn to_diffusers(name: &str, block: Option<usize>) -> Option<String> {
    const ROOTS: [(&str, &str); 10] = [
        ("conv1.", "quant_conv."),
        ("conv2.", "post_quant_conv."),
        ("conv1.", "conv_in."),
        ("head.0.", "norm_out."),
        ("head.2.", "conv_out."),
        ("middle.0.", "mid_block.resnets.0."),
        ("middle.1.", "mid_block.attentions.0."),
        ("middle.2.", "mid_block.resnets.1."),
        ("downsamples.", "down_blocks."),
        ("upsamples.", "up_blocks."),
    ];
    let Some((side, inside)) = ["encoder.", "decoder."].iter().find_map(|side| Some((side, name.strip_prefix(side)?)))
    else {
        let (from, to) = ROOTS[..2].iter().find(|(from, _)| name.starts_with(from))?;
        return Some(format!("{to}{}", &name[from.len()..]));
    };
    let (from, to) = ROOTS[2..].iter().find(|(from, _)| inside.starts_with(from))?;
    let rest = &inside[from.len()..];
    let rest = match *from {
        "downsamples." | "upsamples." => of_list(rest, block.filter(|_| *from == "upsamples."))?,
        _ => of_module(rest).unwrap_or_else(|| rest.to_owned()),
    };
    Some(format!("{side}{to}{rest}"))
}

/// The same behind `downsamples.` or `upsamples.`.
fn of_list(name: &str, block: Option<usize>) -> Option<String> {
    let (number, rest) = name.split_once('.')?;
    let resamples = |rest: &str| rest.starts_with("resample.") || rest.starts_with("time_conv.");
    if let Some((way, rest)) =
        ["down", "up"].iter().find_map(|way| Some((way, rest.strip_prefix(&format!("{way}samples."))?)))
    {
        let (module, rest) = rest.split_once('.')?;
        return match resamples(rest) {
            true => Some(format!("{number}.{way}sampler.{rest}")),
            false => Some(format!("{number}.resnets.{module}.{}", of_module(rest)?)),
        };
    }
    match block {
        None if resamples(rest) => Some(name.to_owned()),
        None => Some(format!("{number}.{}", of_module(rest)?)),
        Some(block) => {
            let number: usize = number.parse().ok()?;
            let (number, module) = (number / block, number % block);
            match resamples(rest) {
                true => Some(format!("{number}.upsamplers.0.{rest}")),
                false => Some(format!("{number}.resnets.{module}.{}", of_module(rest)?)),
            }
        }
    }
}

/// The same of a tensor of a residual block.
fn of_module(name: &str) -> Option<String> {
    const LAYERS: [(&str, &str); 5] = [
        ("residual.0.", "norm1."),
        ("residual.2.", "conv1."),
        ("residual.3.", "norm2."),
        ("residual.6.", "conv2."),
        ("shortcut.", "conv_shortcut."),
    ];
    let (from, to) = LAYERS.iter().find(|(from, _)| name.starts_with(from))?;
    Some(format!("{to}{}", &name[from.len()..]))
}

/// What `config.json` of diffusers would say.
fn config(shapes: &Shapes<'_>, label: &str) -> Result<Json, ExportError> {
    let base = shapes.extent("encoder.conv_in.weight", 0)?;
    let z = shapes.extent("post_quant_conv.weight", 0)?;
    let statistics = match z {
        16 => json!({}),
        48 => json!({ "latents_mean": MEAN_2_2.to_vec(), "latents_std": DEVIATION_2_2.to_vec() }),
        other => {
            return Err(ExportError::NotAModel {
                path: label.into(),
                reason: format!(
                    "the latent has {other} channels; means and deviations are known for 16 (Wan 2.1) and 48 (Wan 2.2): put the \
                     model's config.json beside the file"
                ),
            });
        }
    };
    let residual = shapes.has("encoder.down_blocks.0.resnets.0.conv1.weight");
    let block = match residual {
        true => None,
        false => {
            (0..MOST).find(|i| shapes.has(&format!("encoder.down_blocks.{i}.{RESAMPLE}"))).map(|resnets| resnets + 1)
        }
    };
    let module = |stage: usize, module: Option<usize>| match (block, module) {
        (Some(block), module) => format!("encoder.down_blocks.{}", stage * block + module.unwrap_or(block - 1)),
        (None, Some(module)) => format!("encoder.down_blocks.{stage}.resnets.{module}"),
        (None, None) => format!("encoder.down_blocks.{stage}.downsampler"),
    };
    let first = |stage: usize| format!("{}.conv2.weight", module(stage, Some(0)));
    let stages = (0..MOST).take_while(|&stage| shapes.has(&first(stage))).count();
    let widths = (0..stages).map(|stage| shapes.extent(&first(stage), 0)).collect::<Result<Vec<_>, _>>()?;
    let resnets = (0..MOST).take_while(|&i| shapes.has(&format!("{}.conv2.weight", module(0, Some(i))))).count();
    let halves = |stage: usize| shapes.has(&format!("{}.time_conv.weight", module(stage, None)));
    let channels = shapes.extent("encoder.conv_in.weight", 1)?;
    let patch = if channels == 12 { Some(2) } else { None };
    let mut config = json!({
        "_class_name": CLASS,
        "base_dim": base,
        "decoder_base_dim": shapes.extent("decoder.norm_out.gamma", 0)?,
        "z_dim": z,
        "dim_mult": widths.iter().map(|width| width / base.max(1)).collect::<Vec<_>>(),
        "num_res_blocks": resnets,
        "temperal_downsample": (1..stages).map(|stage| halves(stage - 1)).collect::<Vec<_>>(),
        "is_residual": residual,
        "in_channels": channels,
        "out_channels": shapes.extent("decoder.conv_out.weight", 0)?,
        "patch_size": patch,
        "scale_factor_spatial": null,
    });
    if let (Some(config), Json::Object(statistics)) = (config.as_object_mut(), statistics) {
        config.extend(statistics);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_both_versions_have_one_name_in_diffusers() {
        for (native, block, diffusers) in [
            ("conv1.weight", None, "quant_conv.weight"),
            ("conv2.bias", None, "post_quant_conv.bias"),
            ("encoder.conv1.weight", None, "encoder.conv_in.weight"),
            ("decoder.head.0.gamma", None, "decoder.norm_out.gamma"),
            ("decoder.middle.1.to_qkv.weight", None, "decoder.mid_block.attentions.0.to_qkv.weight"),
            ("encoder.middle.2.residual.6.bias", None, "encoder.mid_block.resnets.1.conv2.bias"),
            ("encoder.downsamples.5.time_conv.bias", Some(4), "encoder.down_blocks.5.time_conv.bias"),
            ("encoder.downsamples.3.shortcut.weight", Some(4), "encoder.down_blocks.3.conv_shortcut.weight"),
            ("decoder.upsamples.7.resample.1.weight", Some(4), "decoder.up_blocks.1.upsamplers.0.resample.1.weight"),
            ("decoder.upsamples.14.residual.0.gamma", Some(4), "decoder.up_blocks.3.resnets.2.norm1.gamma"),
            (
                "encoder.downsamples.1.downsamples.2.resample.1.bias",
                None,
                "encoder.down_blocks.1.downsampler.resample.1.bias",
            ),
            ("decoder.upsamples.0.upsamples.2.residual.3.gamma", None, "decoder.up_blocks.0.resnets.2.norm2.gamma"),
            ("decoder.upsamples.0.upsamples.3.time_conv.bias", None, "decoder.up_blocks.0.upsampler.time_conv.bias"),
        ] {
            assert_eq!(to_diffusers(native, block).as_deref(), Some(diffusers), "{native}");
        }
        for stranger in ["decoder.mid_block.resnets.0.conv1.bias", "model.conv1.weight", "encoder.downsamples.0.x"] {
            assert_eq!(to_diffusers(stranger, None), None, "{stranger}");
        }
    }
}
