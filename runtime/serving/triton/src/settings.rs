//! What a model's configuration says, and what it is completed to.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use serde_json::{Value as Json, json};
use v2l_runtime::Engine;
use v2l_runtime::backends::onnxruntime::SharedWeights;
use v2l_runtime::engine::manifest::Graph;
use v2l_runtime::engine::session::{Dim, Port};
use v2l_runtime::generator::{Options, PredictionCacheOptions};
use v2l_runtime::lora::fuse::FusedCache;
use v2l_runtime::tensor::Dtype;

use crate::failure::Failure;
use crate::graph::type_of;
use crate::metrics::Metrics;
use crate::server::Model;

/// Bytes that kept predictions may take.
const PREDICTIONS: u64 = 256 << 20;
/// Bytes that kept fused weights may take.
const FUSED: u64 = 32 << 30;

/// What all instances of all models hold together.
static SHARED: LazyLock<SharedWeights> = LazyLock::new(SharedWeights::default);

/// What a model's requests ask for.
pub(crate) enum Serves {
    /// Videos of an engine directory: the version's folder, or the parameter `engines`.
    Videos(PathBuf),
    /// Runs of one graph of an engine: the parameters `engine` and `graph`.
    Graph(Arc<Engine>, String),
}

/// A model as its configuration has it.
pub(crate) struct Settings {
    pub(crate) serves: Serves,
    /// Adapters lie below it; `None` where requests may name none.
    pub(crate) adapters: Option<PathBuf>,
    /// The types of a graph's outputs.
    pub(crate) given: HashMap<String, Dtype>,
    /// A request has several responses: progress, then the video.
    pub(crate) decoupled: bool,
    /// How engines are opened.
    pub(crate) options: Options,
    pub(crate) metrics: Metrics,
}

/// The configuration's parameters that are no options.
#[derive(Default)]
struct Named {
    engines: Option<PathBuf>,
    engine: Option<PathBuf>,
    graph: Option<String>,
    adapters: Option<PathBuf>,
}

impl Settings {
    /// Reads the configuration of a model, and fills it in where the server wants that.
    pub(crate) fn of(model: Model) -> Result<Self, Failure> {
        let mut config = model.config()?;
        if config["max_batch_size"].as_i64().unwrap_or(0) != 0 {
            return Err(Failure::argument("max_batch_size is not 0; a request is one video, or one run of a graph"));
        }
        let (mut named, mut options) = (Named::default(), Options::default());
        for (name, value) in config["parameters"].as_object().into_iter().flatten() {
            set(name, value["string_value"].as_str().unwrap_or_default(), &mut named, &mut options)?;
        }
        options.engines.ort.shared = Some(SHARED.clone());
        let serves = match named {
            Named { engines: Some(_), engine: Some(_), .. } => {
                return Err(Failure::argument("the configuration has both engines and engine; expected one of them"));
            }
            Named { engine: Some(engine), graph, .. } => {
                let engine = Arc::new(Engine::open(engine)?);
                let first = || engine.manifest().graphs.first().map(|graph| graph.name.clone()).unwrap_or_default();
                let graph = graph.unwrap_or_else(first);
                engine.graph(&graph)?;
                Serves::Graph(engine, graph)
            }
            Named { graph: Some(_), .. } => {
                return Err(Failure::argument("the configuration has graph without engine, the file that holds it"));
            }
            Named { engines, .. } => Serves::Videos(engines.map_or_else(|| model.folder(), Ok)?),
        };
        if model.wants_config()? {
            complete(&mut config, &serves)?;
            model.set_config(&config)?;
        }
        let given = match &serves {
            Serves::Videos(_) => HashMap::new(),
            Serves::Graph(engine, graph) => declared(&config, engine.graph(graph)?)?,
        };
        let (name, version) = model.name()?;
        Ok(Self {
            serves,
            adapters: named.adapters,
            given,
            decoupled: config["model_transaction_policy"]["decoupled"].as_bool().unwrap_or(false),
            options,
            metrics: Metrics::of(&name, version),
        })
    }
}

/// A value that is read from text; `expected` says of what kind.
fn read<T: FromStr>(name: &str, value: &str, expected: &str) -> Result<T, Failure> {
    value.parse().map_err(|_| Failure::argument(format!("the parameter {name} is {value:?}; expected {expected}")))
}

fn set(name: &str, value: &str, named: &mut Named, options: &mut Options) -> Result<(), Failure> {
    let engines = &mut options.engines;
    match name {
        "engines" => named.engines = Some(value.into()),
        "engine" => named.engine = Some(value.into()),
        "graph" => named.graph = Some(value.to_owned()),
        "adapters" => named.adapters = Some(value.into()),
        "ffmpeg" => options.ffmpeg = Some(value.into()),
        "threads" => engines.threads = Some(read(name, value, "a whole number")?),
        "weights" => engines.weights = read(name, value, "f32, stored or auto")?,
        "backend" => {
            let wrong = |error| Failure::argument(format!("the parameter backend: {error}"));
            engines.backend = value.parse().map_err(wrong)?;
        }
        "ort_library" => engines.ort.library = Some(value.into()),
        "openvino_library" => engines.openvino.library = Some(value.into()),
        "prediction_cache" => {
            options.prediction_cache = Some(PredictionCacheOptions { folder: value.into(), bytes: PREDICTIONS });
        }
        "fused_cache" => engines.fused_cache = Some(FusedCache { folder: value.into(), bytes: FUSED }),
        _ => {
            return Err(Failure::argument(format!(
                "the configuration has the parameter {name}; expected engines, or engine and graph; adapters, threads, weights, \
                 backend, ort_library, openvino_library, ffmpeg, prediction_cache or fused_cache"
            )));
        }
    }
    Ok(())
}

/// Fills in inputs and outputs, if there are none.
fn complete(config: &mut Json, serves: &Serves) -> Result<(), Failure> {
    let (inputs, outputs) = match serves {
        Serves::Videos(_) => of_videos(),
        Serves::Graph(engine, graph) => {
            let graph = engine.graph(graph)?;
            (graph.inputs.iter().map(of_port).collect(), graph.outputs.iter().map(of_port).collect())
        }
    };
    for (place, found) in [("input", inputs), ("output", outputs)] {
        if config[place].as_array().is_none_or(Vec::is_empty) {
            config[place] = Json::Array(found);
        }
    }
    Ok(())
}

/// Types that the configuration may declare for a graph's input or output of a type: inputs are converted without loss, outputs are rounded.
fn taken(place: &str, of: Dtype) -> Vec<Dtype> {
    let fits = |other: &Dtype| match (place, of) {
        _ if *other == of => false,
        (_, Dtype::Bool) => false,
        ("input", _) => *other != Dtype::Bool,
        (_, Dtype::F32) => matches!(other, Dtype::F16 | Dtype::Bf16),
        _ => false,
    };
    std::iter::once(of).chain(Dtype::ALL.into_iter().filter(fits)).collect()
}

/// Checks what the configuration declares against a graph, and gives the types of its outputs.
fn declared(config: &Json, graph: &Graph) -> Result<HashMap<String, Dtype>, Failure> {
    let mut given = HashMap::new();
    for (place, ports) in [("input", &graph.inputs), ("output", &graph.outputs)] {
        for one in config[place].as_array().into_iter().flatten() {
            let (name, kind) =
                (one["name"].as_str().unwrap_or_default(), one["data_type"].as_str().unwrap_or_default());
            let port = ports.iter().find(|port| port.name == name).ok_or_else(|| {
                let known: Vec<&str> = ports.iter().map(|port| &port.name[..]).collect();
                Failure::argument(format!("the configuration has the {place} {name}; expected {}", known.join(", ")))
            })?;
            let taken = taken(place, port.dtype);
            let dtype = taken.iter().find(|dtype| type_of(**dtype).1 == kind).ok_or_else(|| {
                let expected: Vec<&str> = taken.iter().map(|dtype| type_of(*dtype).1).collect();
                Failure::argument(format!(
                    "the {place} {name} is declared as {kind}; expected {}",
                    expected.join(" or ")
                ))
            })?;
            if place == "output" {
                given.insert(port.name.clone(), *dtype);
            }
        }
    }
    Ok(given)
}

/// A graph's input or output. Triton has no tensors without axes: they have one, of extent 1.
fn of_port(port: &Port) -> Json {
    let extents = port.shape.iter().map(|extent| match extent {
        Dim::Fixed(extent) => i64::try_from(*extent).unwrap_or(i64::MAX),
        Dim::Symbol(_) => -1,
    });
    let mut dims: Vec<i64> = extents.collect();
    if dims.is_empty() {
        dims.push(1);
    }
    json!({ "name": port.name, "data_type": type_of(port.dtype).1, "dims": dims })
}

fn of_videos() -> (Vec<Json>, Vec<Json>) {
    let (text, frames) = (("TYPE_STRING", json!([1])), ("TYPE_UINT8", json!([-1, -1, -1, 3])));
    let inputs = [
        ("prompt", &text, false),
        ("image", &frames, true),
        ("image_bytes", &text, true),
        ("last_image_bytes", &text, true),
        ("reference", &frames, true),
        ("reference_bytes", &text, true),
    ];
    let inputs = inputs.into_iter().map(
        |(name, (kind, dims), optional)| json!({ "name": name, "data_type": kind, "dims": dims, "optional": optional }),
    );
    let latents = ("TYPE_FP32", json!([-1, -1, -1, -1, -1]));
    let outputs =
        [("video", &text), ("frames", &frames), ("latents", &latents), ("progress", &("TYPE_INT64", json!([3])))];
    let outputs =
        outputs.into_iter().map(|(name, (kind, dims))| json!({ "name": name, "data_type": kind, "dims": dims }));
    (inputs.collect(), outputs.collect())
}
