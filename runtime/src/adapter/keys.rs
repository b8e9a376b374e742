//! Taking an adapter's keys apart: form, module, part.

use super::AdapterFormat;

/// What a key holds for its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `[rank, in]`.
    Down,
    /// `[out, rank]`.
    Up,
    /// A scalar.
    Alpha,
}

/// A key, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// Part of a low-rank update.
    LoRa {
        /// How the key is spelled.
        format: AdapterFormat,
        /// Module path; with underscores for dots in kohya's form.
        module: &'a str,
        /// What it holds.
        part: Part,
    },
    /// Part of an update of another kind.
    Other(&'static str),
    /// Nothing known.
    Unknown,
}

const PARTS: [(&str, Part); 13] = [
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_A", Part::Down),
    (".lora_B", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

/// Marks of updates that are no plain LoRA.
const OTHERS: [(&str, &str); 18] = [
    (".lora_magnitude_vector", "a DoRA magnitude"),
    (".dora_scale", "a DoRA magnitude"),
    (".magnitude", "a DoRA magnitude"),
    (".hada_", "a LoHa factor"),
    (".lokr_", "a LoKr factor"),
    (".lora_mid", "a Tucker (LoCon) factor"),
    (".lora_embedding_", "an embedding update"),
    (".lora_B.bias", "an update of a bias"),
    (".lora_up.bias", "an update of a bias"),
    (".diff_b", "a full difference of a bias"),
    (".diff_m", "a full difference"),
    (".diff", "a full difference"),
    (".set_weight", "a full weight"),
    (".oft_", "an OFT factor"),
    (".boft_", "a BOFT factor"),
    (".ia3_", "an IA3 vector"),
    (".vera_", "a VeRA vector"),
    ("_aux", "part of a LiLoRA checkpoint (export it with its hypernetwork)"),
];

const PREFIXES: [(&str, AdapterFormat); 6] = [
    ("base_model.model.", AdapterFormat::Peft),
    ("diffusion_model.", AdapterFormat::Comfy),
    ("transformer.", AdapterFormat::Diffusers),
    ("lora_unet__", AdapterFormat::Kohya),
    ("lora_unet_", AdapterFormat::Kohya),
    ("lora_transformer_", AdapterFormat::Kohya),
];

/// Takes a key apart.
pub(super) fn parse(key: &str) -> Key<'_> {
    if let Some((_, kind)) = OTHERS.iter().find(|(mark, _)| key.contains(mark)) {
        return Key::Other(kind);
    }
    let Some((rest, part)) = PARTS.iter().find_map(|&(suffix, part)| Some((key.strip_suffix(suffix)?, part))) else {
        return Key::Unknown;
    };
    let prefixed = PREFIXES.iter().find_map(|&(prefix, format)| Some((rest.strip_prefix(prefix)?, format)));
    let (module, format) = prefixed.unwrap_or((rest, AdapterFormat::Bare));
    Key::LoRa { format, module, part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_every_form_apart() {
        let cases = [
            ("base_model.model.b.0.to_q.lora_A.weight", AdapterFormat::Peft, "b.0.to_q", Part::Down),
            ("transformer.b.0.to_q.lora_B.weight", AdapterFormat::Diffusers, "b.0.to_q", Part::Up),
            ("diffusion_model.b.0.to_q.lora_up.weight", AdapterFormat::Comfy, "b.0.to_q", Part::Up),
            ("lora_unet_b_0_to_q.lora_down.weight", AdapterFormat::Kohya, "b_0_to_q", Part::Down),
            ("lora_unet__b_0_to_q.alpha", AdapterFormat::Kohya, "b_0_to_q", Part::Alpha),
            ("transformer_blocks.0.to_q.lora_A.weight", AdapterFormat::Bare, "transformer_blocks.0.to_q", Part::Down),
        ];
        for (key, format, module, part) in cases {
            assert_eq!(parse(key), Key::LoRa { format, module, part }, "{key}");
        }
    }

    #[test]
    fn parse_names_other_kinds_of_update() {
        let cases = [
            ("m.lora_magnitude_vector", "DoRA"),
            ("lora_unet_m.dora_scale", "DoRA"),
            ("m.hada_w1_a", "LoHa"),
            ("m.lokr_w2", "LoKr"),
            ("diffusion_model.m.diff", "difference"),
            ("diffusion_model.m.diff_b", "bias"),
            ("lora_unet__m.down_aux", "LiLoRA"),
        ];
        for (key, kind) in cases {
            assert!(matches!(parse(key), Key::Other(found) if found.contains(kind)), "{key}");
        }
        assert_eq!(parse("m.weight"), Key::Unknown);
    }
}
