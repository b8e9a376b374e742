//! `v2l-inspect`, and what graphs look like.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value as Json;

use crate::random_weights;
use crate::support::{Built, fixtures};
use crate::tools::{RawTensor, Scratch, args, command, output, run_ok, sample, sample_model, write};

/// What `v2l-inspect` prints, without folders, sizes of files and hashes.
#[track_caller]
fn inspect(scratch: &Scratch, folder: &Path, args: &[std::ffi::OsString]) -> String {
    let text = scratch.stable(&run_ok("inspect", args).stdout).replace(&*folder.to_string_lossy(), "[SAMPLE]");
    text.lines().map(|line| stable(line) + "\n").collect()
}

/// A line without hashes, and without the size of an engine file, which counts its graphs' bytes too.
fn stable(line: &str) -> String {
    let words: Vec<String> = line.split(' ').map(hashless).collect();
    let words = words.join(" ");
    let engine = line.contains(", storage ") || line.ends_with(".engine");
    match words.split_once(" bytes") {
        Some((before, after)) if engine => {
            let before = before.trim_end_matches(|c: char| c.is_ascii_digit());
            format!("{before}[SIZE] bytes{after}")
        }
        _ => words,
    }
}

fn hashless(word: &str) -> String {
    let digits = word.strip_prefix("blake3:").unwrap_or(word);
    let is_hash = digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash { word.replace(digits, "[HASH]") } else { word.to_owned() }
}

// Graphs.

/// Inputs, outputs, weights and operators of one graph of an exported model.
fn summary(built: &Built, graph: &str) -> String {
    v2l_export::summarize_onnx(&built.bundle().join(format!("{graph}.onnx")), false).unwrap().text
}

#[test]
fn graphs_of_a_transformer_are_as_recorded() {
    let built = Built::plain(&fixtures().join("transformer/rotary_t2v"));
    insta::assert_snapshot!(summary(&built, "transformer/step"));
}

#[test]
fn graphs_of_an_autoencoder_are_as_recorded() {
    let built = Built::plain(&fixtures().join("vae/tiny"));
    let (first, rest) = (summary(&built, "vae_encoder/first"), summary(&built, "vae_decoder/rest"));
    insta::assert_snapshot!(format!("{first}\n{rest}"));
}

#[test]
fn graphs_of_a_text_encoder_are_as_recorded() {
    let built = Built::plain(&fixtures().join("t5/gated_gelu"));
    insta::assert_snapshot!(summary(&built, "text_encoder/encode"));
}

#[test]
fn graphs_of_a_hypernetwork_are_as_recorded() {
    let made = random_weights::made(&fixtures().join("hypernetwork/subset"));
    let folder = made.root();
    let files = (folder.join("hypernetwork.safetensors"), folder.join("checkpoint-checkpoint-100.safetensors"));
    let options = v2l_export::ExportOptions {
        predictor: Some(files),
        iterations: Some(2),
        ..v2l_export::ExportOptions::default()
    };
    let built = Built::new(&folder.join("transformer"), &options, None);
    let (predict, expand) = (summary(&built, "hypernetwork/predict"), summary(&built, "hypernetwork/expand"));
    insta::assert_snapshot!(format!("{predict}\n{expand}"));
}

// The tool.

#[test]
fn inspect_of_a_bundle_is_as_recorded() {
    let (scratch, sample) = (Scratch::new(), sample());
    insta::assert_snapshot!(inspect(&scratch, &sample.bundle(), args![sample.bundle()]));
}

#[test]
fn inspect_of_an_engine_directory_is_as_recorded() {
    let (scratch, sample) = (Scratch::new(), sample());
    insta::assert_snapshot!(inspect(&scratch, &sample.engines(), args![sample.engines()]));
}

#[test]
fn inspect_of_an_engine_is_as_recorded() {
    let (scratch, sample) = (Scratch::new(), sample());
    let args = args![sample.engine("transformer"), "--verify-hashes"];
    insta::assert_snapshot!(inspect(&scratch, &sample.engines(), args));
}

#[test]
fn inspect_of_a_predictor_is_as_recorded() {
    let (scratch, sample) = (Scratch::new(), sample());
    insta::assert_snapshot!(inspect(&scratch, &sample.engines(), args![sample.engine("hypernetwork")]));
}

#[test]
fn inspect_of_an_onnx_model_is_as_recorded() {
    let (scratch, sample) = (Scratch::new(), sample());
    let path = sample.bundle().join("text_encoder/encode.onnx");
    insta::assert_snapshot!(inspect(&scratch, &sample.bundle(), args![&path]));
    let nodes = run_ok("inspect", args![&path, "--nodes"]).stdout;
    assert!(nodes.contains(" = Softmax("), "{nodes}");
}

#[test]
fn inspect_of_adapters_of_every_form_is_as_recorded() {
    let scratch = Scratch::new();
    let built = Built::plain(&fixtures().join("adapter/transformer"));
    let mut text = String::new();
    for form in ["kohya.safetensors", "comfy.safetensors", "comfy_no_alpha.safetensors", "diffusers", "peft"] {
        let args = args![fixtures().join("adapter").join(form), "--engine", built.engines()];
        text += &inspect(&scratch, &built.engines(), args);
    }
    insta::assert_snapshot!(text);
}

#[test]
fn inspect_accounts_for_every_key_of_an_adapter() {
    let built = Built::plain(&fixtures().join("adapter/transformer"));
    let adapter = fixtures().join("adapter/kohya.safetensors");
    let engine = built.engines().join("transformer.engine");
    let run = run_ok("inspect", args![&adapter, "--engine", engine, "--json"]);
    let mut keys = BTreeSet::new();
    for line in run.stdout.lines() {
        let event: Json = serde_json::from_str(line).unwrap();
        if event["event"] == "key" {
            assert_eq!(event["outcome"], "applied");
            keys.insert(event["key"].as_str().unwrap().to_owned());
        }
    }
    let bytes = std::fs::read(&adapter).unwrap();
    let names = safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    assert_eq!(keys, names);
}

#[test]
fn inspect_of_a_partial_adapter_says_what_becomes_of_every_key() {
    let (scratch, sample) = (Scratch::new(), sample());
    let path = scratch.path("lora.safetensors");
    let tensors = [
        ("diffusion_model.proj_out.lora_A.weight", [4, 32]),
        ("diffusion_model.proj_out.lora_B.weight", [64, 4]),
        ("diffusion_model.blocks.7.q.lora_A.weight", [4, 32]),
        ("diffusion_model.blocks.7.q.lora_B.weight", [32, 4]),
        ("step", [1, 1]),
    ];
    write(&path, &tensors.map(|(name, shape)| (name.to_owned(), RawTensor::f32s(&shape, 0.5))).into(), None);
    let refused = output(command("inspect", args![&path, "--engine", sample.engines()]));
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    let allowed = inspect(&scratch, &sample.engines(), args![&path, "--engine", sample.engines(), "--allow-partial"]);
    insta::assert_snapshot!(format!(
        "{}\n{}\n\n{allowed}",
        scratch.stable(&refused.stdout),
        scratch.stable(&refused.stderr)
    ));
}

#[test]
fn inspect_refuses_updates_of_other_kinds_by_name() {
    let (scratch, sample) = (Scratch::new(), sample());
    let module = "diffusion_model.transformer_blocks.0.attn1.to_q";
    let low_rank = [("lora_A.weight", vec![2, 32]), ("lora_B.weight", vec![32, 2])];
    for (with_low_rank, part, shape, kind) in [
        (true, "dora_scale", vec![32, 1], "a DoRA magnitude"),
        (true, "lora_magnitude_vector", vec![32], "a DoRA magnitude"),
        (true, "set_weight", vec![32, 32], "a full weight"),
        (true, "lora_A.bias", vec![2], "an update of a bias"),
        (true, "lora_mid.weight", vec![2, 2, 1, 1], "a Tucker (LoCon) factor"),
        (false, "w_norm", vec![32], "a full weight of a norm"),
        (false, "hada_w1_a", vec![32, 2], "a LoHa factor"),
        (false, "lokr_w1", vec![4, 4], "a LoKr factor"),
        (false, "oft_blocks", vec![4, 8, 8], "an OFT factor"),
        (false, "vera_lambda_b", vec![32], "a VeRA vector"),
    ] {
        let path = scratch.path("lora.safetensors");
        let parts =
            low_rank.iter().filter(|_| with_low_rank).map(|(part, shape)| (*part, shape)).chain([(part, &shape)]);
        let tensors = parts.map(|(part, shape)| (format!("{module}.{part}"), RawTensor::f32s(shape, 0.5)));
        write(&path, &tensors.collect(), None);
        for extra in [&[][..], &["--allow-partial".into()][..]] {
            let args = [args![&path, "--engine", sample.engines()], extra].concat();
            let refused = output(command("inspect", &args));
            assert_eq!(refused.code, 5, "{part}: {}", refused.stderr);
            assert!(refused.stderr.contains(&format!("{module}.{part}` is {kind}")), "{part}: {}", refused.stderr);
        }
    }
}

#[test]
fn inspect_of_predicted_adapters_is_as_recorded() {
    let (scratch, sample) = (Scratch::new(), sample());
    let mut text = String::new();
    for format in ["light", "light-full", "comfy"] {
        let path = scratch.path(&format!("{format}.safetensors"));
        let reference = sample_model().join("image.png");
        run_ok(
            "run",
            args![
                "--engine",
                sample.engines(),
                "--reference",
                reference,
                "--save-lora",
                &path,
                "--lora-format",
                format
            ],
        );
        text += &inspect(&scratch, &sample.engines(), args![&path, "--engine", sample.engines()]);
    }
    insta::assert_snapshot!(text);
}

#[test]
fn inspect_of_a_checkpoint_is_as_recorded() {
    let scratch = Scratch::new();
    let model = scratch.copy(sample_model(), "model");
    let path = model.join("checkpoint-checkpoint-100.safetensors");
    insta::assert_snapshot!(inspect(&scratch, &model, args![path]));
}

#[test]
fn inspect_refuses_flags_for_another_kind_of_file() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engine = sample.engine("transformer");
    let checkpoint = scratch.copy(sample_model(), "model").join("hypernetwork.safetensors");
    let cases = [args![&engine, "--engine", &engine], args![&checkpoint, "--verify-hashes"], args![scratch.root()]];
    let mut text = String::new();
    for case in cases {
        let run = output(command("inspect", case));
        assert_eq!(run.code, 2, "{}", run.stderr);
        text += &(scratch.stable(&run.stderr) + "\n");
    }
    insta::assert_snapshot!(text.replace(&*sample.engines().to_string_lossy(), "[SAMPLE]"));
}
