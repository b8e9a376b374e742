//! Fused weights kept on disk: the same bits as a fuse, no private memory, damage made good, bounded, shared by processes.

use std::fs::FileTimes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ndarray::ArrayD;
use v2l_export::CompileOptions;
use v2l_export::targets::OpenVino;
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::engine::Engine;
use v2l_runtime::io::weights::write_tensors;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat, LowRank, write_adapter};
use v2l_runtime::lora::fuse::{FuseOptions, FuseTarget, FusedCache, fuse, fuse_kept};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::Dtype;

use crate::support::{Built, Case, cases, f32s, factors_mut, fixtures, open_with, openvino, run, stack};
use crate::swaps::adapter;
use crate::tools::{Scratch, args, run_ok};

struct Lab {
    scratch: Scratch,
    built: Built,
    a: Adapter,
    b: Adapter,
}

impl Lab {
    fn new() -> Self {
        let built = Built::new(&fixtures().join("transformer/rotary_t2v"), &Default::default(), Some(Dtype::Bf16));
        let engine = built.engine(TRANSFORMER);
        let made = |name: &str, seed| adapter(name, engine.manifest().slots.iter(), 3, seed);
        Self { scratch: Scratch::new(), a: made("a", 51), b: made("b", 52), built }
    }

    fn cache(&self, bytes: u64) -> FusedCache {
        FusedCache { folder: self.scratch.path("fused"), bytes }
    }

    fn entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.scratch.path("fused")).into_iter().flatten();
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        entries
    }

    /// Whether the weights were kept; they are always those of a fuse.
    fn fused(&self, adapters: &[(&Adapter, f32)], target: FuseTarget, cache: &FusedCache) -> Option<bool> {
        let engine = self.built.engine(TRANSFORMER);
        let expected = fuse(&engine, adapters, target).unwrap();
        let found = fuse_kept(&engine, adapters, &FuseOptions::new(target), cache).unwrap();
        assert!(found.weights == expected.weights, "other bits than a fuse's");
        assert_eq!(found.report.slots, expected.report.slots);
        assert_eq!(found.report.not_kept, None);
        found.report.kept
    }
}

#[test]
fn kept_weights_are_those_of_a_fuse_and_belong_to_one_base_stack_strength_and_type() {
    let lab = Lab::new();
    let cache = lab.cache(1 << 30);
    let (a, b) = (&lab.a, &lab.b);
    let stacks: [&[(&Adapter, f32)]; 5] =
        [&[(a, 1.0)], &[(a, 0.5)], &[(b, 1.0)], &[(a, 1.0), (b, 1.0)], &[(a, -1.0), (b, 0.25)]];
    for kept in [false, true] {
        for target in [FuseTarget::Storage, FuseTarget::F32] {
            for stack in stacks {
                assert_eq!(lab.fused(stack, target, &cache), Some(kept), "{target:?}");
            }
        }
    }
    assert_eq!(lab.entries().len(), 10);
    // Adapters are added in the order of their names: the order given is no difference.
    assert_eq!(lab.fused(&[(b, 1.0), (a, 1.0)], FuseTarget::F32, &cache), Some(true));
    // Another base, of the same layers.
    let other = Built::plain(&fixtures().join("transformer/rotary_t2v"));
    let options = FuseOptions::new(FuseTarget::F32);
    let found = fuse_kept(&other.engine(TRANSFORMER), &[(a, 1.0)], &options, &cache).unwrap();
    assert_eq!(found.report.kept, Some(false));
    // Nothing to fuse is nothing to keep.
    let found = fuse_kept(&other.engine(TRANSFORMER), &[], &options, &cache).unwrap();
    assert_eq!(found.report.kept, None);
}

#[test]
fn fused_weights_are_kept_on_openvino_too_and_onnx_runtime_finds_them() {
    let lab = Lab::new();
    let folder = fixtures().join("transformer/rotary_t2v");
    let compile =
        CompileOptions { storage: Some(Dtype::Bf16), target: Arc::new(OpenVino), ..CompileOptions::default() };
    let built = Built::with(&folder, &Default::default(), &compile);
    let (engine, inputs) = (built.engine(TRANSFORMER), Case::read(&cases(&folder)[0]).inputs);
    let cache = lab.cache(1 << 30);
    let open = |fused_cache| {
        let options = OpenOptions { fused_cache, ..openvino() };
        open_with(Arc::clone(&engine), &options, &[(&lab.a, 0.5)])
    };
    let expected = run(&mut *open(None).session("step").unwrap(), &inputs);
    for kept in [false, true] {
        let mut opened = open(Some(cache.clone()));
        assert_eq!(opened.report().fused.kept, Some(kept));
        assert_eq!(opened.report().private_bytes == 0, kept, "what is kept lies in a map");
        assert_eq!(run(&mut *opened.session("step").unwrap(), &inputs), expected);
        opened.set_adapters(&[], std::iter::empty(), None).unwrap();
        assert_ne!(run(&mut *opened.session("step").unwrap(), &inputs), expected);
    }
    assert_eq!(lab.entries().len(), 1);
    let found = fuse_kept(&engine, &[(&lab.a, 0.5)], &FuseOptions::new(FuseTarget::Storage), &cache).unwrap();
    assert_eq!(found.report.kept, Some(true));
}

#[test]
fn damaged_entries_are_made_again() {
    let lab = Lab::new();
    let cache = lab.cache(1 << 30);
    let stack = [(&lab.a, 1.0)];
    assert_eq!(lab.fused(&stack, FuseTarget::Storage, &cache), Some(false));
    let entry = lab.entries().remove(0);
    let good = std::fs::read(&entry).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    assert_eq!(lab.fused(&[(&lab.b, 1.0)], FuseTarget::Storage, &cache), Some(false));
    let other = lab.entries().into_iter().find(|path| *path != entry).unwrap();
    let of_others = std::fs::read(&other).unwrap();
    let length = good.len();
    for (what, damaged) in [
        ("hash of the head", flipped(3)),
        ("length", flipped(33)),
        ("head", flipped(60)),
        ("first weight", flipped(length / 2)),
        ("last weight", flipped(length - 65)),
        ("cut", good[..length / 2].to_vec()),
        ("cut in the head", good[..50].to_vec()),
        ("empty", Vec::new()),
        ("another entry", of_others),
    ] {
        // A new file, as a copy over the network is: what lies in a map must not change under it.
        std::fs::remove_file(&entry).unwrap();
        std::fs::write(lab.scratch.path("damaged"), damaged).unwrap();
        std::fs::rename(lab.scratch.path("damaged"), &entry).unwrap();
        assert_eq!(lab.fused(&stack, FuseTarget::Storage, &cache), Some(false), "{what}");
        assert_eq!(lab.fused(&stack, FuseTarget::Storage, &cache), Some(true), "{what}");
        assert!(std::fs::read(&entry).unwrap() == good, "equal results give equal files");
    }
}

#[test]
fn folder_keeps_its_limit_and_what_was_used_last() {
    let lab = Lab::new();
    let (a, target) = (&lab.a, FuseTarget::Storage);
    assert_eq!(lab.fused(&[(a, 1.0)], target, &lab.cache(1 << 30)), Some(false));
    let first = lab.entries().remove(0);
    let size = std::fs::metadata(&first).unwrap().len();
    let cache = lab.cache(2 * size + size / 2);
    let age = |path: &Path, seconds| {
        let file = std::fs::File::open(path).unwrap();
        let then = SystemTime::now() - Duration::from_secs(seconds);
        file.set_times(FileTimes::new().set_accessed(then)).unwrap();
    };
    let foreign = lab.scratch.write("fused/mine.fused", vec![0; 3 * size as usize]);
    age(&first, 100);
    assert_eq!(lab.fused(&[(a, 2.0)], target, &cache), Some(false));
    let second = lab.entries().into_iter().find(|path| *path != first && *path != foreign).unwrap();
    age(&second, 50);
    assert_eq!(lab.fused(&[(a, 1.0)], target, &cache), Some(true), "used now");
    assert_eq!(lab.fused(&[(a, 3.0)], target, &cache), Some(false));
    assert!(first.exists() && !second.exists() && foreign.exists());
    // One that is larger than the limit is not kept, and not an error.
    let small = lab.cache(size / 2);
    assert_eq!(lab.fused(&[(a, 4.0)], target, &small), Some(false));
    assert_eq!(lab.fused(&[(a, 4.0)], target, &small), Some(false));
}

#[test]
fn folder_that_cannot_be_written_to_is_said_and_the_weights_are_fused() {
    let lab = Lab::new();
    let file = lab.scratch.write("file", b"no folder");
    let cache = FusedCache { folder: file.join("fused"), bytes: 1 << 30 };
    let engine = lab.built.engine(TRANSFORMER);
    let found = fuse_kept(&engine, &[(&lab.a, 1.0)], &FuseOptions::new(FuseTarget::F32), &cache).unwrap();
    assert!(found.weights == fuse(&engine, &[(&lab.a, 1.0)], FuseTarget::F32).unwrap().weights);
    let reason = found.report.not_kept.unwrap();
    assert!(reason.contains("file"), "{reason}");
}

#[cfg(unix)]
#[test]
fn entry_that_others_could_have_put_there_is_passed_over_with_a_word_and_made_again() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let lab = Lab::new();
    let cache = lab.cache(1 << 30);
    let (engine, stack) = (lab.built.engine(TRANSFORMER), [(&lab.a, 1.0)]);
    assert_eq!(lab.fused(&stack, FuseTarget::Storage, &cache), Some(false));
    let entry = lab.entries().remove(0);
    let fused = || fuse_kept(&engine, &stack, &FuseOptions::new(FuseTarget::Storage), &cache).unwrap();
    let elsewhere = lab.scratch.path("elsewhere");
    std::fs::copy(&entry, &elsewhere).unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let pipe = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let link = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        symlink(&elsewhere, path).unwrap();
    };
    let open = |path: &Path| mode(path, 0o666);
    type Put<'a> = &'a dyn Fn(&Path);
    let cases = [
        ("a pipe", &pipe as Put<'_>, "a pipe"),
        ("a link", &link, "a link"),
        ("a file that others may write to", &open, "others may write to it"),
    ];
    for (what, put, reason) in cases {
        put(&entry);
        let found = fused();
        let said = found.report.passed_over.unwrap_or_default();
        assert!(said.contains(reason) && found.report.not_kept.is_none(), "{what}: {said}");
        assert_eq!(found.report.kept, Some(false), "{what}");
        assert_eq!(lab.fused(&stack, FuseTarget::Storage, &cache), Some(true), "{what}: made again");
    }
    assert!(std::fs::metadata(&elsewhere).unwrap().is_file(), "what a link led to stays");
    // Nothing is read from, or kept in, a folder that others may write to.
    mode(&cache.folder, 0o777);
    let found = fused();
    assert_eq!(found.report.kept, Some(false));
    let said = found.report.not_kept.unwrap_or_default();
    assert!(said.contains("others may write to this folder"), "{said}");
    mode(&cache.folder, 0o755);
    assert_eq!(lab.fused(&stack, FuseTarget::Storage, &cache), Some(true));
}

#[test]
fn adapters_that_change_nothing_are_said_and_nothing_survives_of_them() {
    let lab = Lab::new();
    let engine = lab.built.engine(TRANSFORMER);
    let nothing = |change: fn(&mut LowRank)| {
        let mut adapter = lab.a.clone();
        adapter.layers.values_mut().for_each(|update| change(factors_mut(update)));
        adapter
    };
    let idle =
        [nothing(|layer| layer.alpha = 0.0), nothing(|layer| layer.alpha = 1e-45), nothing(|layer| layer.up.fill(0.0))];
    for adapter in &idle {
        let report = fuse(&engine, &[(adapter, 1.0)], FuseTarget::Storage).unwrap().report;
        let said = report.idle().unwrap();
        let slots = report.slots.len();
        assert!(said.contains(&format!("change nothing in {slots} of {slots} slots")), "{said}");
        assert!(serde_json::to_value(&report).unwrap()["overall"]["survived"].is_null());
    }
    let report = fuse(&engine, &[(&lab.a, 1.0)], FuseTarget::Storage).unwrap().report;
    assert_eq!(report.idle(), None);
}

#[test]
fn threads_and_processes_share_a_folder() {
    let lab = Lab::new();
    let cache = lab.cache(1 << 30);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (lab, cache) = (&lab, &cache);
            scope.spawn(move || {
                for round in 0..6 {
                    let strength = [0.5, 1.0, 2.0][(worker + round) % 3];
                    lab.fused(&[(&lab.a, strength)], FuseTarget::Storage, cache);
                }
            });
        }
    });
    assert_eq!(lab.entries().len(), 3);
}

/// Sessions over kept weights compute what sessions over fused ones do, and hold no private copy of them.
#[test]
fn sessions_over_kept_weights_hold_no_private_memory_and_swap_back() {
    let lab = Lab::new();
    let case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    let engine: Arc<Engine> = lab.built.engine(TRANSFORMER);
    let options = |cached: bool| OpenOptions {
        weights: OrtWeights::Stored,
        fused_cache: cached.then(|| lab.cache(1 << 30)),
        ..OpenOptions::default()
    };
    let sample = |engine: &mut OrtEngine| -> ArrayD<f32> {
        f32s(&run(&mut engine.session("step").unwrap(), &case.inputs)["sample"])
    };
    let adapters = stack(&[(&lab.a, 1.0)]);
    let mut plain = OrtEngine::open(Arc::clone(&engine), &options(false)).unwrap();
    let base = sample(&mut plain);
    plain.set_adapters(&adapters, None).unwrap();
    let (expected, private) = (sample(&mut plain), plain.report().private_bytes);
    assert!(private > 0);
    for kept in [false, true] {
        let mut cached = OrtEngine::open(Arc::clone(&engine), &options(true)).unwrap();
        let before = cached.report().private_bytes;
        let state = cached.set_adapters(&adapters, None).unwrap();
        assert_eq!(cached.report().fused.kept, Some(kept));
        assert_eq!(cached.report().private_bytes, if kept { before } else { private });
        assert_eq!(sample(&mut cached), expected);
        cached.restore(state);
        assert_eq!(sample(&mut cached), base);
        assert_eq!(cached.report().private_bytes, before);
    }
}

#[test]
fn command_line_keeps_fused_weights_and_says_so() {
    let (lab, scratch) = (Lab::new(), Scratch::new());
    let engine = lab.built.engines().join("transformer.engine");
    let lora = scratch.path("a.safetensors");
    write_adapter(&lora, &lab.a, AdapterFormat::Peft).unwrap();
    let inputs = scratch.path("in.safetensors");
    let case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    write_tensors(&inputs, &case.inputs, &Default::default()).unwrap();
    let out = |name: &str| scratch.path(name);
    let step = |name: &str| {
        run_ok(
            "run",
            args![
                "--engine",
                &engine,
                "--graph",
                "step",
                "--inputs",
                &inputs,
                "--outputs",
                out(name),
                "--lora",
                &lora,
                "--fused-cache",
                out("cache"),
                "--json"
            ],
        )
    };
    let (first, second) = (step("first"), step("second"));
    let (first, second) = (first.stdout, second.stdout);
    assert!(first.contains("\"kept\":false") && second.contains("\"kept\":true"), "{first}\n{second}");
    assert!(std::fs::read(out("first")).unwrap() == std::fs::read(out("second")).unwrap());
}
