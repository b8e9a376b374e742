//! What a model's configuration says, and what it is completed to.

use std::path::PathBuf;

use serde_json::{Value as Json, json};
use v2l_runtime::generator::{Options, PredictionCacheOptions};

use crate::failure::Failure;
use crate::server::Model;

/// Bytes that kept predictions may take.
const PREDICTIONS: u64 = 256 << 20;

/// A model as its configuration has it.
pub(crate) struct Settings {
    /// The engine directory: the version's folder, or the parameter `engines`.
    pub(crate) engines: PathBuf,
    /// Adapters lie below it; `None` where requests may name none.
    pub(crate) adapters: Option<PathBuf>,
    /// A request has several responses: progress, then the video.
    pub(crate) decoupled: bool,
    /// How engines are opened.
    pub(crate) options: Options,
}

impl Settings {
    /// Reads the configuration of a model, and fills it in where the server wants that.
    pub(crate) fn of(model: Model) -> Result<Self, Failure> {
        let mut config = model.config()?;
        if model.wants_config()? {
            complete(&mut config);
            model.set_config(&config)?;
        }
        if config["max_batch_size"].as_i64().unwrap_or(0) != 0 {
            return Err(Failure::argument("max_batch_size is not 0; a request is one video"));
        }
        let mut settings = Self {
            engines: model.folder()?,
            adapters: None,
            decoupled: config["model_transaction_policy"]["decoupled"].as_bool().unwrap_or(false),
            options: Options::default(),
        };
        for (name, value) in config["parameters"].as_object().into_iter().flatten() {
            settings.set(name, value["string_value"].as_str().unwrap_or_default())?;
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        match name {
            "engines" => self.engines = value.into(),
            "adapters" => self.adapters = Some(value.into()),
            "ort_library" => self.options.engines.ort.library = Some(value.into()),
            "ffmpeg" => self.options.ffmpeg = Some(value.into()),
            "threads" => {
                let threads = value.parse().map_err(|_| Failure::argument("threads is no number"))?;
                self.options.engines.threads = Some(threads);
            }
            "prediction_cache" => {
                let cache = PredictionCacheOptions { folder: value.into(), bytes: PREDICTIONS };
                self.options.prediction_cache = Some(cache);
            }
            _ => {
                return Err(Failure::argument(format!(
                    "the configuration has the parameter {name}; expected engines, adapters, ort_library, ffmpeg, threads \
                     or prediction_cache"
                )));
            }
        }
        Ok(())
    }
}

/// Fills in inputs and outputs, if there are none.
fn complete(config: &mut Json) {
    let is_empty = |value: &Json| value.as_array().is_none_or(Vec::is_empty);
    let (text, frames) = (("TYPE_STRING", json!([1])), ("TYPE_UINT8", json!([-1, -1, -1, 3])));
    if is_empty(&config["input"]) {
        let inputs = [
            ("prompt", &text, false),
            ("image", &frames, true),
            ("image_bytes", &text, true),
            ("last_image_bytes", &text, true),
            ("reference", &frames, true),
            ("reference_bytes", &text, true),
        ];
        config["input"] = inputs
            .into_iter()
            .map(|(name, (kind, dims), optional)| {
                json!({ "name": name, "data_type": kind, "dims": dims, "optional": optional })
            })
            .collect();
    }
    if is_empty(&config["output"]) {
        let outputs = [("video", &text), ("frames", &frames), ("progress", &("TYPE_INT64", json!([3])))];
        config["output"] = outputs
            .into_iter()
            .map(|(name, (kind, dims))| json!({ "name": name, "data_type": kind, "dims": dims }))
            .collect();
    }
}
