//! Optimisation passes keep what a model computes, each alone and all together.

use ndarray::Axis;
use v2l_export::{CompileOptions, ExportOptions, Pass, Passes};
use v2l_runtime::tensor::Tensor;

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};

/// The rewrites sum in another order; one rounding is 6e-8, and these models carry it through a few layers.
const TOLERANCE: f64 = 1e-6;

fn built(variant: &str, off: impl IntoIterator<Item = Pass>) -> Built {
    let options = CompileOptions { passes: Passes::without(off), ..CompileOptions::default() };
    Built::with(&fixtures().join("transformer").join(variant), &ExportOptions::default(), &options)
}

#[test]
fn passes_all_and_each_alone_equal_none_on_every_transformer() {
    for variant in ["rotary_t2v", "sincos_t2v", "fun_inp", "v15_i2v"] {
        let none = built(variant, Pass::ALL);
        let alone = [Pass::Rotary, Pass::Attention, Pass::ModulatedNorm, Pass::Prologue, Pass::TimestepTables]
            .map(|pass| (pass.name(), built(variant, Pass::ALL.into_iter().filter(|&other| other != pass))));
        let all = ("all", built(variant, []));
        for mode in WEIGHT_MODES {
            let mut plain = none.session("transformer", "step", mode);
            let mut sessions: Vec<_> =
                alone.iter().chain([&all]).map(|(name, b)| (name, b.session("transformer", "step", mode))).collect();
            for path in cases(&fixtures().join("transformer").join(variant)) {
                let case = Case::read(&path);
                let expected = f32s(&run(&mut *plain, &case.inputs)["sample"]);
                for (name, session) in &mut sessions {
                    let found = f32s(&run(&mut **session, &case.inputs)["sample"]);
                    assert_close(&format!("{variant} {} {name} {mode:?}", case.name), &found, &expected, TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn rotary_pass_with_two_tables_a_pair_equals_no_pass_and_keeps_refusing_tables_of_other_lengths() {
    let variants = [built("rotary_t2v", []), built("rotary_t2v", [Pass::Rotary])];
    let mut case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    let usual = f32s(&run(&mut *variants[0].session("transformer", "step", WEIGHT_MODES[0]), &case.inputs)["sample"]);
    for (name, factor) in [("image_rotary_emb_cos", 0.5), ("image_rotary_emb_sin", -0.25)] {
        let mut table = case.input(name);
        for mut row in table.axis_iter_mut(Axis(1)).skip(1).step_by(2) {
            row *= factor;
        }
        case.inputs.insert(name.to_owned(), Tensor::F32(table));
    }
    for mode in WEIGHT_MODES {
        let [found, expected] = variants
            .each_ref()
            .map(|b| f32s(&run(&mut *b.session("transformer", "step", mode), &case.inputs)["sample"]));
        assert_ne!(expected, usual, "the tables count");
        assert_close(&format!("{mode:?}"), &found, &expected, TOLERANCE);
    }
    let longer = |table: &Tensor| {
        let table = f32s(table);
        Tensor::F32(ndarray::concatenate(Axis(0), &[table.view(), table.view()]).unwrap())
    };
    for name in ["image_rotary_emb_cos", "image_rotary_emb_sin"] {
        let table = longer(&case.inputs[name]);
        case.inputs.insert(name.to_owned(), table);
    }
    let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    for b in &variants {
        assert!(b.session("transformer", "step", WEIGHT_MODES[0]).run(&inputs).is_err());
    }
}
