//! Control tokens: the graph against its definition in PyTorch, on every backend, and through the tools.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{ArrayD, Axis};
use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::components::{CONTROL, CONTROL_MASK, STEP_CONTROL};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::{AdapterFormat, write_adapter};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::bad_input::refuse;
use crate::support::{Built, Case, assert_close, f32s, fixtures, header, run, ways};
use crate::swaps::adapter;
use crate::tools::{Scratch, args, command, output, run_ok};
use crate::wan_pipelines::{arguments, difference, engines, runs, tensor};

/// As for the transformers without controls, whose f32 noise floor against f64 is up to 6.4e-6.
const TOLERANCE: f64 = 1e-5;
const FAMILIES: [(&str, &str); 3] =
    [("wan", "wan/transformer/t2v"), ("rotary", "transformer/rotary_t2v"), ("sincos", "transformer/sincos_t2v")];

fn file(family: &str) -> PathBuf {
    fixtures().join("control").join(family).join("control.safetensors")
}

fn build(model: &str, controls: &Path) -> Built {
    let options = ExportOptions { controls: Some(controls.to_owned()), ..ExportOptions::default() };
    let compile = CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() };
    Built::with(&fixtures().join(model), &options, &compile)
}

fn sample(built: &Built, graph: &str, inputs: &NamedTensors) -> ArrayD<f32> {
    let mut session = built.session("transformer", graph, Default::default());
    f32s(&run(&mut *session, inputs)["sample"])
}

#[test]
fn controlled_step_equals_its_definition_on_every_backend() {
    for (family, model) in FAMILIES {
        let built = build(model, &file(family));
        let case = Case::read(&fixtures().join("control").join(family).join("case.safetensors"));
        for options in ways() {
            let mut engine = OpenEngine::open(built.engine("transformer"), &options).unwrap();
            let mut session = engine.session(STEP_CONTROL).unwrap();
            let found = f32s(&run(&mut *session, &case.inputs)["sample"]);
            let what = format!("{family} {:?} {:?}", options.backend, options.weights);
            assert_close(&what, &found, &case.output("sample"), TOLERANCE);
        }
    }
}

#[test]
fn without_controls_the_step_is_the_same_file_and_masked_controls_change_nothing() {
    for (family, model) in FAMILIES {
        let (built, plain) = (build(model, &file(family)), Built::plain(&fixtures().join(model)));
        let bytes = |built: &Built| std::fs::read(built.bundle().join("transformer/step.onnx")).unwrap();
        assert!(bytes(&built) == bytes(&plain), "{family}");
        assert!(!plain.bundle().join(format!("transformer/{STEP_CONTROL}.onnx")).exists());

        let mut inputs = Case::read(&fixtures().join("control").join(family).join("case.safetensors")).inputs;
        let mask = f32s(&inputs[CONTROL_MASK]);
        inputs.insert(CONTROL_MASK.to_owned(), Tensor::F32(ArrayD::zeros(mask.raw_dim())));
        let masked = sample(&built, STEP_CONTROL, &inputs);
        let controls = f32s(&inputs.shift_remove(CONTROL).unwrap());
        inputs.shift_remove(CONTROL_MASK);
        let base = sample(&built, "step", &inputs);
        // The sums of the same terms, in another order.
        assert_close(family, &masked, &base, TOLERANCE);

        // On controls change it, each by itself.
        for at in 0..controls.shape()[1] {
            let mut mask = ArrayD::zeros(controls.raw_dim());
            mask.index_axis_mut(Axis(1), at).fill(1.0);
            let mut with = inputs.clone();
            with.insert(CONTROL.to_owned(), Tensor::F32(ArrayD::ones(controls.raw_dim())));
            with.insert(CONTROL_MASK.to_owned(), Tensor::F32(mask));
            let moved = sample(&built, STEP_CONTROL, &with) - &base;
            assert!(moved.iter().any(|x| x.abs() > 1e-3), "{family}, control {at}");
        }
    }
}

/// A control's number belongs to its name: with rows, names and numbers in another order nothing changes.
#[test]
fn order_of_controls_does_not_matter() {
    let scratch = Scratch::new();
    for (family, model) in FAMILIES {
        let reverse = |array: ArrayD<f32>, axis: usize| {
            let mut array = array;
            array.invert_axis(Axis(axis));
            Tensor::F32(array.as_standard_layout().to_owned())
        };
        let turned: NamedTensors = read_tensors(file(family))
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name, reverse(tensor.into_f32().unwrap(), 0)))
            .collect();
        let mut metadata: IndexMap<String, String> = header(&file(family)).into_iter().collect();
        metadata["control.names"] = r#"["light", "object", "camera"]"#.to_owned();
        let path = scratch.path("turned.safetensors");
        write_tensors(&path, &turned, &metadata).unwrap();
        let built = build(model, &path);
        let case = Case::read(&fixtures().join("control").join(family).join("case.safetensors"));
        let mut inputs = case.inputs.clone();
        let given = sample(&built, STEP_CONTROL, &inputs);
        for name in [CONTROL, CONTROL_MASK] {
            let values = f32s(&inputs[name]);
            inputs.insert(name.to_owned(), reverse(values, 1));
        }
        assert_close(family, &sample(&built, STEP_CONTROL, &inputs), &case.output("sample"), TOLERANCE);
        assert!((given - case.output("sample")).iter().any(|x| x.abs() > 1e-3), "numbers of other controls");
    }
}

/// The model with two transformers, and controls for both.
struct Lab {
    model: Scratch,
}

impl Lab {
    fn new() -> Self {
        let model = engines(&runs()["experts"]);
        for folder in ["bundle", "engines"] {
            std::fs::remove_dir_all(model.path(folder)).unwrap();
        }
        run_ok("export", args![model.path("model"), "-o", model.path("bundle"), "--control", Self::controls(&model)]);
        let lora = ["--lora-rank", "4", "--fuse-modes", "fuse,branch"];
        run_ok("compile", args![model.path("bundle"), "-o", model.path("engines"), lora[0], lora[1], lora[2], lora[3]]);
        Self { model }
    }

    /// Two controls, as wide as the transformers.
    fn controls(model: &Scratch) -> PathBuf {
        let config = std::fs::read(model.path("model/transformer/config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let number = |key: &str| config[key].as_u64().unwrap() as usize;
        let width = number("num_attention_heads") * number("attention_head_dim");
        let mut next = crate::swaps::numbers(77);
        let mut matrix = || Tensor::F32(ArrayD::from_shape_simple_fn(vec![2, width], || 4.0 * next()));
        let tensors: NamedTensors =
            [("control.embed_scale".to_owned(), matrix()), ("control.embed_bias".to_owned(), matrix())].into();
        let metadata = IndexMap::from([("control.names".to_owned(), r#"["camera", "object"]"#.to_owned())]);
        let path = model.path("control.safetensors");
        write_tensors(&path, &tensors, &metadata).unwrap();
        path
    }

    fn run(&self, more: &[OsString]) -> (i32, String) {
        let found = self.model.path("out.safetensors");
        let flags = [&arguments(&runs()["experts"], &self.model)[..], more, args!["--outputs", &found]].concat();
        let run = output(command("run", &flags));
        (run.code, run.stderr)
    }

    fn latents(&self, more: &[OsString]) -> ndarray::Array5<f32> {
        let (code, said) = self.run(more);
        assert_eq!(code, 0, "{said}");
        tensor(&self.model.path("out.safetensors"), "latents")
    }
}

#[test]
fn controls_steer_videos_by_name_with_adapters_fused_and_beside() {
    let lab = Lab::new();
    let base = lab.latents(&[]);
    let half = lab.latents(args!["--control", "camera=0.5"]);
    let more = lab.latents(args!["--control", "camera=1.5"]);
    let both = lab.latents(args!["--control", "object=-1", "--control", "camera=0.5"]);
    assert!(difference(&half, &base) > 1e-3 && difference(&half, &more) > 1e-3 && difference(&half, &both) > 1e-3);
    assert_eq!(both, lab.latents(args!["--control", "camera=0.5", "--control", "object=-1"]));

    let engine = v2l_runtime::engine::Engine::open(lab.model.path("engines/transformer.engine")).unwrap();
    let slots = engine.manifest().slots.iter().filter(|slot| slot.name.starts_with("blocks."));
    let lora = lab.model.path("effect_HighNoise.safetensors");
    write_adapter(&lora, &adapter("effect", slots, 3, 5), AdapterFormat::Comfy).unwrap();
    let with = |mode: &str| lab.latents(args!["--control", "camera=0.5", "--lora", &lora, "--fuse-mode", mode]);
    let (fused, beside) = (with("fuse"), with("branch"));
    let away = difference(&fused, &beside);
    assert!(away <= 1e-4, "{away}");
    // The adapter changes the keys and values of controls, too; here it is enough that it counts.
    assert!(difference(&fused, &half) > 1e-3);

    for (flags, words) in [
        (args!["--control", "zoom=1"].to_vec(), "a control is `zoom`, expected one of camera, object"),
        (args!["--control", "camera"].to_vec(), "--control camera: expected NAME=VALUE"),
        (args!["--control", "camera=inf"].to_vec(), "a control is camera=inf, expected a finite number"),
        (args!["--control", "camera=1", "--control", "camera=2"].to_vec(), "`camera` given twice"),
    ] {
        let (code, said) = lab.run(&flags);
        assert!(code == 2 && said.contains(words), "{code}: {said}");
    }
    let plain = engines(&runs()["experts"]);
    let flags =
        [&arguments(&runs()["experts"], &plain)[..], args!["--control", "camera=1", "--outputs", plain.path("x")]];
    let refused = refuse(&plain, command("run", &flags.concat()), 2);
    assert!(refused.contains("exported without"), "{refused}");
}

#[test]
fn files_of_controls_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let model = crate::random_weights::made(&fixtures().join("wan/transformer/t2v"));
    let good = read_tensors(file("wan")).unwrap();
    let names = |text: &str| IndexMap::from([("control.names".to_owned(), text.to_owned())]);
    let three = || names(r#"["a", "b", "c"]"#);
    let with = |name: &str, tensor: Tensor| {
        let mut tensors = good.clone();
        tensors.insert(name.to_owned(), tensor);
        tensors
    };
    let blocks = |text: &str| {
        let mut metadata = three();
        metadata.insert("control_blocks".to_owned(), text.to_owned());
        metadata
    };
    let floats = |shape: &[usize], value| Tensor::F32(ArrayD::from_elem(shape.to_vec(), value));
    let width = good["control.embed_scale"].shape()[1];
    let narrow: NamedTensors =
        ["control.embed_scale", "control.embed_bias"].map(|name| (name.to_owned(), floats(&[3, 8], 1.0))).into();
    let mut text = String::new();
    for (tensors, metadata, exit) in [
        (good.clone(), IndexMap::new(), 3),
        (good.clone(), names("camera"), 3),
        (good.clone(), names(r#"["a", "a", "b"]"#), 3),
        (good.clone(), names(r#"["a", "b=c", "d"]"#), 3),
        (good.clone(), names(r#"["a", "b"]"#), 3),
        (good.clone(), blocks("[1, 0]"), 3),
        (good.clone(), blocks("[0, 7]"), 4),
        (narrow, three(), 4),
        (with("control.embed_bias", floats(&[3, width], f32::NAN)), three(), 3),
        (with("control.logit_bias", Tensor::I64(ArrayD::zeros(vec![3]))), three(), 3),
        (with("control.gate", floats(&[3], 1.0)), three(), 3),
    ] {
        let path = scratch.path("control.safetensors");
        write_tensors(&path, &tensors, &metadata).unwrap();
        let flags = args![model.root(), "-o", scratch.path("bundle"), "--control", &path];
        text += &(refuse(&scratch, command("export", flags), exit) + "\n");
    }
    insta::assert_snapshot!(scratch.stable(&text).replace(&*model.root().to_string_lossy(), "[MODEL]"));
    let vae = crate::random_weights::made(&fixtures().join("wan/vae/2_1"));
    let flags = args![vae.root(), "-o", scratch.path("bundle"), "--control", file("wan")];
    let refused = refuse(&scratch, command("export", flags), 3);
    assert!(refused.contains("there is no transformer that takes them"), "{refused}");
}
