//! LoFA against a second reading of its definition (`tests/reference/lofa.py`).

use std::path::{Path, PathBuf};
use std::process::Command;

use ndarray::{ArrayD, Axis, concatenate};
use serde_json::json;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::predict::TEXT_HIDDEN;
use v2l_runtime::tensor::Tensor;

use crate::bad_input::{edit_json, refuse};
use crate::packages::{self, factors, given};
use crate::support::{Built, f32s, fixtures};
use crate::tools::{RawTensor, Scratch, args, command, run_ok, tamper};

const TOLERANCE: f64 = 1e-5;
/// Cases with the fixtures of their bases.
pub(crate) const CASES: [(&str, &str); 2] = [("wan", "wan/transformer/t2v"), ("two_by_two", "wan/transformer/i2v_2_2")];

pub(crate) fn case(name: &str) -> PathBuf {
    fixtures().join("lofa").join(name)
}

fn build(name: &str, change: impl FnOnce(&Path, &Path)) -> Built {
    let (_, base) = CASES.iter().find(|(case, _)| *case == name).unwrap();
    packages::build(&case(name), &fixtures().join(base), change)
}

fn far(what: &str, adapter: &Adapter) {
    let found = packages::distance(&case("wan"), adapter);
    assert!(found > 100.0 * TOLERANCE, "{what}: {found:e}");
}

#[test]
fn factors_are_those_of_the_definition_with_the_cache_cold_and_warm() {
    for (name, _) in CASES {
        let adapter = packages::check_kept(name, &build(name, |_, _| {}), &given(&case(name)));
        let found = packages::distance(&case(name), &adapter);
        assert!(found <= TOLERANCE, "{name}: {found:e}");
    }
}

#[test]
fn zeros_behind_the_prompt_take_part_whoever_gives_them() {
    let (built, mut tensors) = (build("wan", |_, _| {}), given(&case("wan")));
    let expected = factors(&built, &tensors);
    let hidden = f32s(&tensors[TEXT_HIDDEN]);
    let zeros = |rows: usize| ArrayD::zeros(vec![1, rows, hidden.shape()[2]]);
    let whole = concatenate![Axis(1), hidden, zeros(512 - hidden.shape()[1])];
    tensors.insert(TEXT_HIDDEN.to_owned(), Tensor::F32(whole));
    assert_eq!(factors(&built, &tensors), expected);
    tensors.insert(TEXT_HIDDEN.to_owned(), Tensor::F32(concatenate![Axis(1), hidden, zeros(1000)]));
    far("more zeros", &factors(&built, &tensors));
}

/// Turns a square matrix.
fn turn(tensor: &mut RawTensor) {
    let side = tensor.shape[0];
    assert_eq!(tensor.shape, [side, side]);
    let old = tensor.data.clone();
    let size = old.len() / (side * side);
    for (at, element) in tensor.data.chunks_exact_mut(size).enumerate() {
        let from = (at % side * side + at / side) * size;
        element.copy_from_slice(&old[from..from + size]);
    }
}

#[test]
fn wrong_orders_change_the_factors_beyond_the_tolerance() {
    let tensors = given(&case("wan"));
    let changed = |what: &str, name: &str, change: &dyn Fn(&mut RawTensor)| {
        let built = build("wan", |package, _| {
            tamper(&package.join("model.safetensors"), |tensors| {
                for stage in ["stage1", "stage2"] {
                    change(tensors.get_mut(&format!("{stage}.{name}")).unwrap());
                }
            });
        });
        far(what, &factors(&built, &tensors));
    };
    let exchange = |a: usize, b: usize| {
        move |table: &mut RawTensor| {
            let width = table.data.len() / table.shape[0];
            (0..width).for_each(|i| table.data.swap(a * width + i, b * width + i));
        }
    };
    changed("depths numbered differently", "depth_embed.weight", &exchange(0, 1));
    changed("types in another order", "type_embed.weight", &exchange(0, 4));
    let built = build("wan", |_, base| {
        tamper(&base.join("diffusion_pytorch_model.safetensors"), |tensors| {
            tensors
                .iter_mut()
                .filter(|(name, _)| name.contains(".attn") && name.ends_with("to_q.weight"))
                .for_each(|(_, t)| turn(t));
        });
    });
    far("rows and columns swapped", &factors(&built, &tensors));
}

#[test]
fn effects_are_saved_and_fused_from_the_command_line() {
    let (scratch, built) = (Scratch::new(), build("wan", |_, _| {}));
    let saved = scratch.path("effect.safetensors");
    let cache = scratch.path("cache");
    run_ok(
        "run",
        args![
            "--engine",
            built.engines(),
            "--effect-embeds",
            case("wan").join("effect.safetensors"),
            "--save-lora",
            &saved,
            "--prediction-cache",
            cache
        ],
    );
    assert_eq!(read_tensors(&saved).unwrap().len(), 2 * 16);
    let said = run_ok("inspect", args![&saved, "--engine", built.engines()]).stdout;
    assert!(said.contains("16"), "{said}");
}

#[test]
fn predictors_that_do_not_fit_are_refused_with_what_they_lack() {
    let scratch = Scratch::new();
    let base = scratch.copy(&fixtures().join("wan/transformer/t2v"), "base");
    let package = scratch.copy(&case("wan"), "package");
    let export = |base: &Path| command("export", args![base, "-o", scratch.path("bundle"), "--predictor", &package]);
    let other = scratch.copy(&fixtures().join("wan/transformer/i2v_2_2"), "other");
    let message = refuse(&scratch, export(&other), 5);
    assert!(message.contains("32 → 32") && message.contains("reads 72 → 72; it is for another base"), "{message}");
    let config = package.join("config.json");
    for (key, value, expected) in [
        ("rank", json!(5), "`rank` is 5, and the tensors say 4"),
        ("inject", json!([0, 1]), "`inject` is [0, 1], and there are tensors for [0, 2]"),
        ("types", json!(["ffn.0", "k", "v", "o", "q", "k", "v", "o"]), "`types` has `ffn.0`"),
    ] {
        let before = std::fs::read(&config).unwrap();
        edit_json(&config, |config| config[key] = value.clone());
        let message = refuse(&scratch, export(&base), 5);
        assert!(message.contains(expected), "{message}");
        std::fs::write(&config, before).unwrap();
    }
    tamper(&package.join("model.safetensors"), |tensors| {
        tensors.insert("stage1.head_alpha.bias".to_owned(), RawTensor::f32s(&[1], 1.0));
    });
    let message = refuse(&scratch, export(&base), 3);
    assert!(message.contains("`stage1.head_alpha.bias`"), "{message}");
}

/// A folder as LoFA publishes it: two state dicts and a configuration.
#[test]
fn preview_checkpoints_are_converted_to_the_package() {
    let (scratch, folder) = (Scratch::new(), fixtures().join("lofa_preview"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("export/convert/predictor.py");
    let out = scratch.path("package");
    let mut python = Command::new("python3");
    let output = python.arg("-B").arg(script).arg(&folder).arg("-o").arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (found, expected) = (
        read_tensors(out.join("model.safetensors")).unwrap(),
        read_tensors(folder.join("expected.safetensors")).unwrap(),
    );
    assert_eq!(found.len(), expected.len());
    assert!(expected.iter().all(|(name, tensor)| found.get(name) == Some(tensor)));
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["model_type"], &config["inject"], &config["p"]), (&json!("lofa"), &json!([1]), &json!(2)));
    assert_eq!((&config["tau"], &config["types"][7]), (&json!(0.03), &json!("cross_attn.o")));
}
