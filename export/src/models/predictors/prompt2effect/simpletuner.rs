//! What SimpleTuner's trainer stores beside its tensors.

use serde_json::{Value as Json, json};

use super::super::package::Package;
use crate::ExportError;

/// The `format` of its files.
pub(super) const FORMAT: &str = "simpletuner-prompt2effect-hypernetwork";

/// The configuration in this library's words.
pub(super) fn config(package: &Package) -> Result<Json, ExportError> {
    let file = &package.config;
    let (model, schema) = (&file["model_config"], &file["schema"]);
    let missing = |name: &str| package.misfit(format!("`{name}` is missing; expected SimpleTuner's own file"));
    let layers = schema["layers"].as_array().ok_or_else(|| missing("schema.layers"))?;
    let shapes: Vec<Json> = layers.iter().map(|layer| json!([layer["out_dim"], layer["in_dim"]])).collect();
    if model["layer_shapes"].as_array() != Some(&shapes) || model["layer_count"] != layers.len() {
        return Err(package
            .misfit("`model_config.layer_count` and `layer_shapes` differ from `schema.layers`; the file is damaged"));
    }
    let length = &file["train_args"]["max_prompt_length"];
    Ok(json!({
        "profile": "simpletuner",
        "hidden_dim": model["hidden_dim"],
        "n_heads": model["num_heads"],
        "n_layer": model["num_layers"],
        "num_latents": model["compressed_tokens"],
        "rank": model["rank"],
        "text_dim": model["text_hidden_dim"],
        "text_len": if length.is_null() { json!(128) } else { length.clone() },
        "text_encoder": file["text_encoder_model"],
        "module_vocab": model["module_types"],
        "layers": layers,
        "component_subfolder": schema["component_subfolder"],
    }))
}
