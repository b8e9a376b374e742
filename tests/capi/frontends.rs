//! The same request through the command line, the Rust facade, C, C++ and Python gives the same bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use indexmap::IndexMap;
use v2l_export::CompileOptions;
use v2l_graphs::{Builder, DataType};
use v2l_runtime::generator::{Generator, Mapped, Options, PredictOptions};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::AdapterSet;
use v2l_runtime::lora::adapter::ReadOptions;
use v2l_runtime::lora::mode::AdapterMode;
use v2l_runtime::predict::Source;
use v2l_runtime::tensor::{NamedTensors, Tensor};
use v2l_runtime::{AdapterFormat, Clip, Engine, Request};

use crate::python::python;
use crate::support::{Language, engines, root, run, run_program, sample, scratch};

/// The front ends; each makes the same files in a folder of its own.
const FRONT_ENDS: [&str; 5] = ["rust", "cli", "c", "cpp", "python"];

/// A request's size, image and scheduler, and how the adapter is applied.
struct Ask {
    name: &'static str,
    image: bool,
    size: Option<(usize, usize)>,
    branches: bool,
    scheduler: Option<&'static str>,
}

/// A request with the model's own scheduler.
const fn ask(name: &'static str, image: bool, size: Option<(usize, usize)>, branches: bool) -> Ask {
    Ask { name, image, size, branches, scheduler: None }
}

const SIZE: Option<(usize, usize)> = Some((64, 48));

/// With an image and without, with a size and without, fused and in branches.
const ASKS: [Ask; 8] = [
    ask("plain-fused", false, None, false),
    ask("plain-branches", false, None, true),
    ask("image-fused", true, None, false),
    ask("image-branches", true, None, true),
    ask("size-fused", false, SIZE, false),
    ask("size-branches", false, SIZE, true),
    Ask { scheduler: Some("cogvideox_ddim"), ..ask("both-fused", true, SIZE, false) },
    ask("both-branches", true, SIZE, true),
];

/// Everything that a front end is given.
struct Given {
    /// An image of another size than the model's own.
    image: PathBuf,
    predictor: PathBuf,
    map: PathBuf,
    inputs: PathBuf,
}

impl Given {
    /// A predictor of one slot that negates its inputs, and scales what they give by the mean of the model's weight, with its map and
    /// inputs.
    fn new() -> Self {
        let folder = scratch().join("front-ends");
        std::fs::create_dir_all(&folder).unwrap();
        let engine = Engine::open(engines().join("transformer.engine")).unwrap();
        let slot = engine.manifest().slots[0].clone();
        let mut b = Builder::new("predictor");
        let mut inputs = NamedTensors::new();
        for (name, shape) in [("down", [2, slot.in_features]), ("up", [slot.out_features, 2])] {
            let input = b.input(&format!("{name}_in"), DataType::Float, shape);
            let output = b.op("Neg", &[&input]);
            b.output(name, &output, DataType::Float, shape);
            let values = ndarray::Array2::from_shape_fn((shape[0], shape[1]), |(i, j)| ((i * 7 + j) % 5) as f32 * 0.01);
            inputs.insert(format!("{name}_in"), Tensor::F32(values.into_dyn()));
        }
        let model = v2l_graphs::encode_model(&b.finish().unwrap(), &|_| None).unwrap();
        let [onnx, predictor, map, tensors] =
            ["predictor.onnx", "predictor.engine", "map.json", "in.safetensors"].map(|name| folder.join(name));
        std::fs::write(&onnx, model).unwrap();
        v2l_export::compile(&onnx, &predictor, &CompileOptions::default(), &mut |_| {}).unwrap();
        let mut b = Builder::new("mean");
        let weight = b.input("weight", DataType::Float, [slot.out_features, slot.in_features]);
        let mean = b.op("ReduceMean", &[&weight]);
        b.output("mean", &mean, DataType::Float, [1usize, 1]);
        let model = v2l_graphs::encode_model(&b.finish().unwrap(), &|_| None).unwrap();
        let [mean_onnx, mean] = ["mean.onnx", "mean.engine"].map(|name| folder.join(name));
        std::fs::write(&mean_onnx, model).unwrap();
        v2l_export::compile(&mean_onnx, &mean, &CompileOptions::default(), &mut |_| {}).unwrap();
        let map_text = serde_json::json!({ "format": "v2l-predictor-map", "version": 1,
            "graphs": [{ "graph": "predictor" }, { "engine": "mean.engine", "each_slot": true, "inputs": { "weight": { "base": true } } }],
            "slots": [{ "slot": slot.name, "down": "down", "up": "up", "scale": "mean" }] });
        std::fs::write(&map, map_text.to_string()).unwrap();
        write_tensors(&tensors, &inputs, &IndexMap::new()).unwrap();
        let image = folder.join("image.png");
        image::open(sample().join("image.png")).unwrap().crop_imm(16, 0, 48, 64).save(&image).unwrap();
        Self { image, predictor, map, inputs: tensors }
    }

    fn rust(&self, out: &Path) {
        for ask in &ASKS {
            let adapter_mode = if ask.branches { AdapterMode::Branch } else { AdapterMode::Fuse };
            let mut generator = Generator::open(engines(), &Options { adapter_mode, ..Options::default() }).unwrap();
            let image = Clip::read(&self.image, None).unwrap().into_frames().unwrap();
            let (width, height) = ask.size.unzip();
            let asked =
                PredictOptions { width, height, image: ask.image.then_some(&image), ..PredictOptions::default() };
            let reference = Clip::read(&sample().join("reference.mp4"), None).unwrap();
            let prediction = generator.predict_with(&reference, &asked, &mut ()).unwrap();
            prediction.save(out.join(format!("{}.lora.safetensors", ask.name)), AdapterFormat::Kohya).unwrap();
            generator.set_adapters(&AdapterSet::from([(&prediction.adapter, 0.5)]), None).unwrap();
            let request = Request {
                image: Some(image),
                width,
                height,
                num_frames: Some(5),
                num_inference_steps: Some(2),
                scheduler: ask.scheduler.map(str::to_owned),
                seed: Some(7),
                ..Request::new("a red ball")
            };
            let video = generator.generate(&request).unwrap();
            video.save(out.join(format!("{}.video.safetensors", ask.name))).unwrap();
        }
        let [model, engine] = [&engines().join("transformer.engine"), &self.predictor]
            .map(|path| std::sync::Arc::new(Engine::open(path).unwrap()));
        let inputs = read_tensors(&self.inputs).unwrap();
        let mut mapped = Mapped::open(engine, &self.map, Some(&model), &Options::default()).unwrap();
        let prediction = mapped.predict(&Source::tensors(&inputs), &mut ()).unwrap();
        prediction.save(out.join("mapped.lora.safetensors"), AdapterFormat::Kohya).unwrap();
        let path = out.join("mapped.lora.safetensors");
        let mut generator = Generator::without_text(engines(), &Options::default()).unwrap();
        let loaded = generator.load_adapter(path, &ReadOptions::default()).unwrap();
        assert_eq!(loaded.adapter.layers, prediction.adapter.layers);
    }

    fn cli(&self, out: &Path) {
        let tool = |arguments: &[OsString]| {
            run(Command::new(env!("CARGO_BIN_EXE_v2l-run")).arg("--quiet").args(arguments));
        };
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        for ask in &ASKS {
            let mut common = words(&["--engine"]);
            common.push(engines().into());
            if let Some((width, height)) = ask.size {
                common.extend(words(&["--width", &width.to_string(), "--height", &height.to_string()]));
            }
            let adapter = out.join(format!("{}.lora.safetensors", ask.name));
            let image = [OsString::from("--image"), self.image.clone().into()];
            let mut predict = common.clone();
            predict.extend(words(&["--lora-format", "kohya", "--save-lora"]));
            predict.extend([adapter.clone().into(), "--reference".into(), sample().join("reference.mp4").into()]);
            predict.extend(ask.image.then(|| image.clone()).into_iter().flatten());
            tool(&predict);
            let mode = if ask.branches { "branch" } else { "fuse" };
            if ask.branches {
                common.extend(image);
                common.extend(words(&["--prompt", "a red ball", "--num-frames", "5", "--steps", "2", "--seed", "7"]));
            } else {
                // The same from a file, over which flags win.
                let file = self.image.with_file_name(format!("{}.json", ask.name));
                let request = serde_json::json!({
                    "prompt": "a red ball", "num_frames": 9, "num_inference_steps": 2, "seed": 7, "image": "image.png"
                });
                std::fs::write(&file, request.to_string()).unwrap();
                common.extend(words(&["--num-frames", "5", "--request"]));
                common.push(file.into());
            }
            common.extend(words(&["--fuse-mode", mode, "--lora", &format!("{}=0.5", adapter.display()), "-o"]));
            common.push(out.join(format!("{}.video.safetensors", ask.name)).into());
            common.extend(ask.scheduler.into_iter().flat_map(|name| words(&["--scheduler", name])));
            tool(&common);
        }
        let mut mapped = words(&["--lora-format", "kohya"]);
        for (flag, path) in [
            ("--engine", &engines().join("transformer.engine")),
            ("--predictor", &self.predictor),
            ("--predictor-map", &self.map),
            ("--predictor-inputs", &self.inputs),
            ("--save-lora", &out.join("mapped.lora.safetensors")),
        ] {
            mapped.extend([flag.into(), path.into()]);
        }
        tool(&mapped);
    }

    /// What the programs of other languages are given: the paths, and a word for each ask, `name:image:width:height:branches:scheduler`.
    fn arguments(&self, out: &Path) -> Vec<OsString> {
        let paths = [engines(), &sample().join("reference.mp4"), &self.image, out];
        let mut arguments: Vec<OsString> = paths.map(OsString::from).into();
        arguments.extend([&self.predictor, &self.map].map(OsString::from));
        arguments.extend(ASKS.iter().map(|ask| {
            let (width, height) = ask.size.unwrap_or_default();
            let [image, branches] = [ask.image, ask.branches].map(u8::from);
            let scheduler = ask.scheduler.unwrap_or("own");
            format!("{}:{image}:{width}:{height}:{branches}:{scheduler}", ask.name).into()
        }));
        arguments
    }

    fn make(&self, front_end: &str, out: &Path) {
        let program = |name: &str| root().join("tests/capi/programs").join(name);
        let arguments = self.arguments(out);
        match front_end {
            "rust" => self.rust(out),
            "cli" => self.cli(out),
            "c" => drop(run_program(&Language::C99.program(&program("front_end.c")), &arguments)),
            "cpp" => drop(run_program(&Language::Cpp17.program(&program("front_end_cpp.cpp")), &arguments)),
            _ => drop(run(python().arg(program("front_end.py")).args(arguments))),
        }
    }
}

/// The tensors of each safetensors file of a folder, by its name: what a file says of how it was made may differ.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let data = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header_text: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        header_text.as_object_mut().unwrap().remove("__metadata__");
        let content = [header_text.to_string().as_bytes(), &bytes[header..]].concat();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), content)
    };
    entries.map(data).collect()
}

#[test]
fn same_requests_through_every_front_end_give_the_same_bytes() {
    let given = Given::new();
    let made = FRONT_ENDS.map(|front_end| {
        let out = scratch().join("front-ends").join(front_end);
        std::fs::create_dir_all(&out).unwrap();
        given.make(front_end, &out);
        files(&out)
    });
    let names: Vec<&String> = made[0].keys().collect();
    assert_eq!(names.len(), 2 * ASKS.len() + 1, "{names:?}");
    for (front_end, files) in FRONT_ENDS.iter().zip(&made).skip(1) {
        assert_eq!(files.keys().collect::<Vec<_>>(), names, "{front_end}");
        for (name, bytes) in files {
            assert!(*bytes == made[0][name], "{name} of {front_end} differs from the Rust facade's");
        }
    }
    // What is asked for makes a difference; an image decides the size where none is asked for, and nothing else of a prediction.
    let videos: std::collections::BTreeSet<&Vec<u8>> =
        made[0].iter().filter(|(name, _)| name.contains("video")).map(|(_, bytes)| bytes).collect();
    assert_eq!(videos.len(), ASKS.len() - 1);
    assert!(made[0]["size-branches.video.safetensors"] == made[0]["both-branches.video.safetensors"]);
}
