use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::engine::manifest::RowRange;
use crate::raw::tensor_from_bytes;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

struct Case {
    rng: ChaCha8Rng,
}

impl Case {
    fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| (self.rng.random::<f32>() - 0.5) * scale).collect()
    }

    fn matrix(&mut self, rows: usize, columns: usize, scale: f32) -> Array2<f32> {
        Array2::from_shape_vec((rows, columns), self.values(rows * columns, scale)).unwrap()
    }

    fn update(&mut self, out: usize, inner: usize, rank: usize) -> LowRank {
        LowRank { down: self.matrix(rank, inner, 1.0), up: self.matrix(out, rank, 0.1), alpha: 2.0 }
    }
}

fn stored(dtype: Dtype, values: &[f32]) -> Bytes {
    Bytes::from(match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        other => panic!("{other}"),
    })
}

fn slot(out: usize, inner: usize, transposed: bool, rows: Option<(usize, usize)>) -> Slot {
    Slot {
        name: "layer".into(),
        tensor: "layer.weight".into(),
        out_features: out,
        in_features: inner,
        transposed,
        rows: rows.map(|(start, end)| RowRange { start, end }),
        aliases: vec![],
    }
}

fn term(update: &LowRank, strength: f32) -> Term<'_> {
    Term { adapter: "a", update, strength }
}

fn run(
    dtype: Dtype,
    shape: &[usize],
    data: &Bytes,
    slot: &Slot,
    terms: Vec<Term<'_>>,
    target: FuseTarget,
) -> (Bytes, SlotReport) {
    let view = WeightView { dtype, shape, data: data.clone() };
    let (data, mut reports) = fuse_tensor(&view, &[(slot, terms)], target).unwrap();
    (data, reports.remove(0))
}

fn floats(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    let count = data.len() / dtype.size();
    tensor_from_bytes(dtype, &[count], data).unwrap().into_f32().unwrap().into_raw_vec_and_offset().0
}

fn target_dtype(dtype: Dtype, target: FuseTarget) -> Dtype {
    if target == FuseTarget::F32 { Dtype::F32 } else { dtype }
}

#[test]
fn fuse_of_nothing_gives_the_base_bit_for_bit() {
    let mut case = Case::new(1);
    let (out, inner) = (37, 700);
    let mut values = case.values(out * inner, 2.0);
    values[5] = -0.0;
    for dtype in DTYPES {
        let data = stored(dtype, &values);
        for (rank, strength) in [(0, 1.0), (3, 0.0)] {
            let update = case.update(out, inner, rank);
            let layer = slot(out, inner, false, None);
            let (same, report) =
                run(dtype, &[out, inner], &data, &layer, vec![term(&update, strength)], FuseTarget::Storage);
            assert_eq!(same, data, "{dtype}");
            assert_eq!((report.delta_norm, report.survived), (0.0, 1.0));
            let (wide, _) = run(dtype, &[out, inner], &data, &layer, vec![term(&update, strength)], FuseTarget::F32);
            assert_eq!(wide, stored(Dtype::F32, &floats(dtype, &data)));
        }
    }
}

#[test]
fn fuse_equals_a_sum_in_f64_to_one_rounding() {
    let mut case = Case::new(2);
    let (out, inner, rank) = (19, 1030, 5);
    let values = case.values(out * inner, 2.0);
    let update = case.update(out, inner, rank);
    for dtype in DTYPES {
        let data = stored(dtype, &values);
        let base = floats(dtype, &data);
        let (fused, _) =
            run(dtype, &[out, inner], &data, &slot(out, inner, false, None), vec![term(&update, 0.7)], FuseTarget::F32);
        for (i, &got) in floats(Dtype::F32, &fused).iter().enumerate() {
            let (o, j) = (i / inner, i % inner);
            let product: f64 = (0..rank).map(|k| f64::from(update.up[[o, k]]) * f64::from(update.down[[k, j]])).sum();
            let expected = f64::from(base[i]) + 0.7 * (2.0 / rank as f64) * product;
            assert!((f64::from(got) - expected).abs() < 3e-7, "{got} {expected}");
        }
    }
}

#[test]
fn fuse_gives_equal_bits_in_both_orientations_and_in_a_row_range() {
    let mut case = Case::new(3);
    let (out, inner, total, start) = (30, 533, 90, 45);
    let update = case.update(out, inner, 4);
    let values = case.values(total * inner, 2.0);
    for dtype in DTYPES {
        for target in [FuseTarget::F32, FuseTarget::Storage] {
            let wide = target_dtype(dtype, target);
            let data = stored(dtype, &values);
            let rows = Some((start, start + out));
            let straight =
                run(dtype, &[total, inner], &data, &slot(out, inner, false, rows), vec![term(&update, 1.0)], target);
            let mut turned = vec![0.0; values.len()];
            for (i, &v) in values.iter().enumerate() {
                turned[(i % inner) * total + i / inner] = v;
            }
            let turned = stored(dtype, &turned);
            let across =
                run(dtype, &[inner, total], &turned, &slot(out, inner, true, rows), vec![term(&update, 1.0)], target);
            let (straight, across) = (floats(wide, &straight.0), floats(wide, &across.0));
            let base = floats(dtype, &data);
            for i in 0..straight.len() {
                let (o, j) = (i / inner, i % inner);
                assert_eq!(straight[i].to_bits(), across[j * total + o].to_bits());
                if !(start..start + out).contains(&o) {
                    assert_eq!(straight[i].to_bits(), base[i].to_bits());
                }
            }
        }
    }
}

#[test]
fn fuse_does_not_depend_on_threads() {
    let mut case = Case::new(4);
    let (out, inner) = (65, 257);
    let data = stored(Dtype::Bf16, &case.values(out * inner, 2.0));
    let update = case.update(out, inner, 2);
    let layer = slot(out, inner, false, None);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(Dtype::Bf16, &[out, inner], &data, &layer, vec![term(&update, 1.0)], FuseTarget::Storage))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn multiply_add_of_the_processor_equals_the_portable_one() {
    let mut case = Case::new(5);
    let values = case.values(1003, 1.0);
    let mut fast = case.values(1003, 1e-3);
    let mut slow = fast.clone();
    multiply_add(0.3, &values, &mut fast);
    multiply_add_portable(0.3, &values, &mut slow);
    assert_eq!(fast, slow);
}

#[test]
fn fuse_of_two_adapters_rounds_once() {
    let mut case = Case::new(6);
    let (out, inner) = (8, 40);
    let data = stored(Dtype::Bf16, &vec![1.0; out * inner]);
    let half_step =
        |v: f32| LowRank { down: Array2::from_elem((1, inner), 1.0), up: Array2::from_elem((out, 1), v), alpha: 1.0 };
    // Each alone is below half of bf16's step at 1 (2⁻⁷), together they are above it.
    let (a, b) = (half_step(0.003), half_step(0.003));
    let layer = slot(out, inner, false, None);
    let (one, report) = run(Dtype::Bf16, &[out, inner], &data, &layer, vec![term(&a, 1.0)], FuseTarget::Storage);
    assert_eq!(one, data);
    assert_eq!(report.survived, 0.0);
    let terms = vec![term(&a, 1.0), term(&b, 1.0)];
    let (two, _) = run(Dtype::Bf16, &[out, inner], &data, &layer, terms, FuseTarget::Storage);
    assert!(floats(Dtype::Bf16, &two).iter().all(|&v| v == 1.0078125));
    let _ = case.values(1, 1.0);
}

#[test]
fn check_rejects_a_with_wrong_in_features_and_values_that_are_not_finite() {
    let mut case = Case::new(7);
    let layer = slot(8, 4, false, None);
    let wrong = case.update(8, 5, 1);
    let error = check(&layer, &term(&wrong, 1.0)).unwrap_err().to_string();
    assert!(error.contains("slot `layer`: expected down [rank, 4] and up [8, rank], found down [1, 5]"), "{error}");
    let mut bad = case.update(8, 4, 1);
    bad.up[[3, 0]] = f32::NAN;
    assert!(matches!(check(&layer, &term(&bad, 1.0)), Err(FuseError::NotFinite { factor: "up", .. })));
    let good = case.update(8, 4, 1);
    assert!(matches!(check(&layer, &term(&good, f32::INFINITY)), Err(FuseError::NotFinite { factor: "strength", .. })));
}

#[test]
fn fuse_beyond_the_range_of_f16_is_an_error() {
    let big = LowRank { down: Array2::from_elem((1, 2), 300.0), up: Array2::from_elem((2, 1), 300.0), alpha: 1.0 };
    let data = stored(Dtype::F16, &[1.0; 4]);
    let view = WeightView { dtype: Dtype::F16, shape: &[2, 2], data };
    let layer = slot(2, 2, false, None);
    let error = fuse_tensor(&view, &[(&layer, vec![term(&big, 1.0)])], FuseTarget::Storage).unwrap_err();
    assert!(matches!(error, FuseError::Overflow { .. }));
    assert!(fuse_tensor(&view, &[(&layer, vec![term(&big, 1.0)])], FuseTarget::F32).is_ok());
}
