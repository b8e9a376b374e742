//! Adapters of models with two transformers, from C++: those that `v2l-run --lora PATH@…` applies.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value as Json, json};
use v2l_export::{CompileOptions, ExportOptions};

use crate::recipes::copy;
use crate::support::{Language, engines, root, run, run_program, sample, scratch};

/// The small Wan of the pipelines' fixtures with two transformers, exported and compiled.
fn write_engines(folder: &Path) {
    let wan = root().join("tests/fixtures/wan");
    let runs: Json = serde_json::from_slice(&fs::read(wan.join("pipeline/runs.json")).unwrap()).unwrap();
    let described = &runs["experts"];
    let model = folder.join("model");
    let mut index = described["index"].clone();
    index["_class_name"] = "WanPipeline".into();
    index["tokenizer"] = json!(["transformers", "T5Tokenizer"]);
    index["scheduler"] = json!(["diffusers", described["scheduler"]["_class_name"]]);
    for (place, fixture) in described["networks"].as_object().unwrap() {
        index[place] = match &place[..] {
            "vae" => json!(["diffusers", "AutoencoderKLWan"]),
            "text_encoder" => json!(["transformers", "UMT5EncoderModel"]),
            _ => json!(["diffusers", "WanTransformer3DModel"]),
        };
        copy(&wan.join(fixture.as_str().unwrap()), &model.join(place));
        let _ = fs::remove_file(model.join(place).join("inputs.safetensors"));
    }
    copy(&wan.join("../tokenizer"), &model.join("tokenizer"));
    fs::create_dir_all(model.join("scheduler")).unwrap();
    fs::write(model.join("model_index.json"), index.to_string()).unwrap();
    fs::write(model.join("scheduler/scheduler_config.json"), described["scheduler"].to_string()).unwrap();
    v2l_export::export(&model, &folder.join("bundle"), &ExportOptions::default(), &mut |_| {}).unwrap();
    let options = CompileOptions::default();
    v2l_export::compile(&folder.join("bundle"), &folder.join("engines"), &options, &mut |_| {}).unwrap();
}

fn frames(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
}

#[test]
fn cpp_loads_adapters_for_one_or_both_transformers() {
    let folder = scratch().join("experts");
    write_engines(&folder);
    let adapter = folder.join("plain.safetensors");
    copy(
        &root().join("tests/fixtures/wan/pipeline/effect_high_noise.safetensors.recipe.json"),
        &folder.join("plain.safetensors.recipe.json"),
    );
    let program = Language::Cpp17.program(&root().join("tests/capi/programs/experts.cpp"));
    let printed = run_program(&program, &[&folder.join("engines"), &adapter, &folder]);
    let slots: BTreeMap<&str, u32> =
        printed.lines().map(|line| line.split_once(' ').unwrap()).map(|(name, n)| (name, n.parse().unwrap())).collect();
    assert_eq!(slots.len(), 4, "{printed}");
    assert_eq!((slots["high"], slots["auto"], slots["both"]), (slots["low"], 2 * slots["low"], 2 * slots["low"]));
    let mut seen = Vec::new();
    for name in ["high", "low", "both"] {
        let (lora, out) = (format!("{}@{name}=3", adapter.display()), folder.join(format!("{name}-by-command/")));
        let words = ["--prompt", "a cat", "--width", "32", "--height", "16", "--num-frames", "5", "--steps", "2"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_v2l-run"));
        command.arg("--engine").arg(folder.join("engines")).args(words).args(["--seed", "3", "--lora", &lora]);
        run(command.arg("-o").arg(format!("{}/", out.display())));
        assert_eq!(frames(&folder.join(name)), frames(&out), "{name}");
        seen.push(frames(&out));
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
    assert_eq!(frames(&folder.join("auto")), seen[2]);

    // A model with one transformer has no second.
    let lora = scratch().join("one.safetensors");
    let predicted = Command::new(env!("CARGO_BIN_EXE_v2l-run"))
        .arg("--engine")
        .arg(engines())
        .arg("--reference")
        .arg(sample().join("reference.mp4"))
        .arg("--save-lora")
        .arg(&lora)
        .output()
        .unwrap();
    assert!(predicted.status.success(), "{}", String::from_utf8_lossy(&predicted.stderr));
    let printed = run_program(&program, &[engines(), &lora]);
    assert!(printed.starts_with("auto ") && printed.contains("error 2: "), "{printed}");
    assert!(printed.contains("second"), "{printed}");
}
