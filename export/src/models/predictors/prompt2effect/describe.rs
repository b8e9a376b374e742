//! What a network is, by the file that describes it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use v2l_runtime::io::json;
use v2l_runtime::predict::prompt2effect::{AttentionScope, Injection, KIND, NetworkConfig};

use super::super::package::{Base, Package};
use super::layers::{self, GroupOfType, ListedLayer, Types};
use super::names::Names;
use super::simpletuner;
use crate::ExportError;

/// A network: what the runtime must know of it, and what its graphs take besides.
pub(super) struct Description {
    pub(super) network: NetworkConfig,
    /// What it calls its text encoder.
    pub(super) text_encoder: Option<String>,
    /// True if the projected text is normalised.
    pub(super) text_norm: bool,
    /// Feed-forward layers behind the backbone's attentions.
    pub(super) ffn_after_self: bool,
    pub(super) ffn_after_cross: bool,
    /// Feed-forward layers of the compressor and the decompressor.
    pub(super) compressor_ffn: bool,
    pub(super) decompressor_ffn: bool,
    /// True if compressor and decompressor normalise their queries and add to them.
    pub(super) codec_residual: bool,
    /// Embeddings of a layer and its type, if it has any.
    pub(super) condition: Option<Condition>,
    /// Tensors that nothing reads.
    pub(super) unread: Vec<String>,
}

/// The tables of a layer's and its type's embeddings.
pub(super) struct Condition {
    pub(super) form: CondForm,
    pub(super) layers: usize,
    pub(super) layer_width: usize,
    pub(super) modules: usize,
    pub(super) module_width: usize,
}

/// How two embeddings become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CondForm {
    /// Added.
    Sum,
    /// Side by side, through a linear layer.
    ConcatProj,
}

/// `config.json` of a package.
#[derive(Deserialize)]
struct Config {
    profile: String,
    n_heads: usize,
    n_layer: usize,
    #[serde(default)]
    hidden_dim: Option<usize>,
    #[serde(default)]
    num_latents: Option<usize>,
    #[serde(default)]
    rank: Option<usize>,
    #[serde(default)]
    text_dim: Option<usize>,
    #[serde(default)]
    text_encoder: Option<String>,
    text_len: usize,
    text_mask: bool,
    text_norm: bool,
    include_emb: bool,
    #[serde(default)]
    module_vocab: Vec<String>,
    #[serde(default)]
    module_alias: BTreeMap<String, String>,
    #[serde(default)]
    enc_groups: BTreeMap<String, GroupOfType>,
    ffn_after: Vec<String>,
    compressor_ffn: bool,
    decompressor_ffn: bool,
    cond_inject: Injection,
    cond_form: CondForm,
    attn_scope: AttentionScope,
    codec_residual: bool,
    pos_code: String,
    layer_index: String,
    vocab_unknown: bool,
    weight_norm: String,
    #[serde(default)]
    target_stats: Option<Json>,
    /// Layers by name, where the checkpoint lists them.
    #[serde(default)]
    layers: Vec<ListedLayer>,
    #[serde(default)]
    component_subfolder: Option<String>,
}

/// Options of a profile that its file need not repeat.
fn defaults(profile: &str) -> Json {
    let paper = json!({
        "profile": "paper", "n_heads": 32, "n_layer": 14, "text_len": 512, "text_mask": true, "text_norm": true,
        "include_emb": true, "ffn_after": ["cross"], "compressor_ffn": false, "decompressor_ffn": false,
        "cond_inject": "tokens", "cond_form": "concat_proj", "attn_scope": "layer", "codec_residual": true,
        "pos_code": "sinus", "layer_index": "block", "vocab_unknown": true, "weight_norm": "none",
    });
    let own = match profile {
        "square" => json!({
            "ffn_after": ["self", "cross"], "compressor_ffn": true, "decompressor_ffn": true, "text_mask": false,
            "text_encoder": "t5-v1_1-xxl",
            "module_alias": { "cross_attn.k_img": "cross_attn.k", "cross_attn.v_img": "cross_attn.v" },
        }),
        "simpletuner" => json!({
            "n_heads": 8, "n_layer": 8, "text_len": 128, "text_norm": false, "cond_inject": "latents",
            "cond_form": "sum", "attn_scope": "global", "codec_residual": false, "pos_code": "none",
            "layer_index": "flat", "vocab_unknown": false,
        }),
        "compact" => json!({ "n_heads": 12, "n_layer": 8 }),
        "tiny" => json!({ "n_heads": 4, "n_layer": 2, "text_len": 16 }),
        _ => json!({}),
    };
    overlaid(paper, &own)
}

/// `under` with the members of `over` in place of its own.
fn overlaid(under: Json, over: &Json) -> Json {
    let (Json::Object(mut under), Some(over)) = (under, over.as_object()) else { return over.clone() };
    under.extend(over.iter().map(|(name, value)| (name.clone(), value.clone())));
    Json::Object(under)
}

/// The configuration of the square reproduction's file, in the words of [`Config`].
fn of_square(file: &Json) -> Json {
    let own = &file["config"];
    let mut found = Map::new();
    found.insert("profile".into(), "square".into());
    let renamed = [
        ("text_dim", "text_dim"),
        ("rank", "rank"),
        ("hidden_dim", "hidden_dim"),
        ("n_heads", "n_heads"),
        ("n_layer", "n_layer"),
        ("include_emb", "include_emb"),
        ("num_latents", "num_latents"),
    ];
    for (theirs, ours) in renamed {
        if !own[theirs].is_null() {
            found.insert(ours.into(), own[theirs].clone());
        }
    }
    let types: Vec<String> =
        own["module_specs"].as_object().map(|specs| specs.keys().cloned().collect()).unwrap_or_default();
    let width = &own["weight_dim"];
    let group = json!({ "group": "default", "d_in": width, "d_out": width });
    found.insert(
        "enc_groups".into(),
        types.iter().map(|name| (name.clone(), group.clone())).collect::<Map<_, _>>().into(),
    );
    found.insert("module_vocab".into(), types.into());
    Json::Object(found)
}

impl Description {
    /// Of a package, for a base with these slots.
    pub(super) fn read(package: &Package, base: &Base<'_>) -> Result<Self, ExportError> {
        let file = &package.config;
        let own = if file["format"] == simpletuner::FORMAT {
            simpletuner::config(package)?
        } else if file["hyper_version"].is_string() {
            of_square(file)
        } else {
            file.clone()
        };
        let profile = own["profile"].as_str().unwrap_or("paper");
        let config: Config = json::typed(&overlaid(defaults(profile), &own))
            .map_err(|error| ExportError::config(&package.config_path, error.to_string()))?;
        config.describe(package, base)
    }
}

impl Config {
    fn describe(self, package: &Package, base: &Base<'_>) -> Result<Description, ExportError> {
        self.check(package)?;
        let names = Names::of(&package.checkpoint);
        let shape = |name: &str| package.checkpoint.shape(name).map(<[usize]>::to_vec);
        let matrix = |name: &str| match shape(name).as_deref() {
            Some(&[rows, columns]) => Ok([rows, columns]),
            found => Err(package
                .misfit(format!("expected a matrix `{name}` in {}, found {found:?}", package.checkpoint.label()))),
        };
        let [num_latents, hidden_dim] = matrix(names.latents())?;
        let [_, text_dim] = matrix(&format!("{}.weight", names.text_proj()))?;
        let [rank, _] = matrix(&format!("{}.weight", names.head(false)))?;
        let stated = [
            ("num_latents", self.num_latents, num_latents),
            ("hidden_dim", self.hidden_dim, hidden_dim),
            ("text_dim", self.text_dim, text_dim),
            ("rank", self.rank, rank),
        ];
        if let Some((name, stated, found)) =
            stated.into_iter().find(|(_, stated, found)| stated.is_some_and(|s| s != *found))
        {
            let stated = stated.unwrap_or_default();
            return Err(package.misfit(format!("`{name}` is {stated}, and the checkpoint's tensors say {found}")));
        }
        let condition = if self.include_emb {
            let [layers, layer_width] = matrix(&format!("{}.weight", names.layer_emb()))?;
            let [modules, module_width] = matrix(&format!("{}.weight", names.module_emb()))?;
            Some(Condition { form: self.cond_form, layers, layer_width, modules, module_width })
        } else {
            None
        };
        let types = Types {
            vocabulary: &self.module_vocab,
            alias: &self.module_alias,
            groups: &self.enc_groups,
            flat: self.layer_index == "flat",
            unknown: self.vocab_unknown,
            max_layers: condition.as_ref().map_or(usize::MAX, |tables| tables.layers),
        };
        let (groups, layers) = match &self.layers[..] {
            [] => layers::of_base(package, base.slots, &types)?,
            listed => layers::listed(package, base.slots, listed, &types)?,
        };
        self.check_types(package, condition.as_ref())?;
        let plain =
            self.pos_code == "none" && !self.cond_inject.tokens() && !self.codec_residual && !self.decompressor_ffn;
        let network = NetworkConfig {
            kind: KIND.into(),
            profile: self.profile.clone(),
            hidden_dim,
            n_heads: self.n_heads,
            n_layer: self.n_layer,
            num_latents,
            rank,
            text_dim,
            text_len: self.text_len,
            text_mask: self.text_mask,
            text_of_base: base.encodes_for(self.text_encoder.as_deref()),
            attn_scope: self.attn_scope,
            cond_inject: if self.include_emb { self.cond_inject } else { Injection::None },
            position_code: self.pos_code == "sinus",
            weight_rms: self.weight_norm == "rms",
            absorbed: plain && self.n_heads * num_latents <= hidden_dim,
            groups,
            layers,
        };
        network.check().map_err(|reason| package.misfit(reason))?;
        warn_of_cost(package, &network)?;
        let after = |name: &str| self.ffn_after.iter().any(|after| after == name);
        Ok(Description {
            text_norm: self.text_norm,
            ffn_after_self: after("self"),
            ffn_after_cross: after("cross"),
            compressor_ffn: self.compressor_ffn,
            decompressor_ffn: self.decompressor_ffn,
            codec_residual: self.codec_residual,
            condition,
            unread: Vec::new(),
            network,
            text_encoder: self.text_encoder,
        })
    }

    /// Refuses words that stand for nothing here.
    fn check(&self, package: &Package) -> Result<(), ExportError> {
        let words = [
            ("pos_code", &self.pos_code, &["sinus", "none"][..]),
            ("layer_index", &self.layer_index, &["block", "flat"]),
            ("weight_norm", &self.weight_norm, &["none", "rms"]),
        ];
        let after = self.ffn_after.iter().map(|after| ("ffn_after", after, &["self", "cross"][..]));
        if let Some((name, found, known)) =
            words.into_iter().chain(after).find(|(_, found, known)| !known.contains(&&***found))
        {
            return Err(package.misfit(format!("`{name}` is `{found}`, expected one of {}", known.join(", "))));
        }
        if self.target_stats.as_ref().is_some_and(|stats| !stats.is_null()) {
            return Err(ExportError::Unsupported {
                what: format!("{}: `target_stats`", package.config_path.display()),
                reason: "the heads must give factors as they are; fold mean and deviation into them".into(),
            });
        }
        if self.component_subfolder.as_deref().is_some_and(|folder| folder == "transformer_2") {
            return Err(ExportError::Unsupported {
                what: format!("{}: a predictor for `transformer_2`", package.config_path.display()),
                reason: "adapters are predicted for the first of two transformers".into(),
            });
        }
        Ok(())
    }

    /// The table of types must have a row for each.
    fn check_types(&self, package: &Package, condition: Option<&Condition>) -> Result<(), ExportError> {
        let Some(tables) = condition else { return Ok(()) };
        let expected = self.module_vocab.len() + usize::from(self.vocab_unknown);
        if tables.modules == expected {
            return Ok(());
        }
        Err(package.misfit(format!(
            "expected {expected} rows in the table of module types, found {}; a type is missing",
            tables.modules
        )))
    }
}

/// Refuses attention among all layers that no machine could hold.
fn warn_of_cost(package: &Package, network: &NetworkConfig) -> Result<(), ExportError> {
    let longest = network.scopes().iter().map(Vec::len).max().unwrap_or_default() * network.num_latents;
    if network.attn_scope == AttentionScope::Layer || longest <= 1 << 16 {
        return Ok(());
    }
    Err(ExportError::Unsupported {
        what: format!("{}: attention among {longest} latents", package.config_path.display()),
        reason: "65536 are at most; train with `attn_scope` layer or with fewer latents".into(),
    })
}
