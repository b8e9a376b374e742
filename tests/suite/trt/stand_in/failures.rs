//! What is refused, with which words and exit code, and that nothing is left behind.

use super::*;

#[track_caller]
fn refused(case: &Case, engine: &Path, more: &[std::ffi::OsString], memory: Option<usize>, code: i32, words: &str) {
    let (run, found) = case.run_with(engine, 2, more, memory);
    assert!(
        run.code == code && run.stderr.contains(words),
        "expected {code} and {words}; {}: {}",
        run.code,
        run.stderr
    );
    assert!(found.is_none());
}

#[test]
fn plan_that_does_not_fit_the_gpu_or_the_engine_is_refused() {
    let case = Case::new();
    for (from, to, code, words) in [
        (
            "capability 9.0",
            "capability 8.9",
            6,
            "it was not built for this GPU: The engine is for compute capability 8.9; compile",
        ),
        ("plan 1.7.1", "plan 1.6.0", 6, "it was built by another version"),
        ("v2l stand-in plan", "something else", 6, "it is damaged: The engine is malformed"),
        ("output y f32 -1 3", "output other f32 -1 3", 3, "output `y`: the engine says"),
        ("input z f32 -1 8", "input z f32 -1 8 1", 3, "input `z`: the engine says"),
        ("weight up.weight bf16 48", "weight up.weight f32 48", 3, "`up.weight`"),
        ("weight up.weight bf16 48", "weight up.weight bf16 54", 3, "`up.weight`"),
        ("memory 4096", "weight lacking bf16 2", 3, "`lacking`"),
    ] {
        let engine = case.engine("x.engine", &PLAN.replace(from, to));
        refused(&case, &engine, &[], None, code, words);
    }
    let other = case.edited("other.engine", PLAN, |graph| graph.files.plans[0].compute_capability = Some("8.9".into()));
    let words =
        "for compute capability 8.9; this GPU (stand-in) is 9.0: compile with `v2l-compile --compute-capability 9.0`";
    refused(&case, &other, &[], None, 6, words);
    let words = "there is no GPU 1: the driver knows 1; see CUDA_VISIBLE_DEVICES and `--device`";
    refused(&case, &case.engine("x.engine", PLAN), args!["--device", "1"], None, 6, words);
}

#[test]
fn refit_that_fails_ends_the_run_with_the_words_of_tensorrt_or_of_the_driver() {
    let case = Case::new();
    for (fault, words) in [("refit fails 1", "the planted failure"), ("refit breaks 1", "cuStreamSynchronize")] {
        refused(&case, &case.engine("x.engine", &format!("{PLAN}{fault}\n")), &[], None, 3, words);
    }
}

#[test]
fn refusal_does_not_repeat_what_tensorrt_said_of_weights_that_it_had_let_go_of() {
    let case = Case::new();
    let (run, _) = case.run(&case.engine("x.engine", &format!("{PLAN}forgets\nrefit fails 1\n")), 2, &[]);
    assert!(run.code == 3 && !run.stderr.contains("unsetNamedWeights"), "{}: {}", run.code, run.stderr);
}

#[test]
fn weight_that_does_not_arrive_ends_the_run_with_7() {
    let case = Case::new();
    let lora = case.scratch.path("a.safetensors");
    write_adapter(&lora, &[UP, DOWN], 50);
    for weight in ["up.weight", "down.weight"] {
        let engine = case.engine("x.engine", &format!("{PLAN}ignores {weight}\n"));
        refused(&case, &engine, &[], None, 7, "from what was recorded when it was compiled");
        refused(&case, &engine, args!["--lora", &lora], None, 7, "from ONNX Runtime with the same fused weights");
        let (run, found) = case.run(&engine, 2, args!["--no-verify"]);
        assert!(run.code == 0 && found.is_some(), "{}", run.stderr);
    }
}

/// 144 bytes of weights, 4096 of activations; the probe takes 136 of inputs and outputs.
#[test]
fn memory_that_does_not_suffice_ends_the_run_with_8_wherever_it_is_missed() {
    let case = Case::new();
    let engine = case.engine("x.engine", PLAN);
    for verify in [&[][..], args!["--no-verify"]] {
        for memory in [100, 1000, 144 + 4096 + 50, 144 + 4096 + 130] {
            refused(&case, &engine, verify, Some(memory), 8, "memory");
        }
        let (run, found) = case.run_with(&engine, 2, verify, Some(144 + 4096 + 136));
        assert!(run.code == 0 && found.is_some(), "{}", run.stderr);
    }
}
