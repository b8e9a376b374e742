//! What comes out.

use super::*;

#[test]
fn run_of_a_plan_computes_with_the_weights_of_the_engine_in_each_profile() {
    let case = Case::new();
    let engine = case.engine("base.engine", PLAN);
    for rows in [1, 4, 5, 16] {
        assert_eq!(case.outputs(&engine, rows, &[]), case.expected(&inputs(rows, 6), &case.weights()), "{rows} rows");
    }
    let (run, _) = case.run(&engine, 2, args!["--json"]);
    let said = "TensorRT-RTX on stand-in, compute capability 9.0; weights are verified when they are set";
    assert!(run.code == 0 && (run.stdout + &run.stderr).contains(said));
    let (run, _) = case.run(&engine, 17, &[]);
    assert!(run.code == 2 && run.stderr.contains("lies outside what the graph was compiled for"), "{}", run.stderr);
}

#[test]
fn run_with_adapters_computes_with_the_fused_weights_and_is_verified() {
    let case = Case::new();
    let (both, one): (&[_], &[_]) = (&[UP, DOWN], &[DOWN]);
    let [a, b] = [("a.safetensors", both, 20), ("b.safetensors", one, 30)].map(|(name, slots, seed)| {
        let path = case.scratch.path(name);
        write_adapter(&path, slots, seed);
        path.to_string_lossy().into_owned()
    });
    // The same plan, and one whose weights are set together or not at all, and are unset when that is done.
    let engines =
        ["", "together up.weight down.weight\nforgets\n"].map(|more| case.engine("x.engine", &format!("{PLAN}{more}")));
    let base = case.outputs(&engines[0], 3, &[]);
    for engine in &engines {
        for (lora, adapters) in [
            (args!["--lora", format!("{a}=0.5")], &[(both, 20, 0.5)][..]),
            (args!["--lora", &a, "--lora", format!("{b}=-0.25")], &[(both, 20, 1.0), (one, 30, -0.25)]),
            (args!["--lora", format!("{b}=2"), "--no-verify"], &[(one, 30, 2.0)]),
        ] {
            let found = case.outputs(engine, 3, lora);
            assert_eq!(found, case.expected(&inputs(3, 6), &fused(&case.weights(), adapters)), "{lora:?}");
            assert_ne!(found, base);
        }
    }
}

#[test]
fn run_of_a_plan_that_holds_its_weights_sets_only_those_that_adapters_change() {
    let case = Case::new();
    let lora = case.scratch.path("up.safetensors");
    write_adapter(&lora, &[UP], 40);
    let plan = PLAN.replace("bf16 24", "bf16 24 0.5").replace("bf16 48", "bf16 48 0.25");
    let engine = case.edited("held.engine", &plan, |graph| graph.files.plans[0].placeholders = false);
    let held = Weights::from([("up", vec![0.25; 48]), ("down", vec![0.5; 24])]);
    // Other weights than the engine's, so that it shows which are used.
    let run = |more: &[_]| case.outputs(&engine, 2, &[args!["--no-verify"], more].concat());
    assert_eq!(run(&[]), case.expected(&inputs(2, 6), &held));
    let mut expected = fused(&case.weights(), &[(&[UP], 40, 1.0)]);
    expected["down"] = held["down"].clone();
    assert_eq!(run(args!["--lora", lora]), case.expected(&inputs(2, 6), &expected));
}

/// The other flavour has classes of its own, and a part of the shim; it does not say beforehand whether a plan fits.
#[test]
fn run_of_a_plan_of_the_other_flavour_does_the_same() {
    let case = Case::new();
    let lora = case.scratch.path("a.safetensors");
    write_adapter(&lora, &[UP, DOWN], 90);
    let of = |plan: &str| {
        case.edited("other.engine", plan, |graph| {
            graph.backend = TENSORRT.backend.into();
            graph.files.plans[0].version = TENSORRT.version.into();
        })
    };
    let plan = PLAN.replace(RTX.version, TENSORRT.version);
    let found = case.outputs(&of(&plan), 3, args!["--lora", lora]);
    assert_eq!(found, case.expected(&inputs(3, 6), &fused(&case.weights(), &[(&[UP, DOWN], 90, 1.0)])));
    for (plan, words) in [(PLAN, "The engine is of version 1.7.1"), ("", "The engine is malformed")] {
        let (run, _) = case.run(&of(plan), 3, &[]);
        assert!(run.code == 6 && run.stderr.contains(words), "{}: {}", run.code, run.stderr);
    }
    let (run, _) = case.run(&of(&plan.replace("memory 4096", "memory 4096000000")), 3, &[]);
    assert!(run.code == 8 && run.stderr.contains("OutOfMemory"), "{}: {}", run.code, run.stderr);
}
