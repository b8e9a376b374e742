//! `CLIPImageProcessor`: how images are prepared for the image encoder.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;
use v2l_runtime::models::wan::config::ImageEncoderConfig;

use crate::ExportError;
use crate::files::read_json;

/// Its folder in diffusers' layout.
pub(super) const FOLDER: &str = "image_processor";
/// Its configuration.
pub(super) const FILE: &str = "preprocessor_config.json";

/// `preprocessor_config.json`; absent keys take transformers' defaults. Others than these do not change an image.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    do_resize: bool,
    do_center_crop: bool,
    do_rescale: bool,
    do_normalize: bool,
    do_pad: bool,
    size: Json,
    crop_size: Json,
    resample: u32,
    rescale_factor: f64,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            do_resize: true,
            do_center_crop: true,
            do_rescale: true,
            do_normalize: true,
            do_pad: false,
            size: 224.into(),
            crop_size: 224.into(),
            resample: 3,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
        }
    }
}

/// Reads how images are made `side` pixels wide and high.
pub(super) fn read(path: &Path, side: usize) -> Result<ImageEncoderConfig, ExportError> {
    if !path.is_file() {
        let reason = "there is no such file; it says how images are prepared for the image encoder; was the model downloaded completely?";
        return Err(ExportError::NotAModel { path: path.to_owned(), reason: reason.into() });
    }
    let config: Config = read_json(path)?;
    let unsupported = |what: String, reason: &str| {
        Err(ExportError::Unsupported { what: format!("{}: {what}", path.display()), reason: reason.into() })
    };
    for (key, found, expected) in [
        ("do_resize", config.do_resize, true),
        ("do_center_crop", config.do_center_crop, true),
        ("do_rescale", config.do_rescale, true),
        ("do_normalize", config.do_normalize, true),
        ("do_pad", config.do_pad, false),
    ] {
        if found != expected {
            return unsupported(format!("{key} {found}"), &format!("expected {expected}"));
        }
    }
    let number = |value: &Json| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let Some(shortest_edge) = number(&config.size).or_else(|| number(&config.size["shortest_edge"])) else {
        return unsupported(format!("size {}", config.size), "expected a number, or `shortest_edge`");
    };
    let pair = |value: &Json| Some([number(&value["height"])?, number(&value["width"])?]);
    let Some(crop_size) = number(&config.crop_size).map(|n| [n; 2]).or_else(|| pair(&config.crop_size)) else {
        return unsupported(format!("crop_size {}", config.crop_size), "expected a number, or `height` and `width`");
    };
    if crop_size != [side; 2] {
        let [height, width] = crop_size;
        let reason = format!("makes images of {width}x{height}, and the image encoder takes {side}x{side}");
        return Err(ExportError::config(path, reason));
    }
    Ok(ImageEncoderConfig {
        shortest_edge,
        crop_size,
        rescale_factor: config.rescale_factor,
        image_mean: config.image_mean,
        image_std: config.image_std,
        resample: config.resample,
    })
}

/// How images are prepared for the published image encoder, made `side` pixels wide and high.
pub(super) fn published(side: usize) -> ImageEncoderConfig {
    let Config { resample, rescale_factor, image_mean, image_std, .. } = Config::default();
    ImageEncoderConfig { shortest_edge: side, crop_size: [side; 2], rescale_factor, image_mean, image_std, resample }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, side: usize) -> Result<ImageEncoderConfig, ExportError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, text).unwrap();
        read(&path, side)
    }

    #[test]
    fn published_processors_are_read_in_both_spellings() {
        let older = read_text(r#"{"size": 224, "crop_size": 224, "feature_extractor_type": "x"}"#, 224).unwrap();
        let newer = read_text(
            r#"{"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_convert_rgb": true,
                "rescale_factor": 0.00392156862745098, "resample": 3}"#,
            224,
        );
        assert_eq!(older, newer.unwrap());
        assert_eq!((older.shortest_edge, older.crop_size, older.resample), (224, [224; 2], 3));
    }

    #[test]
    fn processors_that_do_something_else_are_refused_by_key() {
        for (text, key) in [
            (r#"{"do_center_crop": false}"#, "do_center_crop false"),
            (r#"{"do_pad": true}"#, "do_pad true"),
            (r#"{"size": {"height": 224, "width": 224}}"#, "size {"),
            (r#"{"crop_size": {"height": 224}}"#, "crop_size {"),
        ] {
            let error = read_text(text, 224).unwrap_err();
            assert!(error.is_unsupported() && error.to_string().contains(key), "{error}");
        }
        let error = read_text("{}", 336).unwrap_err().to_string();
        assert!(error.contains("224x224") && error.contains("336x336"), "{error}");
    }
}
