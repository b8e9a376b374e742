//! What an adapter's file says of itself, without a model to hold it against.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Serialize;

use super::experts::Route;
use super::keys::{self, Key, KeyPart};
use super::light;
use super::parts::{LayerDescription, alpha, locate, scale_config};
use super::{AdapterError, AdapterFormat, detect};
use crate::io::weights::WeightFile;
use crate::io::wrappers::unwrapped;

/// What an adapter's file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The file.
    pub file: PathBuf,
    /// How it spells its keys.
    pub format: AdapterFormat,
    /// Where `alpha` comes from, in words; for [`AdapterFormat::Light`], the auxiliary factors it belongs to.
    pub scale: String,
    /// Layers, in the file's order.
    pub layers: Vec<LayerDescription>,
    /// Keys of no known form, with what they are if that is known.
    pub others: Vec<(String, Option<&'static str>)>,
    /// Number of keys.
    pub keys: usize,
}

/// Describes an adapter's file or folder; reads the header and the alphas, not the factors.
///
/// # Errors
/// As [`detect`]; [`AdapterError::Config`] for an unusable configuration; [`AdapterError::Mismatch`] or
/// [`AdapterError::NotFinite`] for an alpha that is not a finite number.
pub fn describe(path: &Path) -> Result<Description, AdapterError> {
    let format = detect(path)?;
    let file = WeightFile::open(locate(path)?)?;
    let keys = file.names();
    let mut described = Description {
        file: file.path().to_owned(),
        format,
        scale: String::new(),
        layers: Vec::new(),
        others: Vec::new(),
        keys: keys.len(),
    };
    if matches!(format, AdapterFormat::Light | AdapterFormat::LightFull) {
        described.scale = light::facts(&file);
        described.layers = light::layers(&file)?;
        return Ok(described);
    }
    let (config, scale) = scale_config(file.path(), &file, Route::ONLY.metadata())?;
    described.scale = scale;
    let mut layers: IndexMap<String, LayerDescription> = IndexMap::new();
    for key in &keys {
        let plain = unwrapped(key);
        let (module, stem, part) = match keys::parse(&plain) {
            Key::LoRa { module, stem, part, .. } => (module, stem, part),
            Key::Other(kind) => {
                described.others.push((key.clone(), Some(kind)));
                continue;
            }
            Key::Unknown => {
                described.others.push((key.clone(), None));
                continue;
            }
        };
        // Two layers may differ in what looks like a prefix.
        let shape = file.shape(key).unwrap_or_default();
        if part.is_difference() {
            let end = plain.strip_prefix(stem).unwrap_or_default();
            let difference = LayerDescription {
                module: format!("{module}{end}"),
                difference: Some(shape.to_vec()),
                ..LayerDescription::default()
            };
            layers.insert(key.clone(), difference);
            continue;
        }
        let layer = layers.entry(stem.to_owned()).or_default();
        layer.module = module.into_owned();
        let extent = |axis: usize| shape.get(axis).copied();
        match part {
            KeyPart::Down => (layer.rank, layer.in_features) = (extent(0), extent(1)),
            KeyPart::Up => layer.out_features = extent(0),
            KeyPart::Alpha => layer.alpha = Some(alpha(&file, key)?),
            KeyPart::Difference | KeyPart::BiasDifference | KeyPart::ModulationDifference => {}
        }
    }
    for (stem, layer) in layers.iter_mut().filter(|(_, layer)| layer.difference.is_none()) {
        let configured = || Some(config.as_ref()?.alpha(keys::unprefixed(stem).0, layer.rank?));
        layer.alpha = layer.alpha.or_else(configured);
        layer.scale = layer.rank.map(|rank| layer.alpha.map_or(1.0, |alpha| alpha / rank.max(1) as f32));
    }
    described.layers = layers.into_values().collect();
    Ok(described)
}
