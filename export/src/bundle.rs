//! A model folder to a bundle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value as Json;
use v2l_graphs::{DataType, ExternalDataWriter, encode_model};
use v2l_runtime::components::{STEP_CONTROL, TEXT_ENCODER, TRANSFORMER, is_transformer};
use v2l_runtime::io::atomic::AtomicFolder;
use v2l_runtime::io::json;
use v2l_runtime::pipeline::config::FILE_NAME;
use v2l_runtime::pipeline::config::{ComponentFiles, GraphFiles, PipelineConfig, SchedulerSection, TokenizerConfig};
use v2l_runtime::schedulers;

use crate::files::{new_folder, read_json};
use crate::finite::{Watch, Watched};
use crate::models::control::Controls;
use crate::models::predictors::{self, Base, PredictorFiles};
use crate::models::{Part, Place};
use crate::source::{Parts, SCHEDULER_FILE, SchedulerSource, Source, TokenizerSource};
use crate::tokenizer::ConvertedTokenizer;
use crate::{Component, ExportError, Progress, tokenizer};

/// Name of a component's weight file in a bundle.
const WEIGHTS_FILE: &str = "weights.bin";
const TOKENIZER_FILE: &str = "tokenizer.json";
const PREDICTOR_TOKENIZER_FILE: &str = "predictor_tokenizer.json";

/// What to export beside the model folder.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// The hypernetwork's checkpoint (`hypernetwork.safetensors`) and the LightLoRA file with its auxiliary matrices.
    pub predictor: Option<(PathBuf, PathBuf)>,
    /// Parts of the model that are given one by one.
    pub parts: Parts,
    /// The type to store matrices in; `None`: the one in which the checkpoint's lose nothing, which is float32 for matrices of 8 bits.
    pub precision: Option<DataType>,
    /// Refinement iterations of the hypernetwork; `None`: the official 4.
    pub iterations: Option<usize>,
    /// A predictor that comes as a package, in place of `predictor`.
    pub package: Option<PredictorPackage>,
    /// Control tokens for the model's transformers: a safetensors file.
    pub controls: Option<PathBuf>,
}

/// A predictor with the file that describes it.
#[derive(Clone, Debug)]
pub struct PredictorPackage {
    /// A folder with `config.json` and safetensors, or a safetensors file with its JSON file beside it.
    pub path: PathBuf,
    /// The folder of its text encoder; `None`: what lies beside it, or the pipeline's.
    pub text_encoder: Option<PathBuf>,
}

/// What a bundle holds.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// Per component: name, graph names, number of slots, bytes of weights.
    pub components: Vec<ComponentReport>,
    /// What a user should know: what was taken for granted, and what the files had lost before.
    pub notes: Vec<String>,
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
    let source = Source::find(model, &options.parts)?;
    let mut pipeline = PipelineConfig::empty();
    // Refused before gigabytes are written.
    let scheduler: Option<Json> = match &source.scheduler {
        Some(SchedulerSource::File(path)) => Some(read_json(path)?),
        Some(SchedulerSource::Assumed(config)) => Some(config.clone()),
        None => None,
    };
    if let Some(value) = &scheduler {
        let kind = source.family().map_or(Ok(()), |family| schedulers::check_kind(value, family.sampling()));
        kind.map_err(|e| ExportError::pipeline(model, e.into()))?;
        schedulers::read(value, None).map_err(|e| {
            let file = source.scheduler.as_ref().and_then(SchedulerSource::file).unwrap_or(model);
            match json::not_finite(value, |value| schedulers::read(value, None).is_ok()) {
                Some(option) => ExportError::config(file, option.to_string()),
                None => ExportError::pipeline(model, e.into()),
            }
        })?;
    }
    let mut components = networks(&mut pipeline, model, &source, options)?;
    let own = match &options.package {
        Some(package) => predictor_package(model, package, &mut components)?,
        None => None,
    };
    let dir = new_folder(output)?;
    let mut bundle = BundleWriter { folder: &dir, shown: output, progress, reports: Vec::new() };
    for component in &components {
        bundle.write(&mut pipeline, component)?;
    }
    let tokenizer = match &source.tokenizer {
        Some(TokenizerSource::Folder(folder)) => tokenizer::convert(folder)?,
        Some(TokenizerSource::Embedded(path, model)) => Some(tokenizer::convert_embedded(path, model)?),
        None => None,
    };
    if let Some(tokenizer) = tokenizer {
        bundle.write_file(TOKENIZER_FILE, &tokenizer.json)?;
        pipeline.tokenizer = Some(TokenizerConfig {
            file: TOKENIZER_FILE.into(),
            max_length: pipeline.family.as_ref().and_then(|family| family.text()).map_or(226, |text| text.tokens),
            pad_id: Some(tokenizer.pad_id),
        });
    }
    if let Some((tokenizer, max_length)) = own {
        bundle.write_file(PREDICTOR_TOKENIZER_FILE, &tokenizer.json)?;
        let file = PREDICTOR_TOKENIZER_FILE.into();
        pipeline.predictor_tokenizer = Some(TokenizerConfig { file, max_length, pad_id: Some(tokenizer.pad_id) });
    }
    if let Some(scheduler) = scheduler {
        bundle.write_file(SCHEDULER_FILE, format!("{scheduler:#}\n").as_bytes())?;
        let sampler = source.family().and_then(|family| family.sampler(&pipeline)).map(str::to_owned);
        pipeline.scheduler = Some(SchedulerSection { config: scheduler, sampler });
    }
    pipeline.check().map_err(|e| ExportError::pipeline(model, e))?;
    let text = serde_json::to_string_pretty(&pipeline).map_err(|e| ExportError::config(model, e.to_string()))?;
    bundle.write_file(FILE_NAME, format!("{text}\n").as_bytes())?;
    let mut notes = source.notes;
    notes.extend(without_tokenizer(&pipeline));
    let report = ExportReport { components: bundle.reports, notes };
    dir.commit().map_err(ExportError::io(output))?;
    Ok(report)
}

/// What cannot be done with a text encoder whose tokenizer is missing, in words.
fn without_tokenizer(pipeline: &PipelineConfig) -> Option<String> {
    let holds = |name: &str| pipeline.components.contains_key(name);
    let missing = holds(TRANSFORMER) && holds(TEXT_ENCODER) && pipeline.tokenizer.is_none();
    missing.then(|| {
        "there is no tokenizer: expected the folder `tokenizer` beside the text encoder, with spiece.model or tokenizer.json; the \
         model will take no `v2l-run --prompt`, only `--prompt-embeds`; export again with that folder, or with --tokenizer FOLDER"
            .to_owned()
    })
}

/// Adds a predictor that comes as a package to the networks of the model that it is for; gives the tokenizer of its own text
/// encoder, if it has one, with the tokens of a prompt.
fn predictor_package(
    model: &Path,
    package: &PredictorPackage,
    components: &mut Vec<Component>,
) -> Result<Option<(ConvertedTokenizer, usize)>, ExportError> {
    let named = |name: &str| components.iter().find(|component| component.name == name);
    let Some(transformer) = named(TRANSFORMER) else {
        return Err(ExportError::NotAModel {
            path: model.to_owned(),
            reason: "a predictor was given, but there is no transformer that it could be for; export the pipeline folder or \
                     the transformer folder"
                .into(),
        });
    };
    let encoder = named(TEXT_ENCODER).and_then(|encoder| {
        let class = encoder.attributes["class"].as_str().unwrap_or_default();
        Some((class.to_owned(), encoder.output_width("encode")?))
    });
    let base = Base { slots: &transformer.slots, encoder };
    let exports = predictors::export_package(&package.path, package.text_encoder.as_deref(), &base)?;
    components.extend(exports.components);
    Ok(exports.tokenizer)
}

/// The networks that were found, a predictor behind its transformer. Nothing is written, and no weight is read.
fn networks(
    pipeline: &mut PipelineConfig,
    model: &Path,
    source: &Source,
    options: &ExportOptions,
) -> Result<Vec<Component>, ExportError> {
    let mut predictor = options.predictor.as_ref().map(|(hypernetwork, auxiliary)| PredictorFiles {
        hypernetwork: hypernetwork.clone(),
        auxiliary: auxiliary.clone(),
        iterations: options.iterations,
    });
    if predictor.is_some() && !source.networks.iter().any(|network| network.part == Part::Transformer) {
        return Err(ExportError::NotAModel {
            path: model.to_owned(),
            reason: "a hypernetwork was given, but there is no transformer to derive its slots from; \
                     export the pipeline folder or the transformer folder"
                .into(),
        });
    }
    let controls = options.controls.as_deref().map(Controls::read).transpose()?;
    let mut components = Vec::new();
    for network in &source.networks {
        let place = Place { controls: controls.as_ref(), ..source.place(network, options.precision) };
        let mut exported = network.architecture.export(&place, pipeline)?;
        if let (Part::Transformer, [transformer]) = (network.part, &exported[..])
            && let Some(files) = predictor.take()
        {
            exported.push(predictors::export(&files, &transformer.slots)?);
        }
        components.extend(exported);
    }
    if let Some(controls) = controls {
        let transformers = components.iter().filter(|component| is_transformer(&component.name));
        let takes = |component: &Component| component.graphs.iter().any(|(name, _)| name == STEP_CONTROL);
        if !transformers.clone().all(takes) || transformers.count() == 0 {
            return Err(ExportError::NotAModel {
                path: model.to_owned(),
                reason: "controls were given, but there is no transformer that takes them; export the pipeline folder or the \
                         transformer folder of CogVideoX or Wan"
                    .into(),
            });
        }
        pipeline.controls = controls.names;
    }
    if let Some(family) = source.family() {
        family.join(model, &source.index, &components, pipeline)?;
    }
    pipeline.check().map_err(|e| ExportError::pipeline(model, e))?;
    Ok(components)
}

/// What is wrong with a weight that holds NaN or infinity, in words.
fn not_finite(component: &str, name: &str, dtype: DataType) -> String {
    let way_out = match dtype {
        DataType::Float16 => {
            "float16 ends at 65504: store it with `--precision bf16` or `fp32`, or look for NaN in the checkpoint"
        }
        _ => "no video comes of such weights: download the checkpoint again, or ask who trained it",
    };
    format!("{component}: the weight `{name}` holds NaN or infinity in {dtype}, expected finite numbers; {way_out}")
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
        let watch = Watch::default();
        let mut data = File::create(folder.join(WEIGHTS_FILE))
            .map(|file| Watched { inner: BufWriter::with_capacity(1 << 20, file), watch: watch.clone() })
            .map(|file| ExternalDataWriter::new(file, WEIGHTS_FILE))
            .map_err(ExportError::io(&shown))?;
        for (name, weight) in weights {
            // The watch counts elements from the tensor's first byte on.
            data.pad().map_err(ExportError::io(&shown))?;
            watch.begin(weight.dtype);
            data.append(name, &weight.data).map_err(|e| match e.kind() {
                // What the numbers are decoded from says itself where it lies.
                ErrorKind::InvalidData => ExportError::Damaged(e.to_string()),
                _ => ExportError::io(&shown)(e),
            })?;
            if watch.end().is_some() {
                return Err(ExportError::Damaged(not_finite(&component.name, name, weight.dtype)));
            }
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
            .inner
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
