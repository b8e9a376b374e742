//! Predictors that v2l does not know by name: any graph, and a file that says which outputs are which layer's factors.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{ArrayD, ArrayView2, Axis, Ix2};
use serde::{Deserialize, Serialize};

use super::error::PredictorError;
use super::inputs::{Input, Inputs};
use super::key::{Key, KeyParts};
use super::kind::{Predicted, Predictor};
use super::lazy::LazySession;
use crate::backends::OpenEngine;
use crate::engine::Engine;
use crate::engine::manifest::{Graph, Slot, slots_by_name};
use crate::engine::session::Session;
use crate::error::Error;
use crate::events::Observer;
use crate::lora::adapter::{Adapter, LowRank};
use crate::options::OpenOptions;
use crate::tensor::{NamedTensors, Tensor};

/// What the kind is called in messages; engines do not name it.
pub const KIND: &str = "mapped";

const FORMAT: &str = "v2l-predictor-map";
const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 24;
/// Largest rank of a predicted update.
const MAX_RANK: usize = 4096;

/// Which outputs of a predictor's graph are the factors of which slots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictorMap {
    /// `v2l-predictor-map`.
    pub format: String,
    /// 1.
    pub version: u32,
    /// The graph; may be left out if the engine has one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<String>,
    /// The slots that the predictor changes.
    pub slots: Vec<MapSlot>,
}

/// Where one slot's factors are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSlot {
    /// Name or alias of the slot.
    pub slot: String,
    /// Output with the down factor, `[rank, in]`.
    pub down: String,
    /// Output with the up factor, `[out, rank]`.
    pub up: String,
    /// Scale numerator, `ΔW = strength · (alpha / rank) · up · down`; the rank if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
    /// True: the down factor is `[in, rank]`.
    #[serde(default)]
    pub down_transposed: bool,
    /// True: the up factor is `[rank, out]`.
    #[serde(default)]
    pub up_transposed: bool,
    /// Index into the leading axis of an output that stacks the down factors of several slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_index: Option<usize>,
    /// The same for the up factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_index: Option<usize>,
}

impl PredictorMap {
    /// Reads a map from a JSON file of at most 16 MiB; unknown keys are refused.
    ///
    /// # Errors
    /// [`PredictorError::MapFile`], [`PredictorError::Map`].
    pub fn read(path: &Path) -> Result<Self, PredictorError> {
        let io = |source| PredictorError::MapFile { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_FILE {
            let reason = format!("expected a predictor map of at most {MAX_FILE} bytes, found more");
            return Err(fail(path, reason));
        }
        Self::parse(path, &bytes)
    }

    /// Format and version are looked at before the rest, which other versions may write otherwise.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, PredictorError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let json = |e: serde_json::Error| fail(path, format!("no sound predictor map: {e}"));
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        if head.format != FORMAT {
            return Err(fail(path, format!("`format`: expected {FORMAT:?}, found {:?}", head.format)));
        }
        if head.version != VERSION {
            let reason =
                format!("`version`: expected {VERSION}, found {}; use the v2l that it was made for", head.version);
            return Err(fail(path, reason));
        }
        let map: Self = serde_json::from_slice(bytes).map_err(json)?;
        if map.slots.is_empty() {
            return Err(fail(path, "`slots` is empty; expected at least one slot".to_owned()));
        }
        Ok(map)
    }
}

/// A slot to be changed, and where its factors are.
#[derive(Debug)]
struct Target {
    /// The slot's own name, whatever the map calls it.
    name: String,
    /// Features in and out; `None` where no model says them.
    features: Option<[usize; 2]>,
    map: MapSlot,
}

/// Any graph whose outputs are low-rank factors, ready to run.
pub struct MappedPredictor {
    targets: Vec<Target>,
    unused: Vec<String>,
    engine: Arc<Engine>,
    graph: String,
    session: LazySession,
}

impl MappedPredictor {
    /// Opens the graph that `map` names, for a model with these slots; `path` is the map's, for messages. The graph is not
    /// loaded before it is first run. Without slots nothing is known of the model: layers are named as the map names them, and
    /// factors need only fit each other.
    ///
    /// # Errors
    /// [`PredictorError::Map`] if the map names a graph, an output or a slot that is not there; [`PredictorError::Open`].
    pub fn open(
        engine: Arc<Engine>,
        path: &Path,
        map: PredictorMap,
        slots: Option<&[Slot]>,
        options: &OpenOptions,
    ) -> Result<Self, PredictorError> {
        let graph = choose_graph(&engine.manifest().graphs, path, map.graph.as_deref())?;
        let name = graph.name.clone();
        let outputs: Vec<String> = graph.outputs.iter().map(|port| port.name.clone()).collect();
        let (targets, unused) = check(path, map, &outputs, slots)?;
        let options = OpenOptions { record: None, adapters: Vec::new(), ..options.clone() };
        let open = OpenEngine::open(Arc::clone(&engine), &options)?;
        let session = LazySession::Closed { engine: open, graph: name.clone() };
        Ok(Self { targets, unused, engine, graph: name, session })
    }

    /// Outputs of the graph that no slot uses.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Its engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Runs the graph once on exactly its inputs; gives the adapter that its outputs are.
    ///
    /// Private memory: the outputs, and a copy of them as factors.
    ///
    /// # Errors
    /// [`PredictorError::Session`] if the inputs do not fit, [`PredictorError::Shape`] if an output does not fit its slot,
    /// [`PredictorError::NotFinite`].
    fn run(&mut self, inputs: &NamedTensors, cancelled: &dyn Fn() -> bool) -> Result<Adapter, PredictorError> {
        adapter(&self.targets, &self.unused, self.session.open()?, inputs, cancelled)
    }
}

/// The adapter that a graph's outputs are.
fn adapter(
    targets: &[Target],
    unused: &[String],
    session: &mut dyn Session,
    inputs: &NamedTensors,
    cancelled: &dyn Fn() -> bool,
) -> Result<Adapter, PredictorError> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut outputs: HashMap<String, ArrayD<f32>> = HashMap::new();
    for (name, tensor) in session.run_unless(&inputs, cancelled)? {
        let found = tensor.dtype();
        if unused.contains(&name) {
            continue;
        }
        let values = tensor.into_f32().ok_or_else(|| PredictorError::Shape {
            what: format!("output `{name}` of the predictor"),
            expected: "floating-point values".to_owned(),
            found: found.to_string(),
        })?;
        outputs.insert(name, values);
    }
    let mut layers = IndexMap::with_capacity(targets.len());
    for target in targets {
        layers.insert(target.name.clone(), target.update(&outputs)?);
    }
    Ok(Adapter { name: "predicted".to_owned(), layers })
}

impl Predictor for MappedPredictor {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn reads(&self) -> &'static [Input] {
        &[Input::Tensors]
    }

    fn check_backbone(&self, slots: &[Slot]) -> Result<(), Error> {
        let known = slots_by_name(slots);
        for Target { name, features, .. } in &self.targets {
            let found = known.get(&name[..]).map(|slot| [slot.in_features, slot.out_features]);
            if found.is_none() || features.is_some_and(|features| found != Some(features)) {
                let sizes = |[inner, out]: [usize; 2]| format!(" {inner} → {out}");
                let expected = format!("a linear layer{}", features.map_or_else(String::new, sizes));
                let found = found.map_or_else(|| "none".to_owned(), |found| sizes(found).trim_start().to_owned());
                return Err(PredictorError::Backbone { slot: name.clone(), expected, found }.into());
            }
        }
        Ok(())
    }

    fn key(&self, inputs: &mut Inputs<'_>) -> Result<Key, Error> {
        let mut parts = KeyParts::new("v2l mapped prediction 1");
        let mut tensors: Vec<(&String, &Tensor)> = inputs.tensors()?.iter().collect();
        tensors.sort_by_key(|(name, _)| *name);
        for (name, tensor) in tensors {
            parts.add(name);
            parts.add(format!("{} {:?}", tensor.dtype(), tensor.shape()));
            parts.add_elements(tensor);
        }
        parts.add(format!("{} {:?}", self.graph, self.targets));
        parts.add_engines(&[&self.engine], inputs.options());
        Ok(parts.key())
    }

    fn predict(&mut self, inputs: &mut Inputs<'_>) -> Result<Predicted, Error> {
        let tensors = inputs.tensors()?;
        let observer: &dyn Observer = inputs.observer();
        Ok(Predicted { adapter: self.run(tensors, &|| observer.cancelled())?, tokens: None })
    }
}

fn fail(path: &Path, reason: String) -> PredictorError {
    PredictorError::Map { path: path.to_owned(), reason }
}

/// The graph asked for, or the only one.
fn choose_graph<'a>(graphs: &'a [Graph], path: &Path, name: Option<&str>) -> Result<&'a Graph, PredictorError> {
    let found = match (name, graphs) {
        (None, [only]) => Some(only),
        (name, graphs) => graphs.iter().find(|graph| Some(&graph.name[..]) == name),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = graphs.iter().map(|graph| &graph.name[..]).collect();
        let names = names.join(", ");
        fail(
            path,
            match name {
                Some(name) => format!("`graph`: the predictor has no graph `{name}`; it has: {names}"),
                None => format!("`graph` is missing, and the predictor has several: {names}; name one of them"),
            },
        )
    })
}

/// Holds a map against a graph's outputs and a model's slots; gives also the outputs that it does not use.
fn check(
    path: &Path,
    map: PredictorMap,
    outputs: &[String],
    slots: Option<&[Slot]>,
) -> Result<(Vec<Target>, Vec<String>), PredictorError> {
    let known = slots.map(slots_by_name);
    let (mut seen, mut used) = (HashSet::new(), HashSet::new());
    let mut targets = Vec::with_capacity(map.slots.len());
    for map in map.slots {
        let (name, features) = match &known {
            None => (map.slot.clone(), None),
            Some(known) => match known.get(&map.slot[..]) {
                Some(slot) => (slot.name.clone(), Some([slot.in_features, slot.out_features])),
                None => {
                    let reason =
                        format!("the model has no slot `{}`; `v2l-inspect ENGINE` lists those that it has", map.slot);
                    return Err(fail(path, reason));
                }
            },
        };
        if !seen.insert(name.clone()) {
            return Err(fail(path, format!("slot `{name}` comes twice; remove one of its entries")));
        }
        for output in [&map.down, &map.up] {
            if !outputs.contains(output) {
                let (slot, outputs) = (&map.slot, outputs.join(", "));
                let reason = format!("slot `{slot}`: the predictor has no output `{output}`; it has: {outputs}");
                return Err(fail(path, reason));
            }
            used.insert(output.clone());
        }
        if map.alpha.is_some_and(|alpha| !alpha.is_finite()) {
            return Err(fail(path, format!("slot `{}`: `alpha` is no finite number of 32 bits", map.slot)));
        }
        targets.push(Target { name, features, map });
    }
    let unused = outputs.iter().filter(|output| !used.contains(*output)).cloned().collect();
    Ok((targets, unused))
}

impl Target {
    fn update(&self, outputs: &HashMap<String, ArrayD<f32>>) -> Result<LowRank, PredictorError> {
        let map = &self.map;
        let down = self.factor(outputs, &map.down, map.down_index, map.down_transposed)?;
        let up = self.factor(outputs, &map.up, map.up_index, map.up_transposed)?;
        let rank = down.nrows();
        let found = [down.ncols(), up.nrows()];
        let fits = self.features.is_none_or(|features| features == found) && !found.contains(&0);
        if !fits || up.ncols() != rank || !(1..=MAX_RANK).contains(&rank) {
            let [inner, out] = self.features.map_or(["in".to_owned(), "out".to_owned()], |f| f.map(|n| n.to_string()));
            let transposed = |yes| if yes { " (transposed)" } else { "" };
            return Err(PredictorError::Shape {
                what: format!("the predictor's factors of slot `{}`", map.slot),
                expected: format!("down [rank, {inner}] and up [{out}, rank] of one rank of 1 to {MAX_RANK}"),
                found: format!(
                    "down {:?}{} and up {:?}{}",
                    down.shape(),
                    transposed(map.down_transposed),
                    up.shape(),
                    transposed(map.up_transposed)
                ),
            });
        }
        for (output, factor) in [(&map.down, &down), (&map.up, &up)] {
            if factor.iter().any(|value| !value.is_finite()) {
                return Err(PredictorError::NotFinite { what: format!("output `{output}`, slot `{}`,", map.slot) });
            }
        }
        let copy = |factor: ArrayView2<'_, f32>| factor.as_standard_layout().into_owned();
        Ok(LowRank { down: copy(down), up: copy(up), alpha: map.alpha.unwrap_or(rank as f32) })
    }

    /// The matrix that is one factor, as the map says where it lies.
    fn factor<'a>(
        &self,
        outputs: &'a HashMap<String, ArrayD<f32>>,
        output: &str,
        index: Option<usize>,
        transposed: bool,
    ) -> Result<ArrayView2<'a, f32>, PredictorError> {
        let wrong = |found: String| PredictorError::Shape {
            what: format!("output `{output}` of the predictor, slot `{}`", self.map.slot),
            expected: match index {
                Some(index) => format!("more than {index} matrices, [n, rows, columns] or [1, n, rows, columns]"),
                None => "a matrix, [rows, columns] or [1, rows, columns]".to_owned(),
            },
            found,
        };
        let values = outputs.get(output).ok_or_else(|| wrong("none".to_owned()))?;
        let wrong_shape = || wrong(format!("{:?}", values.shape()));
        let mut view = values.view();
        if view.ndim() == 3 + usize::from(index.is_some()) && view.shape()[0] == 1 {
            view.index_axis_inplace(Axis(0), 0);
        }
        if let Some(index) = index {
            if view.ndim() != 3 || index >= view.shape()[0] {
                return Err(wrong_shape());
            }
            view.index_axis_inplace(Axis(0), index);
        }
        let matrix = view.into_dimensionality::<Ix2>().map_err(|_| wrong_shape())?;
        Ok(if transposed { matrix.reversed_axes() } else { matrix })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{IxDyn, arr2};
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::predict::video2lora::tests::Fixed;

    /// The numbers 1, 2, ….
    fn counting(shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        Tensor::F32(ArrayD::from_shape_vec(IxDyn(shape), (1..=count).map(|n| n as f32).collect()).unwrap())
    }

    fn parse(map: &Json) -> Result<PredictorMap, PredictorError> {
        PredictorMap::parse(Path::new("map.json"), map.to_string().as_bytes())
    }

    fn map(slots: &Json) -> Json {
        json!({ "format": FORMAT, "version": VERSION, "slots": slots })
    }

    fn slots() -> [Slot; 2] {
        [Slot { aliases: vec!["alias".into()], ..Slot::linear("a", 3, 2) }, Slot::linear("b", 3, 2)]
    }

    fn predict(slots_of_map: &Json, outputs: NamedTensors) -> Result<(Adapter, Vec<String>), PredictorError> {
        let names: Vec<String> = outputs.keys().cloned().collect();
        let (targets, unused) = check(Path::new("map.json"), parse(&map(slots_of_map))?, &names, Some(&slots()))?;
        let adapter = adapter(&targets, &unused, &mut Fixed(outputs), &NamedTensors::new(), &|| false)?;
        Ok((adapter, unused))
    }

    fn message(slots_of_map: &Json, outputs: NamedTensors) -> String {
        predict(slots_of_map, outputs).unwrap_err().to_string()
    }

    fn two() -> NamedTensors {
        [("d", [1, 2]), ("u", [3, 1])].map(|(name, shape)| (name.to_owned(), counting(&shape))).into()
    }

    #[test]
    fn mapped_predictor_finds_factors_upright_transposed_batched_and_stacked() {
        let expected = (arr2(&[[1.0, 2.0]]), arr2(&[[1.0], [2.0], [3.0]]));
        let shapes: [(&[usize], &[usize], Json); 5] = [
            (&[1, 2], &[3, 1], json!({})),
            (&[1, 1, 2], &[1, 3, 1], json!({})),
            (&[2, 1], &[1, 3], json!({ "down_transposed": true, "up_transposed": true })),
            (&[4, 1, 2], &[2, 3, 1], json!({ "down_index": 0, "up_index": 0 })),
            (&[1, 4, 1, 2], &[1, 2, 1, 3], json!({ "down_index": 0, "up_index": 0, "up_transposed": true })),
        ];
        for (down, up, more) in shapes {
            let mut entry = json!({ "slot": "alias", "down": "d", "up": "u" });
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let outputs = NamedTensors::from([("d".to_owned(), counting(down)), ("u".to_owned(), counting(up))]);
            let (adapter, unused) = predict(&json!([entry]), outputs).unwrap();
            let LowRank { down, up, alpha } = &adapter.layers["a"];
            assert_eq!((down, up, *alpha), (&expected.0, &expected.1, 1.0), "{entry}");
            assert!(unused.is_empty());
        }
    }

    #[test]
    fn mapped_predictor_takes_the_row_and_alpha_that_the_map_names_and_lists_the_rest() {
        let mut outputs = two();
        outputs.insert("stack".to_owned(), counting(&[2, 2, 2]));
        outputs.insert("ups".to_owned(), counting(&[3, 2]));
        outputs.insert("steps".to_owned(), Tensor::I64(ArrayD::zeros(IxDyn(&[1]))));
        let entry = json!({ "slot": "b", "down": "stack", "down_index": 1, "up": "ups", "alpha": 0.5 });
        let (adapter, unused) = predict(&json!([entry]), outputs).unwrap();
        assert_eq!(adapter.layers["b"].down, arr2(&[[5.0, 6.0], [7.0, 8.0]]));
        assert_eq!(adapter.layers["b"].scale(), 0.25);
        assert_eq!(unused, ["d", "u", "steps"]);
    }

    #[test]
    fn mapped_predictor_names_what_does_not_fit() {
        let entry = |slot: &str, down: &str, up: &str| json!({ "slot": slot, "down": down, "up": up });
        let has = |found: String, parts: &[&str]| {
            assert!(parts.iter().all(|part| found.contains(part)), "{found}");
        };
        has(message(&json!([entry("c", "d", "u")]), two()), &["map.json", "no slot `c`"]);
        has(message(&json!([entry("a", "x", "u")]), two()), &["slot `a`", "no output `x`", "it has: d, u"]);
        has(message(&json!([entry("a", "d", "u"), entry("alias", "d", "u")]), two()), &["slot `a` comes twice"]);
        has(message(&json!([]), two()), &["`slots` is empty"]);
        has(
            message(&json!([entry("a", "u", "d")]), two()),
            &["slot `a`", "expected down [rank, 2] and up [3, rank]", "found down [3, 1] and up [1, 2]"],
        );
        let mut stacked = entry("a", "d", "u");
        stacked["down_index"] = 1.into();
        has(message(&json!([stacked]), two()), &["output `d`", "expected more than 1 matrices", "found [1, 2]"]);
        let mut alpha = entry("a", "d", "u");
        alpha["alpha"] = json!(1e300);
        assert!(predict(&json!([alpha]), two()).is_err());
        let mut integers = two();
        integers.insert("d".to_owned(), Tensor::I64(ArrayD::zeros(IxDyn(&[1, 2]))));
        has(message(&json!([entry("a", "d", "u")]), integers), &["output `d`", "floating-point", "found i64"]);
        let mut undefined = two();
        undefined.insert("u".to_owned(), Tensor::F32(ArrayD::from_elem(IxDyn(&[3, 1]), f32::NAN)));
        has(message(&json!([entry("a", "d", "u")]), undefined), &["output `u`, slot `a`, holds NaN or infinity"]);
    }

    #[test]
    fn predictor_map_refuses_other_files_versions_and_unknown_keys() {
        let sound = map(&json!([{ "slot": "a", "down": "d", "up": "u" }]));
        assert!(parse(&sound).is_ok());
        let with = |change: &dyn Fn(&mut Json)| {
            let mut map = sound.clone();
            change(&mut map);
            parse(&map).unwrap_err().to_string()
        };
        assert!(with(&|map| map["format"] = "v2l-pipeline".into()).contains("expected \"v2l-predictor-map\""));
        assert!(with(&|map| map["version"] = 2.into()).contains("`version`: expected 1, found 2"));
        assert!(with(&|map| map["more"] = 1.into()).contains("unknown field `more`"));
        assert!(with(&|map| map["slots"][0]["down_row"] = 1.into()).contains("unknown field `down_row`"));
        assert!(with(&|map| map["slots"][0]["down_index"] = (-1).into()).contains("map.json: no sound predictor map"));
    }

    #[test]
    fn predictor_map_is_read_up_to_its_largest_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map.json");
        assert!(matches!(PredictorMap::read(&path), Err(PredictorError::MapFile { .. })));
        std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        let error = PredictorMap::read(&path).unwrap_err().to_string();
        assert!(error.contains("expected a predictor map of at most 16777216 bytes"), "{error}");
    }
}
