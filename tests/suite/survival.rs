//! `v2l-inspect --survival`: what is left of an adapter in the storage type.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use v2l_cli::heat_map::{NO_SLOT, NOT_CHANGED, colour};
use v2l_export::ExportOptions;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::engine::Engine;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat, ReadOptions, read_adapter, write_adapter};
use v2l_runtime::lora::fuse::{FuseReport, FuseTarget, fuse, survival};
use v2l_runtime::media::video::read_frames;
use v2l_runtime::tensor::Dtype;

use crate::cli::events;
use crate::support::{Built, factors_mut, fixtures};
use crate::swaps::adapter;
use crate::tools::{Run, Scratch, args, command, output, run_ok, sample, sample_model};

fn built(storage: Dtype) -> Built {
    Built::new(&fixtures().join("transformer/fun_inp"), &ExportOptions::default(), Some(storage))
}

/// An adapter whose every update has `relative` times the norm of its weight.
fn scaled(engine: &Engine, relative: f64) -> Adapter {
    let slots =
        engine.manifest().slots.iter().filter(|slot| slot.name.contains("blocks.1.") || slot.name == "proj_out");
    let mut adapter = adapter("scaled", slots, 3, 7);
    adapter.layers.retain(|_, update| update.rank() > 0);
    let found = survival(engine, &[(&adapter, 1.0)]).unwrap();
    for (slot, norm) in found.report.slots.iter().zip(&found.weight_norms) {
        factors_mut(&mut adapter.layers[&slot.slot]).alpha *= (relative * norm / slot.rounding.delta_norm()) as f32;
    }
    adapter
}

fn saved(scratch: &Scratch, name: &str, adapter: &Adapter) -> PathBuf {
    let path = scratch.path(name);
    write_adapter(&path, adapter, AdapterFormat::Comfy).unwrap();
    path
}

fn inspect(adapter: impl Into<std::ffi::OsString>, engine: &Path, more: &[&str]) -> Run {
    let mut args = args![adapter.into(), "--engine", engine, "--survival"].to_vec();
    args.extend(more.iter().map(Into::into));
    run_ok("inspect", &args)
}

/// Fields of every event of this name.
fn named(run: &Run, name: &str) -> Vec<Json> {
    events(&run.stdout).into_iter().filter(|(found, _)| found == name).map(|(_, event)| event).collect()
}

/// What the library says, written and read as the tool's output is.
fn expected(engine: &Engine, path: &Path, strength: f32) -> (FuseReport, Vec<Json>) {
    let adapter = read_adapter(path, &engine.manifest().slots, &ReadOptions::default()).unwrap().adapter;
    let report = fuse(engine, &[(&adapter, strength)], FuseTarget::Storage).unwrap().report;
    let read = |slot| serde_json::from_str(&json!(slot).to_string()).unwrap();
    let slots = report.slots.iter().chain([&report.overall()]).map(read).collect();
    (report, slots)
}

#[test]
fn survival_of_a_small_update_in_bf16_warns_and_that_of_a_large_one_does_not() {
    let (scratch, built) = (Scratch::new(), built(Dtype::Bf16));
    let engine = built.engine(TRANSFORMER);
    for (relative, warns) in [(1e-3, true), (0.5, false)] {
        let path = saved(&scratch, "lora.safetensors", &scaled(&engine, relative));
        let run = inspect(&path, &built.engines(), &["--json"]);
        let (report, expected) = expected(&engine, &path, 1.0);
        let found = [named(&run, "survival_slot"), named(&run, "survival_overall")].concat();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            for (key, value) in expected.as_object().unwrap() {
                assert_eq!(&found[key], value, "{key} of {}", expected["slot"]);
            }
            let of_weight = found["relative_norm"].as_f64().unwrap();
            assert!((of_weight / relative - 1.0).abs() < 1e-3, "{}: {of_weight:e}", found["slot"]);
        }
        let header = json!({ "event": "survival", "slots": report.slots.len(), "strength": 1.0, "storage": "bf16" });
        assert_eq!(named(&run, "survival"), [header]);
        let warnings = named(&run, "warning");
        assert_eq!(warnings.len(), usize::from(warns), "{}", expected.last().unwrap());
        assert_eq!(run.stderr.contains("warning: rounding to the storage type loses"), warns, "{}", run.stderr);
        assert_eq!(report.warning().is_some(), !warnings.is_empty());
    }
}

#[test]
fn survival_is_a_table_with_all_slots_together_last() {
    let (scratch, built) = (Scratch::new(), built(Dtype::Bf16));
    let engine = built.engine(TRANSFORMER);
    let mut small = scaled(&engine, 1e-3);
    small.layers.sort_keys();
    small.layers.truncate(3);
    let path = saved(&scratch, "lora.safetensors", &small);
    let run = inspect(format!("{}=0.5", path.display()), &built.engines().join("transformer.engine"), &[]);
    insta::assert_snapshot!(format!("{}\n{}", scratch.stable(&run.stdout), run.stderr));
}

#[test]
fn survival_in_f32_is_whole() {
    let (scratch, built) = (Scratch::new(), built(Dtype::F32));
    let path = saved(&scratch, "lora.safetensors", &scaled(&built.engine(TRANSFORMER), 1e-3));
    let run = inspect(&path, &built.engines(), &["--json"]);
    let overall = &named(&run, "survival_overall")[0];
    assert!((overall["survived"].as_f64().unwrap() - 1.0).abs() < 1e-3, "{overall}");
    assert!(named(&run, "warning").is_empty());
}

#[test]
fn heat_map_shows_every_slot_where_its_legend_says() {
    let (scratch, built) = (Scratch::new(), built(Dtype::Bf16));
    let engine = built.engine(TRANSFORMER);
    let path = saved(&scratch, "lora.safetensors", &scaled(&engine, 1e-3));
    let picture = scratch.path("map.png");
    let run = inspect(&path, &built.engines(), &["--json", "--heat-map", picture.to_str().unwrap()]);
    let (report, _) = expected(&engine, &path, 1.0);
    let legend = &named(&run, "heat_map")[0];
    let list = |key: &str| legend[key].as_array().unwrap().clone();
    let (rows, columns, cell) = (list("rows"), list("columns"), legend["cell"].as_u64().unwrap() as usize);
    assert_eq!(columns, [json!(null), json!(0), json!(1)]);
    let frames = read_frames(&picture, None).unwrap();
    assert_eq!((frames.width(), frames.height()), (columns.len() * cell, rows.len() * cell));
    let mut seen = 0;
    for (y, row) in rows.iter().enumerate() {
        for (x, column) in columns.iter().enumerate() {
            let row = row.as_str().unwrap();
            let name = match column.as_u64() {
                Some(block) => row.replace('*', &block.to_string()),
                None if row.contains('*') => String::new(),
                None => row.to_owned(),
            };
            let slot = engine.manifest().slot(&name).filter(|_| column.is_null() || row.contains('*'));
            seen += usize::from(slot.is_some());
            let changed = report.slots.iter().find(|slot| slot.slot == name);
            let expected = match (slot, changed) {
                (None, _) => NO_SLOT,
                (Some(_), None) => NOT_CHANGED,
                (Some(_), Some(slot)) => colour(slot.rounding.survived()),
            };
            let pixel = ((y * cell + cell / 2) * frames.width() + x * cell + cell / 2) * 3;
            assert_eq!(frames.data()[pixel..pixel + 3], expected, "{row} {column}");
        }
    }
    assert_eq!(seen, engine.manifest().slots.len());

    let text = inspect(&path, &built.engines(), &["--heat-map", picture.to_str().unwrap()]).stdout;
    assert!(text.contains("columns no block, 0, 1"), "{text}");
    assert!(text.contains("survived 0 % #440154, 25 % #3b528b, 50 % #21908c, 75 % #5dc863, 100 % #fde725;"), "{text}");
    let refused = output(command(
        "inspect",
        args![&path, "--engine", built.engines(), "--survival", "--heat-map", scratch.path("map.jpg")],
    ));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("expected a name that ends in .png"), "{}", refused.stderr);
    assert!(!scratch.path("map.jpg").exists());
}

#[test]
fn survival_of_predicted_tokens_needs_the_hypernetwork() {
    let (scratch, sample) = (Scratch::new(), sample());
    let predict = |format: &str| {
        let path = scratch.path(&format!("{format}.safetensors"));
        let (engines, reference) = (sample.engines(), sample_model().join("image.png"));
        run_ok(
            "run",
            args!["--engine", engines, "--reference", reference, "--save-lora", &path, "--lora-format", format],
        );
        path
    };
    let (light, expanded) = (predict("light"), predict("comfy"));
    let slots = |path: &Path| named(&inspect(path, &sample.engines(), &["--json"]), "survival_slot");
    assert_eq!(slots(&light).len(), 21);
    assert_eq!(slots(&light), slots(&expanded));
    let refused = output(command("inspect", args![&light, "--engine", sample.engine(TRANSFORMER), "--survival"]));
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("give the engine directory that holds it"), "{}", refused.stderr);
}
