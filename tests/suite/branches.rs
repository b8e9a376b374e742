//! Low-rank branches give what fusing in f32 gives, without touching a weight.

use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::engine::session::Session;
use v2l_runtime::lora::adapter::{Adapter, LowRank};
use v2l_runtime::lora::branch;
use v2l_runtime::options::{OpenOptions, OrtWeights};

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, ort_with, run};
use crate::swaps::adapter;

/// Largest rank that the branches are compiled for.
const MAX: usize = 8;

fn built(branches_only: bool) -> Built {
    let compile = CompileOptions { lora_rank: Some(MAX), branches_only, ..CompileOptions::default() };
    Built::with(&fixtures().join("transformer/fun_inp"), &ExportOptions::default(), &compile)
}

#[test]
fn branches_equal_a_fuse_in_f32_with_every_rank_and_strength() {
    let built = built(false);
    let engine = built.engine(TRANSFORMER);
    let slots = &engine.manifest().slots;
    // Ranks 0 to 3 and 0 to 4, in places one, none or both of them.
    let (a, b) = (adapter("a", slots.iter().step_by(2), 3, 1), adapter("b", slots.iter().step_by(3), 4, 2));
    let mixes: [&[(&Adapter, f32)]; 6] =
        [&[(&a, 1.0)], &[(&a, -1.0)], &[(&b, 2.0)], &[(&a, 0.5), (&b, 0.5)], &[(&b, -0.3), (&a, 0.7)], &[]];
    for path in cases(&fixtures().join("transformer/fun_inp")) {
        let case = Case::read(&path);
        let mut sessions = WEIGHT_MODES.map(|mode| (mode, built.session(TRANSFORMER, "step.branch", mode)));
        for mix in mixes {
            let options = OpenOptions { weights: OrtWeights::F32, ..OpenOptions::default() };
            let mut fused = ort_with(built.engine(TRANSFORMER), &options, mix).session("step").unwrap();
            let expected = f32s(&run(&mut fused, &case.inputs)["sample"]);
            for (mode, session) in &mut sessions {
                let mut inputs = case.inputs.clone();
                inputs.extend(branch::inputs(&engine, engine.graph("step.branch").unwrap(), mix).unwrap());
                let found = f32s(&run(&mut **session, &inputs)["sample"]);
                assert_close(&format!("{} {mode:?}", case.name), &found, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn inputs_of_branches_refuse_ranks_beyond_the_compiled_ones_and_graphs_without_branches() {
    let built = built(true);
    let engine = built.engine(TRANSFORMER);
    let graphs: Vec<&str> = engine.manifest().graphs.iter().map(|g| &g.name[..]).collect();
    assert_eq!(graphs, ["step.branch"], "branches only");
    let slots = &engine.manifest().slots;
    let (a, b) = (adapter("a", slots.iter(), 5, 1), adapter("b", slots.iter(), 5, 2));
    let graph = engine.graph("step.branch").unwrap();
    assert!(branch::inputs(&engine, graph, &[(&a, 1.0)]).is_ok());
    let error = branch::inputs(&engine, graph, &[(&a, 1.0), (&b, 1.0)]).unwrap_err().to_string();
    let expected = "the adapters' ranks sum to 10, the low-rank branches were compiled for 8; compile with `v2l-compile --lora-rank 10`";
    assert!(error.contains(expected), "{error}");

    let enlarged = |factors: &LowRank| LowRank { up: &factors.up * 1e30, ..factors.clone() };
    let huge = Adapter {
        layers: a.layers.iter().map(|(n, u)| (n.clone(), enlarged(&u.to_low_rank()).into())).collect(),
        ..a.clone()
    };
    let error = branch::inputs(&engine, graph, &[(&huge, 1e10)]).unwrap_err().to_string();
    assert!(error.contains("strength times up holds NaN or infinity"), "{error}");

    let plain = Built::plain(&fixtures().join("transformer/fun_inp"));
    let engine = plain.engine(TRANSFORMER);
    let error = branch::inputs(&engine, engine.graph("step").unwrap(), &[(&a, 1.0)]).unwrap_err().to_string();
    assert!(error.contains("no graph `step.branch`"), "{error}");
}

#[test]
fn swapping_adapters_in_side_branches_needs_no_other_session() {
    let built = built(false);
    let engine = built.engine(TRANSFORMER);
    let case = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]);
    let mut session: Box<dyn Session> = built.session(TRANSFORMER, "step.branch", OrtWeights::Stored);
    let (a, b) =
        (adapter("a", engine.manifest().slots.iter(), 3, 1), adapter("b", engine.manifest().slots.iter(), 3, 2));
    let mut with = |adapters: &[(&Adapter, f32)]| {
        let mut inputs = case.inputs.clone();
        inputs.extend(branch::inputs(&engine, engine.graph("step.branch").unwrap(), adapters).unwrap());
        run(&mut *session, &inputs)
    };
    let (base, first, other) = (with(&[]), with(&[(&a, 1.0)]), with(&[(&b, 1.0)]));
    assert_ne!(first, base);
    assert_ne!(other, first);
    assert_eq!(with(&[(&a, 1.0)]), first);
    assert_eq!(with(&[(&a, 0.0)]), base, "strength 0");
    assert_eq!(with(&[]), base);
}
