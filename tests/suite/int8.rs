//! `v2l-compile --int8`: accuracy, size, adapters beside, targets.

use serde_json::Value as Json;
use v2l_calibration::compare;

use crate::plans::Planted;
use crate::tools::{args, command, output};

const BRANCHES: &[&str] = &["--int8=32", "--lora-rank", "4", "--backend", "openvino"];

const INT8_ROWS: &[&str] = &["--backend", "openvino", "--openvino-precision", "int8"];

fn of<'a>(events: &'a [Json], name: &str) -> Vec<&'a Json> {
    events.iter().filter(|event| event["event"] == name).collect()
}

fn size(planted: &Planted, engine: &str) -> u64 {
    std::fs::metadata(planted.path(engine)).unwrap().len()
}

#[test]
fn eight_bits_are_close_and_take_adapters_in_branches() {
    let planted = Planted::new();
    planted.compiled("fp32.engine", &["--precision", "fp32"]);
    let events = planted.compiled("int8.engine", BRANCHES);
    let int8 = of(&events, "int8");
    assert_eq!((&int8[0]["matrices"], &int8[0]["left_out"], &int8[0]["block"]), (&6.into(), &0.into(), &32.into()));
    planted.compiled("again.engine", BRANCHES);
    assert_eq!(
        std::fs::read(planted.path("int8.engine")).unwrap(),
        std::fs::read(planted.path("again.engine")).unwrap()
    );

    let (base, steered) = (planted.run("fp32.engine", None, &[]), planted.run("fp32.engine", Some(0.01), &[]));
    assert!(!compare(&steered, &base).unwrap().within(0.05), "the adapter does something");
    for (what, found, expected) in [
        ("base", planted.run("int8.engine", None, &[]), &base),
        ("branches", planted.run("int8.engine", Some(0.01), &["--fuse-mode", "branch"]), &steered),
        ("auto", planted.run("int8.engine", Some(0.01), &[]), &steered),
        ("OpenVINO", planted.run("int8.engine", Some(0.01), &["--backend", "openvino"]), &steered),
        ("rows too", planted.run("int8.engine", Some(0.01), INT8_ROWS), &steered),
    ] {
        let error = compare(&found, expected).unwrap();
        // Each matrix errs by about 2^-8 of its blocks' largest value; six follow each other.
        assert!(error.within(0.02) && error.relative_l2 > 1e-4, "{what}: {error}");
    }

    let lora = format!("{}=1", planted.text("adapter.safetensors"));
    let inputs = planted.path("inputs.safetensors");
    let engine = planted.path("int8.engine");
    let outputs = planted.path("refused.safetensors");
    let request =
        args!["--engine", engine, "--inputs", inputs, "--outputs", &outputs, "--lora", lora, "--fuse-mode", "fuse"];
    for backend in ["ort", "openvino"] {
        let fuse = output(command("run", &[request, args!["--backend", backend]].concat()));
        assert!(!outputs.exists());
        assert_eq!(fuse.code, 5, "{}", fuse.stderr);
        assert!(fuse.stderr.contains("8 bits") && fuse.stderr.contains("--fuse-mode branch"), "{}", fuse.stderr);
    }
}

#[test]
fn targets_leave_out_the_blocks_that_cost_most() {
    let planted = Planted::new();
    let measured = |target: f64, engine: &str| {
        let target = target.to_string();
        let args = ["--int8=32", "--calibration", "@inputs.safetensors", "--inputs", "@inputs.safetensors"];
        let events = planted.compiled(engine, &[&args[..], &["--accuracy-target", &target]].concat());
        let rows: Vec<Json> = of(&events, "sensitivity").into_iter().cloned().collect();
        let checks = of(&events, "check").len();
        assert!(checks > 0 && rows.len() == 3, "{checks} checks, {} blocks", rows.len());
        (rows, of(&events, "int8").first().map(|event| event["left_out"].as_u64().unwrap()))
    };
    let (rows, left_out) = measured(0.5, "loose.engine");
    assert_eq!(left_out, Some(0));
    assert!(rows.iter().all(|row| row["kept"] == true && row["saved_bytes"].as_u64() > Some(0)));
    let errors: Vec<f64> = rows.iter().map(|row| row["error"].as_f64().unwrap()).collect();
    let largest = errors.iter().copied().fold(0.0, f64::max);

    // All blocks together err more than the worst one; without it they do not reach it.
    let (rows, left_out) = measured(largest * 0.99, "tight.engine");
    assert!(left_out > Some(0), "{left_out:?}");
    let worst = rows.iter().find(|row| row["error"].as_f64() == Some(largest)).unwrap();
    assert_eq!(worst["kept"], false);
    assert!(rows.iter().any(|row| row["kept"] == true));
    assert!(size(&planted, "tight.engine") > size(&planted, "loose.engine"));
    let (base, tight) = (planted.compiled("fp32.engine", &[]), planted.run("tight.engine", None, &[]));
    assert!(!base.is_empty());
    let error = compare(&tight, &planted.run("fp32.engine", None, &[])).unwrap();
    assert!(error.within(largest * 0.99) && error.relative_l2 > 1e-5, "{error}");

    // Beyond reach: nothing stays in 8 bits.
    let (rows, left_out) = measured(1e-6, "none.engine");
    assert_eq!(left_out, Some(6));
    assert!(rows.iter().all(|row| row["kept"] == false));
}

#[test]
fn what_eight_bits_do_not_decide_is_refused_beside_them() {
    let planted = Planted::new();
    for (args, words) in [
        (&["--int8", "--precision", "mixed"][..], "--precision mixed"),
        (&["--int8", "--precision-plan", "@inputs.safetensors"], "--precision-plan"),
        (&["--int8", "--calibration", "@inputs.safetensors"], "--accuracy-target"),
        (&["--int8", "--precision", "fp16", "--save-precision-plan", "@plan.txt"], "--save-precision-plan"),
        (&["--int8=48"], "expected 32, 64, 128 or 256"),
    ] {
        planted.refused(args, 2, &[words]);
    }
}
