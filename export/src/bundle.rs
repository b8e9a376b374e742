//! A model folder to a bundle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value as Json;
use v2l_graphs::{ExternalDataWriter, encode_model};
use v2l_runtime::atomic::AtomicFolder;
use v2l_runtime::pipeline::config::{self, FILE_NAME};
use v2l_runtime::pipeline::config::{
    Chunking, ComponentFiles, DecodeChunks, Defaults, GraphFiles, NEGATIVE_PROMPT, PipelineConfig, SchedulerSection,
    Tiling, TokenizerConfig, TransformerConfig, VaeConfig,
};
use v2l_runtime::schedulers;

use crate::architectures::{cogvideox_transformer, cogvideox_vae, t5_encoder, video_hyper_dream};
use crate::{Checkpoint, Component, ExportError, Progress, new_folder, read_json, tokenizer};

/// Name of a component's weight file in a bundle.
const WEIGHTS_FILE: &str = "weights.bin";
const TOKENIZER_FILE: &str = "tokenizer.json";
const SCHEDULER_FILE: &str = "scheduler_config.json";

/// What to export beside the model folder.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// The hypernetwork's checkpoint (`hypernetwork.safetensors`) and the LiLoRA file with its auxiliary matrices.
    pub predictor: Option<(PathBuf, PathBuf)>,
    /// Refinement iterations of the hypernetwork; `None`: the official 4.
    pub iterations: Option<usize>,
}

/// What a bundle holds.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// Per component: name, graph names, number of slots, bytes of weights.
    pub components: Vec<ComponentReport>,
}

/// One component of an [`ExportReport`].
#[derive(Clone, Debug)]
pub struct ComponentReport {
    /// The component.
    pub name: String,
    /// Its graphs.
    pub graphs: Vec<String>,
    /// What adapters may change in it.
    pub slots: usize,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// Exports a diffusers-layout pipeline folder, or a single component folder, to the bundle `output`.
///
/// Weights go from the checkpoint's memory map to the bundle in one streaming pass; private memory does not depend on
/// their size. `output` appears whole or not at all.
///
/// # Errors
/// [`ExportError`], naming the file and tensor, what was expected and what was found.
pub fn export(
    model: &Path,
    output: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ExportReport, ExportError> {
    let source = Source::find(model)?;
    let mut pipeline = PipelineConfig {
        format: config::FORMAT.into(),
        version: config::VERSION,
        components: IndexMap::new(),
        transformer: None,
        vae: None,
        scheduler: None,
        tokenizer: None,
        reference: Default::default(),
        defaults: Defaults { negative_prompt: String::new(), ..Defaults::default() },
    };
    // Refused before gigabytes are written.
    let scheduler: Option<Json> = source.scheduler.as_deref().map(read_json).transpose()?;
    if let Some(value) = &scheduler {
        schedulers::read(value, None).map_err(|e| ExportError::pipeline(model, e.into()))?;
    }
    let dir = new_folder(output)?;
    let mut bundle = BundleWriter { folder: &dir, shown: output, progress, reports: Vec::new() };
    if let Some(folder) = &source.transformer {
        let config: cogvideox_transformer::Config = read_json(&folder.join("config.json"))?;
        let component = cogvideox_transformer::export(&config, &Checkpoint::open_folder(folder)?)?;
        describe_transformer(&mut pipeline, &config)?;
        if let Some((hypernetwork, lilora)) = &options.predictor {
            let predictor = video_hyper_dream::export(
                &Checkpoint::open_file(hypernetwork)?,
                &Checkpoint::open_file(lilora)?,
                &component.slots,
                options.iterations.unwrap_or(video_hyper_dream::DEFAULT_ITERATIONS),
            )
            .map_err(misfit)?;
            bundle.write(&mut pipeline, &component)?;
            bundle.write(&mut pipeline, &predictor)?;
        } else {
            bundle.write(&mut pipeline, &component)?;
        }
    } else if options.predictor.is_some() {
        return Err(ExportError::NotAModel {
            path: model.to_owned(),
            reason: "a hypernetwork was given, but there is no transformer to derive its slots from; \
                     export the pipeline folder or the transformer folder"
                .into(),
        });
    }
    if let Some(folder) = &source.vae {
        let config: cogvideox_vae::Config = read_json(&folder.join("config.json"))?;
        for component in cogvideox_vae::export(&config, &Checkpoint::open_folder(folder)?)? {
            bundle.write(&mut pipeline, &component)?;
        }
        pipeline.vae = Some(describe_vae(&config, &pipeline));
    }
    if let Some(folder) = &source.text_encoder {
        let config: t5_encoder::Config = read_json(&folder.join("config.json"))?;
        bundle.write(&mut pipeline, &t5_encoder::export(&config, &Checkpoint::open_folder(folder)?)?)?;
    }
    if let Some(tokenizer) = source.tokenizer.as_deref().map(tokenizer::convert).transpose()?.flatten() {
        bundle.write_file(TOKENIZER_FILE, &tokenizer.json)?;
        pipeline.tokenizer = Some(TokenizerConfig {
            file: TOKENIZER_FILE.into(),
            max_length: pipeline.transformer.as_ref().map_or(226, |t| t.max_text_seq_length),
            pad_id: Some(tokenizer.pad_id),
        });
    }
    if let Some(scheduler) = scheduler {
        bundle.write_file(SCHEDULER_FILE, format!("{scheduler:#}\n").as_bytes())?;
        // The official Fun scripts sample with plain DDIM whatever class the folder names (`DDIM_Origin`).
        let fun = pipeline.transformer.as_ref().is_some_and(|t| t.conditioning == config::Conditioning::Inpaint);
        pipeline.scheduler = Some(SchedulerSection { config: scheduler, sampler: fun.then(|| "ddim".to_owned()) });
    }
    pipeline.check().map_err(|e| ExportError::pipeline(model, e))?;
    let text = serde_json::to_string_pretty(&pipeline).map_err(|e| ExportError::config(model, e.to_string()))?;
    bundle.write_file(FILE_NAME, format!("{text}\n").as_bytes())?;
    let report = ExportReport { components: bundle.reports };
    dir.commit().map_err(ExportError::io(output))?;
    Ok(report)
}

/// Says of a predictor's tensors what does not fit: they have no config.json that could be wrong.
fn misfit(error: ExportError) -> ExportError {
    const WAY_OUT: &str = "the hypernetwork, its LiLoRA file and the transformer must belong together";
    ExportError::Predictor(match error {
        ExportError::MissingTensor { checkpoint, name, expected, hint } => {
            format!("{checkpoint}: tensor `{name}` is missing; expected shape {expected:?}{hint}; {WAY_OUT}")
        }
        ExportError::WrongShape { checkpoint, name, expected, found } => {
            format!("{checkpoint}: tensor `{name}` has shape {found:?}, expected {expected:?}; {WAY_OUT}")
        }
        ExportError::SurplusTensors { checkpoint, architecture, count, names } => {
            format!("{checkpoint}: {count} tensors are not used by {architecture}: {names}; {WAY_OUT}")
        }
        other => return other,
    })
}

/// Where the parts of a model lie.
#[derive(Debug, Default)]
struct Source {
    transformer: Option<PathBuf>,
    vae: Option<PathBuf>,
    text_encoder: Option<PathBuf>,
    tokenizer: Option<PathBuf>,
    scheduler: Option<PathBuf>,
}

impl Source {
    fn find(model: &Path) -> Result<Self, ExportError> {
        if !model.is_dir() {
            return Err(ExportError::NotAModel {
                path: model.to_owned(),
                reason: "expected a folder with model_index.json, or with config.json and safetensors".into(),
            });
        }
        let mut source = Self::default();
        if model.join("config.json").is_file() {
            source.place(model, None)?;
            return Ok(source);
        }
        for name in ["transformer", "vae", "text_encoder"] {
            let folder = model.join(name);
            if folder.join("config.json").is_file() {
                source.place(&folder, Some(name))?;
            } else if folder.is_dir() {
                return Err(ExportError::NotAModel { path: folder, reason: "there is no config.json".into() });
            }
        }
        let existing = |path: PathBuf| path.exists().then_some(path);
        source.tokenizer = existing(model.join("tokenizer"));
        source.scheduler = existing(model.join("scheduler").join(SCHEDULER_FILE));
        if source.transformer.is_none() && source.vae.is_none() && source.text_encoder.is_none() {
            return Err(ExportError::NotAModel {
                path: model.to_owned(),
                reason: "expected config.json, or the folders transformer, vae, text_encoder of a diffusers pipeline"
                    .into(),
            });
        }
        Ok(source)
    }

    /// Sorts a component folder by the class that its configuration names.
    fn place(&mut self, folder: &Path, expected: Option<&str>) -> Result<(), ExportError> {
        let path = folder.join("config.json");
        let config: Json = read_json(&path)?;
        let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str()).unwrap_or_default();
        let (kind, place) = match class {
            "CogVideoXTransformer3DModel" => ("transformer", &mut self.transformer),
            "AutoencoderKLCogVideoX" => ("vae", &mut self.vae),
            "T5EncoderModel" => ("text_encoder", &mut self.text_encoder),
            _ => {
                return Err(ExportError::Unsupported {
                    what: format!("{}: class `{class}`", path.display()),
                    reason: "CogVideoXTransformer3DModel, AutoencoderKLCogVideoX and T5EncoderModel are".into(),
                });
            }
        };
        if let Some(expected) = expected.filter(|e| *e != kind) {
            return Err(ExportError::config(path, format!("class `{class}` is no {expected}")));
        }
        *place = Some(folder.to_owned());
        Ok(())
    }
}

fn describe_transformer(
    pipeline: &mut PipelineConfig,
    config: &cogvideox_transformer::Config,
) -> Result<(), ExportError> {
    let conditioning = match config.conditioning()? {
        cogvideox_transformer::Conditioning::Text => config::Conditioning::Text,
        cogvideox_transformer::Conditioning::Image => config::Conditioning::Image,
        cogvideox_transformer::Conditioning::Inpaint => config::Conditioning::Inpaint,
    };
    pipeline.transformer = Some(TransformerConfig {
        in_channels: config.in_channels,
        out_channels: config.out_channels,
        patch_size: config.patch_size,
        patch_size_t: config.patch_size_t,
        attention_head_dim: config.attention_head_dim,
        sample_width: config.sample_width,
        sample_height: config.sample_height,
        sample_frames: config.sample_frames,
        max_text_seq_length: config.max_text_seq_length,
        rotary: config.use_rotary_positional_embeddings,
        rotary_grid: None,
        ofs: config.ofs_embed_dim.is_some(),
        temporal_compression_ratio: config.temporal_compression_ratio,
        add_noise_in_inpaint_model: config.add_noise_in_inpaint_model,
        conditioning,
    });
    // Official inference defaults: Video2LoRA's for its backbone, diffusers' for the others.
    if conditioning == config::Conditioning::Inpaint {
        pipeline.defaults.negative_prompt = NEGATIVE_PROMPT.into();
    } else {
        pipeline.defaults.num_frames = config.sample_frames;
        pipeline.defaults.fps = if config.patch_size_t.is_some() { 16.0 } else { 8.0 };
    }
    Ok(())
}

fn describe_vae(config: &cogvideox_vae::Config, pipeline: &PipelineConfig) -> VaeConfig {
    let fun = pipeline.transformer.as_ref().is_some_and(|t| t.conditioning == config::Conditioning::Inpaint);
    VaeConfig {
        scaling_factor: shortest_decimal(config.scaling_factor),
        latent_channels: config.latent_channels,
        temporal_compression_ratio: config.temporal_compression_ratio as usize,
        spatial_compression_ratio: config.spatial_factor(),
        sample_width: config.sample_width,
        sample_height: config.sample_height,
        invert_scale_latents: config.invert_scale_latents,
        chunking: Chunking { encode_frames: 8, decode: if fun { DecodeChunks::Fun } else { DecodeChunks::Diffusers } },
        tiling: Tiling::for_sample(config.sample_height, config.sample_width, fun)
            .off_unless_tiles_join(config.spatial_factor()),
    }
}

/// The f64 that a person would write for an f32.
fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

struct BundleWriter<'a> {
    /// The temporary folder that is written.
    folder: &'a AtomicFolder,
    /// The folder that it will be, for messages.
    shown: &'a Path,
    progress: &'a mut dyn FnMut(Progress<'_>),
    reports: Vec<ComponentReport>,
}

impl BundleWriter<'_> {
    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        self.folder.write(name, bytes).map_err(ExportError::io(self.shown.join(name)))
    }

    /// Streams a component's weights and writes its graphs over them.
    fn write(&mut self, pipeline: &mut PipelineConfig, component: &Component) -> Result<(), ExportError> {
        let folder = self.folder.path().join(&component.name);
        let shown = self.shown.join(&component.name);
        std::fs::create_dir(&folder).map_err(ExportError::io(&shown))?;
        let mut weights = IndexMap::new();
        for (_, model) in &component.graphs {
            weights.extend(model.graph.initializers.iter().filter(|(_, w)| w.external));
        }
        let bytes = weights.values().map(|w| w.data.len() as u64).sum();
        (self.progress)(Progress::Component { name: &component.name, bytes });
        let shown = shown.join(WEIGHTS_FILE);
        let mut data = File::create(folder.join(WEIGHTS_FILE))
            .map(|file| ExternalDataWriter::new(BufWriter::with_capacity(1 << 20, file), WEIGHTS_FILE))
            .map_err(ExportError::io(&shown))?;
        for (name, weight) in weights {
            data.append(name, &weight.data).map_err(ExportError::io(&shown))?;
            (self.progress)(Progress::Written { bytes: data.len() });
        }
        let mut graphs = BTreeMap::new();
        for (name, model) in &component.graphs {
            let file = format!("{}/{name}.onnx", component.name);
            let encoded = encode_model(model, &|weight| data.location(weight).cloned())
                .map_err(ExportError::io(self.shown.join(&file)))?;
            self.write_file(&file, &encoded)?;
            graphs.insert(name.clone(), file);
        }
        data.into_inner()
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|f| f.sync_all())
            .map_err(ExportError::io(&shown))?;
        self.reports.push(ComponentReport {
            name: component.name.clone(),
            graphs: graphs.keys().cloned().collect(),
            slots: component.slots.len(),
            bytes,
        });
        let weights = format!("{}/{WEIGHTS_FILE}", component.name);
        pipeline.components.insert(component.name.clone(), ComponentFiles::Graphs(GraphFiles { graphs, weights }));
        Ok(())
    }
}
