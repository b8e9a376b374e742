//! Taking an adapter's keys apart: form, module, part.

use std::borrow::Cow;

use super::AdapterFormat;

/// What a key holds for its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyPart {
    /// `[rank, in]`.
    Down,
    /// `[out, rank]`.
    Up,
    /// A scalar.
    Alpha,
    /// What is added to the whole weight: a layer's `[out, in]`, or a parameter of any shape.
    Difference,
    /// The same of the bias.
    BiasDifference,
    /// The same of the modulation table.
    ModulationDifference,
}

impl KeyPart {
    /// True for what changes the weight that its module is called by, and not the bias or table beside it.
    pub(super) const fn is_of_weight(self) -> bool {
        !matches!(self, Self::BiasDifference | Self::ModulationDifference)
    }

    /// True for what is added to a whole tensor.
    pub(super) const fn is_difference(self) -> bool {
        matches!(self, Self::Difference | Self::BiasDifference | Self::ModulationDifference)
    }
}

/// A key, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// Part of a low-rank update.
    LoRa {
        /// How the key is spelled.
        format: AdapterFormat,
        /// Module path; with underscores for dots in kohya's form.
        module: Cow<'a, str>,
        /// All that stands before the part, prefixes too.
        stem: &'a str,
        /// What it holds.
        part: KeyPart,
    },
    /// Part of an update of another kind.
    Other(&'static str),
    /// Nothing known.
    Unknown,
}

/// What follows the module. `.lora_A.<adapter>.weight` is taken apart by [`named`].
const PARTS: [(&str, KeyPart); 18] = [
    (".lora_A.weight", KeyPart::Down),
    (".lora_B.weight", KeyPart::Up),
    (".lora_down.weight", KeyPart::Down),
    (".lora_up.weight", KeyPart::Up),
    (".lora.down.weight", KeyPart::Down),
    (".lora.up.weight", KeyPart::Up),
    (".lora_A", KeyPart::Down),
    (".lora_B", KeyPart::Up),
    (".lora_linear_layer.down.weight", KeyPart::Down),
    (".lora_linear_layer.up.weight", KeyPart::Up),
    ("_lora.down.weight", KeyPart::Down),
    ("_lora.up.weight", KeyPart::Up),
    (".alpha", KeyPart::Alpha),
    (".diff", KeyPart::Difference),
    (".diff_b", KeyPart::BiasDifference),
    (".lora_B.bias", KeyPart::BiasDifference),
    (".lora_up.bias", KeyPart::BiasDifference),
    (".diff_m", KeyPart::ModulationDifference),
];

/// Ends of keys that hold something other than a low-rank update.
const OTHER_ENDS: [(&str, &str); 13] = [
    (".w_norm", "a full weight of a norm"),
    (".b_norm", "a full bias of a norm"),
    (".set_weight", "a full weight"),
    (".reshape_weight", "a change of a weight's shape"),
    (".lora_A.bias", "an update of a bias"),
    (".lora_down.bias", "an update of a bias"),
    (".on_input", "an IA3 vector"),
    (".a1.weight", "a GLoRA factor"),
    (".a2.weight", "a GLoRA factor"),
    (".b1.weight", "a GLoRA factor"),
    (".b2.weight", "a GLoRA factor"),
    (".down_aux", "part of a LightLoRA checkpoint (export it with its hypernetwork)"),
    (".up_aux", "part of a LightLoRA checkpoint (export it with its hypernetwork)"),
];

/// Starts of a path segment, one of a key's last three, that mark updates of another kind.
const OTHER_SEGMENTS: [(&str, &str); 24] = [
    ("lora_magnitude_vector", "a DoRA magnitude"),
    ("dora_scale", "a DoRA magnitude"),
    ("magnitude", "a DoRA magnitude"),
    ("hada_", "a LoHa factor"),
    ("lokr_", "a LoKr factor"),
    ("lora_mid", "a Tucker (LoCon) factor"),
    ("lora_embedding_", "an embedding update"),
    ("lora_E", "an AdaLoRA factor"),
    ("oft_", "an OFT factor"),
    ("boft_", "a BOFT factor"),
    ("ia3_", "an IA3 vector"),
    ("vera_", "a VeRA vector"),
    ("glora_", "a GLoRA factor"),
    ("vblora_", "a VB-LoRA factor"),
    ("randlora_", "a RandLoRA factor"),
    ("fourierft_", "a FourierFT spectrum"),
    ("waveft_", "a WaveFT spectrum"),
    ("hra_", "an HRA factor"),
    ("bone_", "a Bone factor"),
    ("miss_", "a MiSS factor"),
    ("road_", "a RoAd factor"),
    ("c3a_", "a C3A kernel"),
    ("shira_", "a SHiRA weight"),
    ("ln_tuning_", "a tuned norm"),
];

const PREFIXES: [(&str, AdapterFormat); 9] = [
    ("base_model.model.", AdapterFormat::Peft),
    ("model.diffusion_model.", AdapterFormat::Comfy),
    ("diffusion_model.", AdapterFormat::Comfy),
    ("transformer.", AdapterFormat::Diffusers),
    ("unet.", AdapterFormat::Diffusers),
    ("lora_unet__", AdapterFormat::VideoxFun),
    ("lora_unet_", AdapterFormat::Kohya),
    ("lora_transformer_", AdapterFormat::Kohya),
    ("lycoris_", AdapterFormat::Kohya),
];

/// What trainers and wrappers call the model itself, before the names of its layers: DiffSynth's `pipe.dit.`, `module.` of
/// PyTorch's data parallelism, `_orig_mod.` of a compiled model.
const SELF: [&str; 11] = [
    "pipe",
    "dit",
    "model",
    "module",
    "_orig_mod",
    "net",
    "unet",
    "transformer",
    "diffusion_model",
    "denoiser",
    "base_model",
];

/// Takes a key apart.
pub(super) fn parse(key: &str) -> Key<'_> {
    let known = PARTS.iter().find_map(|&(suffix, part)| Some((key.strip_suffix(suffix)?, suffix, part)));
    let Some((rest, suffix, part)) = known.or_else(|| named(key)) else {
        return other(key).map_or(Key::Unknown, Key::Other);
    };
    let (module, format) = unprefixed(rest);
    Key::LoRa { format, module: processorless(module, suffix.starts_with('_')), stem: rest, part }
}

/// The module without the prefix of its form, and the form.
pub(super) fn unprefixed(stem: &str) -> (&str, AdapterFormat) {
    let prefixed = PREFIXES.iter().find_map(|&(prefix, format)| Some((stem.strip_prefix(prefix)?, format)));
    prefixed.unwrap_or((stem, AdapterFormat::Bare))
}

/// Every way to read what stands before a key's part besides the form's own: further words for the model itself left out, and the
/// prefix of the form taken as a part of the layer's name.
pub(super) fn readings(stem: &str) -> Vec<(AdapterFormat, &str)> {
    let (module, format) = unprefixed(stem);
    let mut found = vec![(format, module)];
    for (format, mut rest) in [(format, module), (AdapterFormat::Bare, stem)] {
        found.push((format, rest));
        while let Some((_, inner)) = rest.split_once('.').filter(|(word, _)| SELF.contains(word)) {
            rest = inner;
            found.push((format, rest));
        }
    }
    found
}

fn other(key: &str) -> Option<&'static str> {
    let end = OTHER_ENDS.iter().find(|(end, _)| key.ends_with(end));
    let segment =
        || key.rsplit('.').take(3).find_map(|s| OTHER_SEGMENTS.iter().find(|(start, _)| s.starts_with(start)));
    end.or_else(segment).map(|&(_, kind)| kind)
}

/// `<module>.lora_A.<adapter>.weight`: PEFT's names in a model that holds adapters by name, `default` unless said otherwise.
fn named(key: &str) -> Option<(&str, &'static str, KeyPart)> {
    if let Some((rest, adapter)) = key.strip_suffix(".bias").and_then(|rest| rest.rsplit_once('.')) {
        let rest = rest.strip_suffix(".lora_B").filter(|_| !adapter.is_empty())?;
        return Some((rest, ".lora_B", KeyPart::BiasDifference));
    }
    let (rest, adapter) = key.strip_suffix(".weight")?.rsplit_once('.')?;
    let part = |suffix, part| Some((rest.strip_suffix(suffix)?, suffix, part));
    part(".lora_A", KeyPart::Down).or_else(|| part(".lora_B", KeyPart::Up)).filter(|_| !adapter.is_empty())
}

/// The module that an attention processor's `to_q_lora` belongs to; its output projection leaves out the `.0`.
pub(super) fn processorless(module: &str, of_processor: bool) -> Cow<'_, str> {
    let mut module = match module.split_once(".processor.") {
        Some((before, after)) => Cow::Owned(format!("{before}.{after}")),
        None => Cow::Borrowed(module),
    };
    if of_processor && module.ends_with("to_out") {
        module.to_mut().push_str(".0");
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_every_form_apart() {
        let cases = [
            ("base_model.model.b.0.to_q.lora_A.weight", AdapterFormat::Peft, "b.0.to_q", KeyPart::Down),
            ("base_model.model.b.0.to_q.lora_A.default.weight", AdapterFormat::Peft, "b.0.to_q", KeyPart::Down),
            ("transformer.b.0.to_q.lora_B.weight", AdapterFormat::Diffusers, "b.0.to_q", KeyPart::Up),
            ("diffusion_model.b.0.to_q.lora_up.weight", AdapterFormat::Comfy, "b.0.to_q", KeyPart::Up),
            ("model.diffusion_model.b.0.to_q.lora_A", AdapterFormat::Comfy, "b.0.to_q", KeyPart::Down),
            ("lora_unet_b_0_to_q.lora_down.weight", AdapterFormat::Kohya, "b_0_to_q", KeyPart::Down),
            ("lora_transformer_b_0_to_q.lora_down.weight", AdapterFormat::Kohya, "b_0_to_q", KeyPart::Down),
            ("lycoris_b_0_to_q.lora_down.weight", AdapterFormat::Kohya, "b_0_to_q", KeyPart::Down),
            ("lora_unet__b_0_to_q.alpha", AdapterFormat::VideoxFun, "b_0_to_q", KeyPart::Alpha),
            (
                "transformer_blocks.0.to_q.lora_A.weight",
                AdapterFormat::Bare,
                "transformer_blocks.0.to_q",
                KeyPart::Down,
            ),
            ("diffusion_model.blocks.0.norm3.diff", AdapterFormat::Comfy, "blocks.0.norm3", KeyPart::Difference),
            ("lora_unet_blocks_0_norm3.diff_b", AdapterFormat::Kohya, "blocks_0_norm3", KeyPart::BiasDifference),
            ("transformer.b.0.to_q.lora_B.bias", AdapterFormat::Diffusers, "b.0.to_q", KeyPart::BiasDifference),
            ("diffusion_model.head.diff_m", AdapterFormat::Comfy, "head", KeyPart::ModulationDifference),
            ("a.magnitude_proj.lora_A.weight", AdapterFormat::Bare, "a.magnitude_proj", KeyPart::Down),
        ];
        for (key, format, module, part) in cases {
            let Key::LoRa { format: found, module: path, part: holds, .. } = parse(key) else { panic!("{key}") };
            assert_eq!((found, &*path, holds), (format, module, part), "{key}");
        }
    }

    #[test]
    fn parse_takes_every_dialect_of_suffixes_apart() {
        for (down, up) in [
            ("a.to_q.lora_A.weight", "a.to_q.lora_B.weight"),
            ("a.to_q.lora_A", "a.to_q.lora_B"),
            ("a.to_q.lora_A.default.weight", "a.to_q.lora_B.default.weight"),
            ("a.to_q.lora_A.my-effect.weight", "a.to_q.lora_B.my-effect.weight"),
            ("a.to_q.lora_down.weight", "a.to_q.lora_up.weight"),
            ("a.to_q.lora.down.weight", "a.to_q.lora.up.weight"),
            ("a.to_q.lora_linear_layer.down.weight", "a.to_q.lora_linear_layer.up.weight"),
            ("a.to_q_lora.down.weight", "a.to_q_lora.up.weight"),
            ("a.processor.to_q_lora.down.weight", "a.processor.to_q_lora.up.weight"),
        ] {
            for (key, part) in [(down, KeyPart::Down), (up, KeyPart::Up)] {
                let Key::LoRa { format, module, part: found, .. } = parse(key) else { panic!("{key}") };
                assert_eq!((format, &*module, found), (AdapterFormat::Bare, "a.to_q", part), "{key}");
            }
        }
        let output = parse("a.processor.to_out_lora.up.weight");
        assert!(matches!(output, Key::LoRa { module, part: KeyPart::Up, .. } if module == "a.to_out.0"));
    }

    #[test]
    fn readings_leave_out_what_names_the_model_and_nothing_else() {
        let modules = |stem| readings(stem).into_iter().map(|(_, module)| module).collect::<Vec<_>>();
        assert!(modules("pipe.dit.blocks.0.q").contains(&"blocks.0.q"));
        assert!(modules("base_model.model.model.a.b").contains(&"a.b"));
        assert!(modules("transformer._orig_mod.a").contains(&"a"));
        assert!(modules("transformer.a").contains(&"transformer.a"));
        for stem in ["pipe.dit2.a", "transformer_2.a", "controlnet.a", "text_encoder.a", "pipe.vace.a"] {
            assert!(!modules(stem).contains(&"a"), "{stem}");
        }
    }

    #[test]
    fn parse_names_other_kinds_of_update() {
        let cases = [
            ("m.lora_magnitude_vector", "DoRA"),
            ("m.lora_magnitude_vector.default.weight", "DoRA"),
            ("lora_unet_m.dora_scale", "DoRA"),
            ("m.hada_w1_a", "LoHa"),
            ("m.lokr_w2", "LoKr"),
            ("m.lora_mid.weight", "Tucker"),
            ("m.oft_blocks", "OFT"),
            ("m.boft_R", "BOFT"),
            ("m.vera_lambda_b", "VeRA"),
            ("m.a1.weight", "GLoRA"),
            ("m.ia3_l", "IA3"),
            ("m.lora_A.bias", "bias"),
            ("m.set_weight", "full weight"),
            ("lora_unet__m.down_aux", "LightLoRA"),
        ];
        for (key, kind) in cases {
            assert!(matches!(parse(key), Key::Other(found) if found.contains(kind)), "{key}");
        }
        for key in ["m.weight", "model.diffusion_model.m.weight", "m.lora_A..weight", "m.lora_C.x.weight"] {
            assert_eq!(parse(key), Key::Unknown, "{key}");
        }
    }
}
