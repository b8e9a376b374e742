//! Inferred shapes against those that ONNX Runtime computes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use v2l_export::{CompileOptions, ExportOptions};
use v2l_graphs::{DataType, Dim, ExternalDataWriter, Model, ReadOptions, encode_model, read_model};
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::pipeline::config::{ComponentFiles, PipelineConfig};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::random_weights;
use crate::support::{Built, fixtures, run};

/// An extent as `infer_shapes` writes it, at given sizes of the symbols.
struct Reader<'a> {
    rest: &'a str,
    sizes: &'a HashMap<&'a str, i64>,
}

impl Reader<'_> {
    fn takes(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> i64 {
        let mut value = if self.takes("-") { -self.product() } else { self.product() };
        loop {
            value += match () {
                () if self.takes("+") => self.product(),
                () if self.takes("-") => -self.product(),
                () => return value,
            };
        }
    }

    fn product(&mut self) -> i64 {
        let mut value = self.atom();
        loop {
            match () {
                () if self.takes("*") => value *= self.atom(),
                () if self.takes("//") => value = value.div_euclid(self.atom()),
                () if self.takes("%") => value = value.rem_euclid(self.atom()),
                () => return value,
            }
        }
    }

    fn pair(&mut self, choose: fn(i64, i64) -> i64) -> i64 {
        let first = self.sum();
        assert!(self.takes(","));
        choose(first, self.sum())
    }

    fn atom(&mut self) -> i64 {
        let value = match () {
            () if self.takes("(") => self.sum(),
            () if self.takes("max(") => self.pair(Ord::max),
            () if self.takes("min(") => self.pair(Ord::min),
            () if self.takes("{") => {
                let (name, rest) = self.rest.split_once('}').unwrap();
                self.rest = rest;
                return self.sizes[name];
            }
            () => {
                let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
                let (name, rest) = self.rest.split_at(end);
                self.rest = rest;
                return name.parse().unwrap_or_else(|_| self.sizes[name]);
            }
        };
        assert!(self.takes(")"), "`)` expected before `{}`", self.rest);
        value
    }
}

fn extent(dim: &Dim, sizes: &HashMap<&str, i64>) -> usize {
    let size = match dim {
        Dim::Fixed(n) => return *n,
        Dim::Symbol(name) if sizes.contains_key(name.as_str()) => sizes[name.as_str()],
        Dim::Symbol(text) => {
            let mut reader = Reader { rest: text, sizes };
            let value = reader.sum();
            assert_eq!(reader.rest, "", "{text}");
            value
        }
        Dim::Unknown => panic!("an extent without a name"),
    };
    size.try_into().unwrap()
}

fn input(dtype: DataType, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let shape = IxDyn(shape);
    match dtype {
        DataType::Int64 => {
            Tensor::I64(ArrayD::from_shape_vec(shape, (0..count).map(|i| i as i64 % 3).collect()).unwrap())
        }
        _ => Tensor::F32(ArrayD::from_shape_vec(shape, (0..count).map(|i| (i % 7) as f32 * 0.1).collect()).unwrap()),
    }
}

/// Writes `model` anew and opens it.
fn open(model: &Model, folder: &Path) -> OrtEngine {
    let mut writer = ExternalDataWriter::new(std::fs::File::create(folder.join("data")).unwrap(), "data");
    for (name, value) in model.graph.initializers.iter().filter(|(_, v)| v.external) {
        writer.append(name, &value.data).unwrap();
    }
    let bytes = encode_model(model, &|name| writer.location(name).cloned()).unwrap();
    let (onnx, engine) = (folder.join("graph.onnx"), folder.join("graph.engine"));
    std::fs::write(&onnx, bytes).unwrap();
    v2l_export::compile(&onnx, &engine, &CompileOptions::default(), &mut |_| {}).unwrap();
    let options = OpenOptions { weights: OrtWeights::F32, ..Default::default() };
    OrtEngine::open(Arc::new(Engine::open(&engine).unwrap()), &options).unwrap()
}

/// Every value of the graph has a shape without unknown extents, and at each of `runs` it is the one that ONNX Runtime
/// finds.
fn check(built: &Built, component: &str, graph: &str, runs: &[&[(&str, i64)]]) {
    let config = PipelineConfig::read(&built.bundle()).unwrap();
    let ComponentFiles::Graphs(files) = &config.components[component] else { panic!("not a bundle") };
    let mut model = read_model(&built.bundle().join(&files.graphs[graph]), &ReadOptions::default()).unwrap();
    let known: HashMap<&str, &Vec<Dim>> = model
        .graph
        .value_info
        .iter()
        .chain(&model.graph.outputs)
        .filter_map(|i| Some((i.name.as_str(), i.ty.as_ref()?.shape.as_ref()?)))
        .collect();
    for name in model.graph.nodes.iter().flat_map(|n| &n.outputs) {
        let shape = known.get(name.as_str()).unwrap_or_else(|| panic!("{component}/{graph}: no shape for {name}"));
        let open = shape.iter().any(|d| d.to_string().starts_with("unk__") || *d == Dim::Unknown);
        assert!(!open, "{component}/{graph}: {name} {shape:?}");
    }
    let intermediates = model.graph.value_info.clone();
    model.graph.outputs.extend(intermediates.iter().cloned());
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&model, folder.path()).session("graph").unwrap();
    for sizes in runs {
        let sizes: HashMap<&str, i64> = sizes.iter().copied().collect();
        let shape_of = |dims: &[Dim]| dims.iter().map(|d| extent(d, &sizes)).collect::<Vec<_>>();
        let inputs: NamedTensors = model
            .graph
            .inputs
            .iter()
            .map(|i| {
                let ty = i.ty.as_ref().unwrap();
                (i.name.clone(), input(ty.dtype, &shape_of(ty.shape.as_ref().unwrap())))
            })
            .collect();
        let outputs = run(&mut session, &inputs);
        for info in &intermediates {
            let dims = info.ty.as_ref().unwrap().shape.as_ref().unwrap();
            assert_eq!(outputs[&info.name].shape(), shape_of(dims), "{component}/{graph}: {} {dims:?}", info.name);
        }
    }
    println!("{component}/{graph}: {} values", intermediates.len());
}

#[test]
fn shapes_of_every_transformer_are_those_at_run_time() {
    let check = |variant: &str, runs: &[&[(&str, i64)]]| {
        check(&Built::plain(&fixtures().join("transformer").join(variant)), "transformer", "step", runs);
    };
    let free = [
        [("batch", 2), ("frames", 4), ("height", 8), ("width", 12), ("text_length", 10), ("tokens", 96)],
        [("batch", 1), ("frames", 1), ("height", 7), ("width", 5), ("text_length", 1), ("tokens", 6)],
    ];
    check("rotary_t2v", &[&free[0], &free[1]]);
    check("sincos_t2v", &[&free[0], &free[1]]);
    check("fun_inp", &[&free[0], &free[1]]);
    check(
        "learned_i2v",
        &[&[("batch", 2), ("frames", 3), ("tokens", 72)], &[("batch", 1), ("frames", 5), ("tokens", 120)]],
    );
    let deep = [("batch", 1), ("frames", 6), ("height", 12), ("width", 16), ("text_length", 7), ("tokens", 144)];
    check("v15_t2v", &[&deep]);
    check("v15_i2v", &[&deep]);
}

#[test]
fn shapes_of_the_vae_are_those_at_run_time() {
    let built = Built::plain(&fixtures().join("vae/tiny"));
    let even = [("batch", 1), ("frames", 5), ("height", 32), ("width", 48), ("height/2", 16), ("width/2", 24)];
    let deep = [("height/4", 8), ("width/4", 12), ("height/8", 4), ("width/8", 6)];
    let latent = [("latent_frames", 3), ("latent_height", 4), ("latent_width", 6)];
    let all = [&even[..], &deep, &latent].concat();
    let two: Vec<(&str, i64)> =
        all.iter().map(|&(name, n)| (name, if name.ends_with("frames") { 2 } else { n })).collect();
    for component in ["vae_encoder", "vae_decoder"] {
        for graph in ["first", "rest"] {
            check(&built, component, graph, &[&all, &two]);
        }
    }
}

#[test]
fn shapes_of_text_encoder_and_hypernetwork_are_those_at_run_time() {
    let t5 = Built::plain(&fixtures().join("t5/gated_gelu"));
    let runs: [&[(&str, i64)]; 2] = [&[("batch", 2), ("text_length", 9)], &[("batch", 1), ("text_length", 1)]];
    check(&t5, "text_encoder", "encode", &runs);
    check(&t5, "text_encoder", "encode_masked", &runs);
    let made = random_weights::made(&fixtures().join("official/open_d100u50_r1"));
    let folder = made.root();
    let files = (folder.join("hypernetwork.safetensors"), folder.join("lora_diffusion_pytorch_model.safetensors"));
    let options = ExportOptions { predictor: Some(files), ..ExportOptions::default() };
    let hyper = Built::new(&folder.join("transformer"), &options, None);
    let video = [("batch", 2), ("latent_frames", 3), ("latent_height", 4), ("latent_width", 5)];
    check(&hyper, "hypernetwork", "predict", &[&video]);
    check(&hyper, "hypernetwork", "expand", &[&[]]);
}
