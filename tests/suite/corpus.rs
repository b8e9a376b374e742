//! Graphs by PyTorch's exporters (`tests/reference/corpus.py`): every linear layer is found under its name, the engine computes
//! what ONNX Runtime computes on the untouched file, and an adapter changes what it should.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tempfile::TempDir;
use v2l_calibration::compare;
use v2l_export::{CompileOptions, SlotReport};
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::{ReadOptions, read_adapter};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::support::{WEIGHT_MODES, f32s, fixtures, run, stack};
use crate::tools::{RawTensor, Scratch, args, run_ok, tamper};

/// Engine against ONNX Runtime on the file, all in f32.
const TOLERANCE: f64 = 1e-5;
/// ONNX Runtime computes a graph typed in float16 in float16: 11 bits of each intermediate value, a handful of them in a row.
const HALF_TOLERANCE: f64 = 2e-3;
/// Weights that are fused in bfloat16 keep 8 bits: half a unit is 2e-3 of each, and the model adds up several layers.
const NARROW_TOLERANCE: f64 = 1e-2;

/// The known map of one export.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    /// Parameter names survive in the file.
    names: bool,
    slots: BTreeMap<String, Place>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    tensor: String,
    transposed: bool,
    rows: Option<[usize; 2]>,
    #[serde(default)]
    aliases: Vec<String>,
    /// The exporter stored several parameters of equal content once.
    #[serde(default)]
    shared: bool,
    /// The rows of `tensor` that the layer is; the graph cuts them out.
    cut: Option<[usize; 2]>,
}

struct Export {
    folder: PathBuf,
    name: String,
    map: Map,
}

impl Export {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for model in folders(&fixtures().join("corpus")) {
            all.extend(folders(&model).into_iter().map(|folder| Self::at(&folder)));
        }
        assert!(all.len() >= 12, "{} exports", all.len());
        all
    }

    fn named(name: &str) -> Self {
        Self::at(&fixtures().join("corpus").join(name))
    }

    fn at(folder: &Path) -> Self {
        let parent = folder.parent().unwrap().file_name().unwrap().to_string_lossy();
        let name = format!("{parent}/{}", folder.file_name().unwrap().to_string_lossy());
        let map = serde_json::from_slice(&std::fs::read(folder.join("map.json")).unwrap()).unwrap();
        Self { folder: folder.to_owned(), name, map }
    }

    fn beside(&self, file: &str) -> PathBuf {
        self.folder.parent().unwrap().join(file)
    }

    fn compile(&self, with_weights: bool) -> Compiled {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.engine");
        let weights = with_weights.then(|| self.beside("checkpoint.safetensors"));
        let options = CompileOptions { weights, ..Default::default() };
        let report = v2l_export::compile(&self.folder.join("model.onnx"), &path, &options, &mut |_| {})
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let engine = Arc::new(Engine::open(&path).unwrap());
        Compiled { engine, named: report.engines[0].named.clone(), _folder: folder }
    }

    /// The tensors of `io.safetensors` that begin with `kind.`.
    fn tensors(&self, kind: &str) -> NamedTensors {
        let all = read_tensors(self.folder.join("io.safetensors")).unwrap();
        all.into_iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(kind)?.strip_prefix('.')?.to_owned(), t)))
            .collect()
    }
}

struct Compiled {
    engine: Arc<Engine>,
    named: Option<SlotReport>,
    _folder: TempDir,
}

impl Compiled {
    fn slots(&self) -> &[Slot] {
        &self.engine.manifest().slots
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

/// What is wrong with `slots`, measured against the map.
fn differences(map: &Map, slots: &[Slot]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, place) in &map.slots {
        let Some(slot) = slots.iter().find(|s| s.name == *name) else {
            wrong.push(format!("`{name}` is not found"));
            continue;
        };
        // A copy, or a part, has a name of its own; its content is compared elsewhere.
        let renamed = place.shared || place.cut.is_some();
        let found = Place {
            tensor: if renamed { place.tensor.clone() } else { slot.tensor.clone() },
            transposed: slot.transposed,
            rows: slot.rows.map(|r| [r.start, r.end]),
            aliases: slot.aliases.clone(),
            shared: place.shared,
            cut: place.cut,
        };
        if found != *place {
            wrong.push(format!("`{name}` is {found:?}, expected {place:?}"));
        }
    }
    let surplus = slots.iter().filter(|s| !map.slots.contains_key(&s.name));
    wrong.extend(surplus.map(|s| format!("`{}` is no layer of the model", s.name)));
    let mut tensors: Vec<_> = slots.iter().map(|s| (&s.tensor, s.row_range().start)).collect();
    let count = tensors.len();
    tensors.sort();
    tensors.dedup();
    if tensors.len() != count {
        wrong.push("two slots are the same rows".to_owned());
    }
    wrong
}

/// The slot's weight as `[out, in]`, from the engine.
fn stored(engine: &Engine, slot: &Slot) -> Vec<f32> {
    let tensor = f32s(&engine.weight(&slot.tensor).unwrap().to_tensor().unwrap());
    let upright = if slot.transposed { tensor.reversed_axes() } else { tensor };
    let rows = slot.row_range();
    upright.slice_axis(ndarray::Axis(0), ndarray::Slice::from(rows.start..rows.end)).iter().copied().collect()
}

#[track_caller]
fn assert_within(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    let values = |t: &Tensor| f32s(t).iter().copied().collect::<Vec<f32>>();
    let found = compare(&values(actual), &values(expected)).unwrap();
    assert!(found.within(tolerance), "{what}: {found}; tolerance {tolerance:.1e}");
}

fn open(compiled: &Compiled, weights: OrtWeights) -> OrtEngine {
    OrtEngine::open(compiled.engine.clone(), &OpenOptions { weights, ..Default::default() }).unwrap()
}

fn only(tensors: &NamedTensors) -> &Tensor {
    assert_eq!(tensors.len(), 1);
    &tensors[0]
}

#[test]
fn every_export_with_its_checkpoint_has_all_layers_under_their_names() {
    for export in Export::all() {
        let compiled = export.compile(true);
        assert_eq!(differences(&export.map, compiled.slots()), Vec::<String>::new(), "{}", export.name);
        let report = compiled.named.as_ref().unwrap();
        assert!(report.ambiguous.is_empty() && report.unmatched.is_empty(), "{}: {report:?}", export.name);
        // The content is that of the tensor whose name the slot has.
        let checkpoint = read_tensors(export.beside("checkpoint.safetensors")).unwrap();
        for slot in compiled.slots() {
            let (module, cut) = match slot.name.split_once('[') {
                Some((module, _)) => (module, export.map.slots[&slot.name].cut.unwrap()[0]),
                None => (slot.name.as_str(), 0),
            };
            let tensor = f32s(&checkpoint[&format!("{module}.weight")]);
            let expected = tensor.slice_axis(ndarray::Axis(0), ndarray::Slice::from(cut..cut + slot.out_features));
            let found = stored(&compiled.engine, slot);
            // Exports in 16 bits round.
            let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= b.abs() / 128.0);
            assert!(near && found.len() == expected.len(), "{}: content of `{}`", export.name, slot.name);
        }
    }
}

#[test]
fn export_with_surviving_names_has_all_layers_without_a_checkpoint() {
    let mut tried = 0;
    for export in Export::all().into_iter().filter(|e| e.map.names) {
        let compiled = export.compile(false);
        // Without a checkpoint, each module is a layer of its own.
        let expected: BTreeSet<&str> = export
            .map
            .slots
            .iter()
            .flat_map(|(name, place)| std::iter::once(name).chain(&place.aliases))
            .map(String::as_str)
            .collect();
        let found: BTreeSet<&str> = compiled.slots().iter().map(|s| s.name.as_str()).collect();
        assert_eq!(found, expected, "{}", export.name);
        tried += 1;
    }
    assert!(tried >= 6, "{tried} exports keep their names");
}

#[test]
fn wrong_map_is_noticed() {
    let export = Export::named("block/ts17");
    let compiled = export.compile(true);
    let change = |edit: &dyn Fn(&mut BTreeMap<String, Place>)| {
        let mut map = export.map.clone();
        edit(&mut map.slots);
        differences(&map, compiled.slots()).len()
    };
    assert_eq!(change(&|_| {}), 0);
    assert!(change(&|m| m.get_mut("up").unwrap().tensor = "onnx::MatMul_82".into()) > 0);
    assert!(change(&|m| m.get_mut("up").unwrap().transposed = false) > 0);
    assert!(change(&|m| m.get_mut("attention.qkv").unwrap().rows = Some([0, 16])) > 0);
    assert!(change(&|m| m.get_mut("up").unwrap().aliases.clear()) > 0);
    assert!(change(&|m| drop(m.remove("left"))) > 0);
    assert!(change(&|m| drop(m.insert("other".into(), m["left"].clone()))) > 0);
    // Two layers of one size, swapped.
    let swapped = change(&|m| {
        let (a, b) = (m["attention.out"].tensor.clone(), m["up"].tensor.clone());
        m.get_mut("attention.out").unwrap().tensor = b;
        m.get_mut("up").unwrap().tensor = a;
    });
    assert_eq!(swapped, 2);
}

#[test]
fn every_engine_equals_onnx_runtime_on_the_untouched_file() {
    for export in Export::all() {
        let compiled = export.compile(true);
        let (inputs, exact) = (export.tensors("input"), export.tensors("torch"));
        let untouched = export.tensors("output");
        let half = export.name.ends_with("_f16");
        for mode in WEIGHT_MODES {
            let mut backend = open(&compiled, mode);
            let outputs = run(&mut backend.session("model").unwrap(), &inputs);
            let what = format!("{} {mode:?}", export.name);
            match untouched.first() {
                Some((_, expected)) => {
                    assert_within(&what, only(&outputs), expected, if half { HALF_TOLERANCE } else { TOLERANCE });
                }
                // ONNX Runtime has no bf16 matrix product on CPUs.
                None => assert!(export.name.ends_with("_bf16")),
            }
            if untouched.is_empty() || half {
                assert_within(&format!("{what}, PyTorch in f32"), only(&outputs), only(&exact), TOLERANCE);
            }
        }
    }
}

#[test]
fn every_export_with_a_fused_adapter_equals_the_merged_model() {
    for export in Export::all() {
        let compiled = export.compile(true);
        let loaded = read_adapter(&export.beside("adapter.safetensors"), compiled.slots(), &ReadOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}", export.name));
        let (inputs, expected) = (export.tensors("input"), export.tensors("lora"));
        for mode in WEIGHT_MODES {
            let what = format!("{} {mode:?}", export.name);
            let mut backend = open(&compiled, mode);
            let base = run(&mut backend.session("model").unwrap(), &inputs);
            backend.set_adapters(&stack(&[(&loaded.adapter, 1.0)]), None).unwrap();
            let outputs = run(&mut backend.session("model").unwrap(), &inputs);
            // What is stored in 16 bits, and fused there, is rounded there.
            let narrow = mode == OrtWeights::Stored && compiled.engine.manifest().storage != Dtype::F32;
            let tolerance = if narrow { NARROW_TOLERANCE } else { TOLERANCE };
            assert_within(&what, only(&outputs), only(&expected), tolerance);
            assert_ne!(outputs, base, "{what}: the adapter changes the output");
        }
    }
}

#[test]
fn slots_of_a_foreign_model_and_its_engine_are_shown_with_how_they_were_found() {
    let scratch = Scratch::new();
    let folder = scratch.copy(&fixtures().join("corpus/wan_fused/ts17"), "wan");
    let (model, engine) = (folder.join("model.onnx"), scratch.path("x.engine"));
    let weights = fixtures().join("corpus/wan_fused/checkpoint.safetensors");
    let table = |text: &str| -> String {
        text.lines().skip_while(|l| !l.contains(" slots")).map(|line| format!("{line}\n")).collect()
    };
    let before = table(&run_ok("inspect", args![&model]).stdout);
    let run = run_ok("compile", args![&model, "--weights", weights, "-o", &engine]);
    assert_eq!(run.stderr, "", "nothing to warn of");
    let after = table(&run_ok("inspect", args![&engine]).stdout);
    insta::assert_snapshot!(format!("the file\n{before}\nthe engine\n{after}"));
    let events = run_ok("inspect", args![&engine, "--json"]).stdout;
    let slot = events.lines().find(|l| l.contains("\"name\":\"blocks.0.attn1.to_k\"")).unwrap();
    let slot: serde_json::Value = serde_json::from_str(slot).unwrap();
    assert_eq!(slot["found"]["how"], "slice");
    assert_eq!(slot["found"]["checkpoint"], "blocks.0.attn1.to_k.weight");
}

#[test]
fn what_a_checkpoint_does_not_name_is_warned_of_and_reported() {
    let scratch = Scratch::new();
    let folder = scratch.copy(&fixtures().join("corpus/block"), "block");
    let checkpoint = folder.join("checkpoint.safetensors");
    tamper(&checkpoint, |tensors| {
        let up = tensors.remove("up.weight").unwrap();
        tensors.insert("stray.weight".into(), RawTensor { data: up.data.iter().map(|b| b ^ 1).collect(), ..up });
    });
    let compile = |json: &[&str]| {
        let mut all =
            args![folder.join("ts17/model.onnx"), "--weights", &checkpoint, "-o", scratch.path("x.engine")].to_vec();
        all.extend(json.iter().map(Into::into));
        run_ok("compile", &all)
    };
    insta::assert_snapshot!(compile(&[]).stderr);
    let events = compile(&["--json"]).stdout;
    let engine = events.lines().find(|l| l.contains("\"event\":\"engine\"")).unwrap();
    let engine: serde_json::Value = serde_json::from_str(engine).unwrap();
    assert_eq!(engine["named"]["unmatched"], serde_json::json!(["onnx::MatMul_85"]));
    assert_eq!(engine["named"]["unused"], serde_json::json!(["stray.weight"]));
}
