//! Wan 2.1 and 2.2: transformer and autoencoders.

pub mod transformer;
pub mod vae;

use std::path::Path;

use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::schedulers::Kind;

use super::family::{Architecture, Family, Part};
use crate::files::read_json;
use crate::{Checkpoint, Component, ExportError};

/// The family.
pub(super) struct Wan;

impl Family for Wan {
    fn architectures(&self) -> &'static [&'static dyn Architecture] {
        &[&Transformer, &Vae]
    }

    fn sampling(&self) -> Kind {
        Kind::Flow
    }

    fn sampler(&self, _pipeline: &PipelineConfig) -> Option<&'static str> {
        None
    }
}

struct Transformer;

impl Architecture for Transformer {
    fn class(&self) -> &'static str {
        transformer::CLASS
    }

    fn part(&self) -> Part {
        Part::Transformer
    }

    fn export(&self, folder: &Path, _pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let config: transformer::Config = read_json(&folder.join("config.json"))?;
        Ok(vec![transformer::export(&config, &Checkpoint::open_folder(folder)?)?])
    }
}

struct Vae;

impl Architecture for Vae {
    fn class(&self) -> &'static str {
        vae::CLASS
    }

    fn part(&self) -> Part {
        Part::Vae
    }

    fn export(&self, folder: &Path, _pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let config: vae::Config = read_json(&folder.join("config.json"))?;
        Ok(vae::export(&config, &Checkpoint::open_folder(folder)?)?.into())
    }
}
