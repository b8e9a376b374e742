use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::engine::manifest::RowRange;
use crate::io::raw::tensor_from_bytes;

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

    fn factors(&mut self, out: usize, inner: usize, rank: usize) -> LowRank {
        LowRank { down: self.matrix(rank, inner, 1.0), up: self.matrix(out, rank, 0.1), alpha: 2.0 }
    }

    fn update(&mut self, out: usize, inner: usize, rank: usize) -> Update {
        self.factors(out, inner, rank).into()
    }

    /// A full difference, with zeros of both signs here and there, and in whole rows and columns.
    fn difference(&mut self, out: usize, inner: usize) -> Array2<f32> {
        let mut values = self.matrix(out, inner, 0.1);
        values.iter_mut().step_by(7).for_each(|value| *value = -0.0);
        (1..out).step_by(4).for_each(|row| values.row_mut(row).fill(0.0));
        (2..inner).step_by(5).for_each(|column| values.column_mut(column).fill(0.0));
        values
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
    Slot { transposed, rows: rows.map(|(start, end)| RowRange { start, end }), ..Slot::linear("layer", out, inner) }
}

fn term(update: &Update, strength: f32) -> Term<'_> {
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
    run_on(dtype, shape, data, slot, terms, &FuseOptions::new(target)).unwrap()
}

fn run_on(
    dtype: Dtype,
    shape: &[usize],
    data: &Bytes,
    slot: &Slot,
    terms: Vec<Term<'_>>,
    options: &FuseOptions<'_>,
) -> Result<(Bytes, SlotReport), FuseError> {
    let base = WeightView { dtype, shape, data: data.clone() };
    let slots = [(slot, terms)];
    let mut fused = fuse_tensors(&[Changed { name: "layer.weight", base, slots: &slots }], options)?;
    Ok((fused.weights.swap_remove("layer.weight").unwrap(), fused.report.slots.remove(0)))
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
        let updates = [
            (case.update(out, inner, 0), 1.0),
            (case.update(out, inner, 3), 0.0),
            (Update::Full(case.matrix(out, inner, 1.0)), 0.0),
            (Update::Full(Array2::from_elem((out, inner), -0.0)), 1.0),
        ];
        for (update, strength) in updates {
            let layer = slot(out, inner, false, None);
            let (same, report) =
                run(dtype, &[out, inner], &data, &layer, vec![term(&update, strength)], FuseTarget::Storage);
            assert_eq!(same, data, "{dtype}");
            assert_eq!((report.rounding.delta_norm(), report.rounding.survived(), report.unchanged()), (0.0, 1.0, 1.0));
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
    let factors = case.factors(out, inner, rank);
    let update = factors.clone().into();
    for dtype in DTYPES {
        let data = stored(dtype, &values);
        let base = floats(dtype, &data);
        let (fused, _) =
            run(dtype, &[out, inner], &data, &slot(out, inner, false, None), vec![term(&update, 0.7)], FuseTarget::F32);
        for (i, &got) in floats(Dtype::F32, &fused).iter().enumerate() {
            let (o, j) = (i / inner, i % inner);
            let product: f64 = (0..rank).map(|k| f64::from(factors.up[[o, k]]) * f64::from(factors.down[[k, j]])).sum();
            let expected = f64::from(base[i]) + 0.7 * (2.0 / rank as f64) * product;
            assert!((f64::from(got) - expected).abs() < 3e-7, "{got} {expected}");
        }
    }
}

fn both_targets_with_all_instructions() -> Vec<(FuseTarget, Simd)> {
    let simds = Simd::available();
    [FuseTarget::F32, FuseTarget::Storage].into_iter().flat_map(|t| simds.iter().map(move |&simd| (t, simd))).collect()
}

#[test]
fn fuse_gives_equal_bits_in_both_orientations_and_in_a_row_range() {
    let mut case = Case::new(3);
    let (out, inner, total, start) = (30, 533, 90, 45);
    let update = case.update(out, inner, 4);
    let values = case.values(total * inner, 2.0);
    for dtype in DTYPES {
        for (target, simd) in both_targets_with_all_instructions() {
            let on = |shape: &[usize], data: &Bytes, slot: &Slot| {
                let options = FuseOptions { simd, ..FuseOptions::new(target) };
                run_on(dtype, shape, data, slot, vec![term(&update, 1.0)], &options).unwrap()
            };
            let wide = target_dtype(dtype, target);
            let data = stored(dtype, &values);
            let rows = Some((start, start + out));
            let straight = on(&[total, inner], &data, &slot(out, inner, false, rows));
            let mut turned = vec![0.0; values.len()];
            for (i, &v) in values.iter().enumerate() {
                turned[(i % inner) * total + i / inner] = v;
            }
            let turned = stored(dtype, &turned);
            let across = on(&[inner, total], &turned, &slot(out, inner, true, rows));
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
    // Several pieces, the last one short.
    let (out, inner) = (700, 257);
    let data = stored(Dtype::Bf16, &case.values(out * inner, 2.0));
    let update = case.update(out, inner, 2);
    let layer = slot(out, inner, false, None);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(Dtype::Bf16, &[out, inner], &data, &layer, vec![term(&update, 1.0)], FuseTarget::Storage))
    };
    assert_eq!(with(1), with(3));
}

/// All instructions of this processor, types, columns and rows that do not fill a vector or a block, ranks 0 to many, an
/// unaligned base.
#[test]
fn fuse_gives_equal_bits_and_reports_on_every_path() {
    let mut case = Case::new(5);
    for (out, inner) in [(1, 1), (5, 7), (6, 16), (7, 31), (13, 32), (12, 65), (29, 100), (6, 0), (0, 9), (700, 257)] {
        for ranks in [vec![0], vec![1], vec![4, 3], vec![37]] {
            let updates: Vec<Update> = ranks.iter().map(|&rank| case.update(out, inner, rank)).collect();
            let mut values = case.values(out * inner, 2.0);
            if let Some(value) = values.first_mut() {
                // Subnormal in bf16, as the instruction that rounds to bf16 would not have it.
                *value = 1e-39;
            }
            for dtype in DTYPES {
                let mut shifted = vec![0];
                shifted.extend_from_slice(&stored(dtype, &values));
                let data = Bytes::from(shifted).slice(1..);
                for target in [FuseTarget::F32, FuseTarget::Storage] {
                    let on = |simd: Simd| {
                        let terms = updates.iter().map(|update| term(update, 0.3)).collect();
                        let options = FuseOptions { simd, ..FuseOptions::new(target) };
                        run_on(dtype, &[out, inner], &data, &slot(out, inner, false, None), terms, &options).unwrap()
                    };
                    let portable = on(Simd::Portable);
                    for simd in Simd::available() {
                        assert_eq!(on(simd), portable, "{simd:?} {dtype} {target:?} [{out}, {inner}] rank {ranks:?}");
                    }
                }
            }
        }
    }
}

/// Fuses both on every path of the processor, and wants equal bits and equal reports.
#[track_caller]
fn assert_fused_alike(
    shape: [usize; 2],
    values: &[f32],
    slot: &Slot,
    one: &[(&Update, f32)],
    other: &[(&Update, f32)],
) {
    for dtype in DTYPES {
        let data = stored(dtype, values);
        for (target, simd) in both_targets_with_all_instructions() {
            let options = FuseOptions { simd, ..FuseOptions::new(target) };
            let fused = |updates: &[(&Update, f32)]| {
                let terms = updates.iter().map(|&(update, strength)| term(update, strength)).collect();
                run_on(dtype, &shape, &data, slot, terms, &options).unwrap()
            };
            let ((found, report), (expected, expected_report)) = (fused(one), fused(other));
            let what = || format!("{simd:?} {dtype} {target:?} {shape:?} transposed {}", slot.transposed);
            assert!(found == expected, "{}", what());
            assert_eq!(report, expected_report, "{}", what());
        }
    }
}

/// Rows and columns that do not fill a block or a tile, in both orientations, in whole tensors and in parts of fused ones; updates
/// alone and together; sums of squares that f32 holds and that it does not.
#[test]
fn full_difference_fuses_to_the_bits_and_the_report_of_its_product() {
    let mut case = Case::new(14);
    for (rows, columns) in [1, 5, 6, 13].into_iter().flat_map(|rows| [37, 70, 129].map(|columns| (rows, columns))) {
        for (transposed, beside) in [(false, 0), (false, 10), (true, 0), (true, 10)] {
            let (out, inner) = if transposed { (columns, rows) } else { (rows, columns) };
            let total = out + beside;
            let shape = if transposed { [inner, total] } else { [total, inner] };
            let layer = slot(out, inner, transposed, (beside > 0).then_some((3, 3 + out)));
            let values = case.values(total * inner, 2.0);
            let [full, second] = [(); 2].map(|()| Update::Full(case.difference(out, inner)));
            let [product, second_product] = [&full, &second].map(|update| update.to_low_rank().into_owned().into());
            let factors = case.update(out, inner, 3);
            for strength in [0.7, 1e-15] {
                let own = |update| (update, strength);
                assert_fused_alike(shape, &values, &layer, &[own(&full)], &[own(&product)]);
                let low_rank = (&factors, 0.3 * strength);
                let (one, other) = ([low_rank, own(&full)], [low_rank, own(&product)]);
                assert_fused_alike(shape, &values, &layer, &one, &other);
                let one = [own(&full), low_rank, own(&second)];
                let other = [own(&product), low_rank, own(&second_product)];
                assert_fused_alike(shape, &values, &layer, &one, &other);
            }
        }
    }
}

/// Several pieces, the last one short.
#[test]
fn full_difference_of_many_rows_fuses_to_the_bits_and_the_report_of_its_product() {
    let mut case = Case::new(15);
    let (out, inner) = (2029, 37);
    let full = Update::Full(case.difference(out, inner));
    let product = full.to_low_rank().into_owned().into();
    let values = case.values(out * inner, 2.0);
    let layer = slot(out, inner, false, None);
    assert!(out * inner > PIECE);
    assert_fused_alike([out, inner], &values, &layer, &[(&full, 1.0)], &[(&product, 1.0)]);
}

#[test]
fn full_difference_that_is_not_finite_is_an_error_that_names_its_adapter() {
    let mut case = Case::new(16);
    let (rows, columns) = (13, 70);
    let (data, low_rank) = (case.values(rows * columns, 2.0), case.update(rows, columns, 2));
    for (value, at) in [(f32::NAN, (0, 0)), (f32::NAN, (12, 69)), (f32::INFINITY, (6, 40))] {
        let mut difference = case.difference(rows, columns);
        difference[at] = value;
        let damaged = Update::Full(difference.clone());
        let turned = Update::Full(difference.t().to_owned());
        let straight = (slot(rows, columns, false, None), [Some(&low_rank), None], &damaged);
        let across = (slot(columns, rows, true, None), [None, None], &turned);
        for (dtype, (layer, others, update)) in
            DTYPES.into_iter().flat_map(|dtype| [(dtype, &straight), (dtype, &across)])
        {
            let data = stored(dtype, &data);
            for (target, simd) in both_targets_with_all_instructions() {
                for (other, strength) in others.iter().flat_map(|&other| [(other, 1.0), (other, 0.0)]) {
                    let mut terms: Vec<Term<'_>> = other.into_iter().map(|other| term(other, 1.0)).collect();
                    terms.push(Term { adapter: "damaged", update, strength });
                    let options = FuseOptions { simd, ..FuseOptions::new(target) };
                    let error = run_on(dtype, &[rows, columns], &data, layer, terms, &options).unwrap_err();
                    let FuseError::NotFinite { adapter, factor, .. } = &error else { panic!("{error}") };
                    assert_eq!((&adapter[..], *factor), ("damaged", "the difference"), "{simd:?} {dtype} {target:?}");
                }
            }
        }
    }
}

#[test]
fn full_difference_is_copied_for_the_kernel_only_where_it_lies_across() {
    let mut case = Case::new(17);
    let difference = case.difference(5, 37);
    let bytes =
        |transposed| Job::bytes(&slot(5, 37, transposed, None), [&Update::Full(difference.clone())].into_iter());
    assert_eq!((bytes(false), bytes(true)), (0, 5 * 37 * size_of::<f32>()));
}

/// Results that are written past the caches: whole matrices, and a window of columns.
#[test]
fn fuse_that_streams_gives_equal_bits_on_every_path() {
    let mut case = Case::new(11);
    let (rows, stride) = (9, 1 << 17);
    for dtype in DTYPES {
        let data = stored(dtype, &case.values(rows * stride, 2.0));
        for (column, columns) in [(0, stride), (64, stride - 192), (64, 1000)] {
            let (left, right) = (case.matrix(rows, 3, 0.1), case.matrix(3, columns, 1.0));
            let difference = case.difference(rows, columns);
            let product = Addend::Product { left: left.view(), right: right.view(), factor: 0.5 };
            let full = Addend::Full { values: difference.view(), factor: 0.5 };
            for (target, simd) in both_targets_with_all_instructions() {
                let wide = target_dtype(dtype, target);
                let fuse = |simd: Simd, stream: bool, addends: &[Addend<'_>]| {
                    let pool = Pool::default();
                    let mut out = pool.take(rows * stride * wide.size()).unwrap();
                    out.bytes_mut().fill(0);
                    let packed = Packed::new(simd, dtype, (rows, columns), addends);
                    let (base, to) = ((dtype, &data[..]), (wide, out.bytes_mut()));
                    let rounding = packed.fuse(0, column, stride, base, to, stream);
                    (out.bytes_mut().to_vec(), rounding)
                };
                for addends in [&[product][..], &[full], &[product, full]] {
                    let (streamed, plain) = (fuse(simd, true, addends), fuse(Simd::Portable, false, addends));
                    let what = format!("{simd:?} {dtype} {target:?} columns {columns} from {column}");
                    assert!(streamed == plain, "{what}, {} updates", addends.len());
                }
            }
        }
    }
}

#[test]
fn packed_factors_refuse_what_lies_outside_the_matrix() {
    let packed = Packed::new(Simd::Portable, Dtype::Bf16, (1, 16), &[]);
    for (first, column, stride, bytes) in [
        (0, usize::MAX - 15, 16, 32),
        (0, 0, (1 << 62) + 1, 32),
        (usize::MAX - 3, 0, 16, 32),
        (0, 1, 16, 32),
        (0, 0, 16, 64),
        (0, 0, 16, 31),
    ] {
        let (base, mut out) = (vec![0; bytes], vec![0; bytes]);
        let outside = std::panic::AssertUnwindSafe(|| {
            packed.fuse(first, column, stride, (Dtype::Bf16, &base), (Dtype::Bf16, &mut out), true)
        });
        assert!(std::panic::catch_unwind(outside).is_err(), "{first} {column} {stride} {bytes}");
    }
}

#[test]
fn available_paths_end_with_the_portable_one() {
    let simds = Simd::available();
    assert_eq!(simds.last(), Some(&Simd::Portable));
    assert_eq!(simds[0], Simd::best());
}

#[test]
fn rounding_stats_equal_sums_over_the_elements() {
    let mut case = Case::new(8);
    let (out, inner) = (40, 300);
    let update = case.update(out, inner, 3);
    let data = stored(Dtype::Bf16, &case.values(out * inner, 8.0));
    let layer = slot(out, inner, false, None);
    let (fused, report) = run(Dtype::Bf16, &[out, inner], &data, &layer, vec![term(&update, 0.1)], FuseTarget::Storage);
    let (wide, _) = run(Dtype::Bf16, &[out, inner], &data, &layer, vec![term(&update, 0.1)], FuseTarget::F32);
    let (base, fused, wide) = (floats(Dtype::Bf16, &data), floats(Dtype::Bf16, &fused), floats(Dtype::F32, &wide));
    let (mut norm, mut dot, mut error, mut unchanged) = (0.0, 0.0, 0.0, 0);
    for i in 0..base.len() {
        let (delta, realised) = (f64::from(wide[i] - base[i]), f64::from(fused[i] - base[i]));
        norm += delta * delta;
        dot += delta * realised;
        error += (realised - delta).powi(2);
        unchanged += u64::from(fused[i] == base[i]);
    }
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4 * b.abs(), "{a} {b}");
    close(report.rounding.norm, norm);
    close(report.rounding.dot, dot);
    close(report.rounding.error, error);
    assert_eq!(report.rounding.unchanged, unchanged);
    assert!(unchanged > 0 && report.unchanged() < 1.0);
}

/// ΔW of this size everywhere, of rank 2 and with other columns than rows.
fn even(out: usize, inner: usize, size: f32) -> Update {
    let half = size.abs().sqrt() / 2f32.sqrt();
    LowRank {
        down: Array2::from_elem((2, inner), half),
        up: Array2::from_elem((out, 2), half.copysign(size)),
        alpha: 2.0,
    }
    .into()
}

#[test]
fn rounding_stats_of_an_update_too_small_for_squares_in_f32_say_that_it_is_lost() {
    let (out, inner) = (8, 45);
    let update = even(out, inner, 1e-38);
    for (dtype, value, survived, unchanged) in [(Dtype::F16, 1.0, 0.0, 1.0), (Dtype::F32, 0.0, 1.0, 0.0)] {
        let data = stored(dtype, &vec![value; out * inner]);
        for simd in Simd::available() {
            let options = FuseOptions { simd, ..FuseOptions::new(FuseTarget::Storage) };
            let layer = slot(out, inner, false, None);
            let (_, report) = run_on(dtype, &[out, inner], &data, &layer, vec![term(&update, 1.0)], &options).unwrap();
            assert_eq!((report.rounding.survived(), report.unchanged()), (survived, unchanged), "{simd:?} {dtype}");
            assert_eq!(report.rounding.relative_error(), 1.0 - survived, "{simd:?} {dtype}");
            let norm = report.rounding.delta_norm() / (1e-38 * f64::from(8 * 45).sqrt());
            assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        }
    }
}

#[test]
fn rounding_stats_of_an_update_too_large_for_squares_in_f32_are_finite() {
    let (out, inner) = (8, 45);
    let update = even(out, inner, 1e25);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let data = stored(dtype, &vec![-1e25; out * inner]);
        for simd in Simd::available() {
            let options = FuseOptions { simd, ..FuseOptions::new(FuseTarget::Storage) };
            let layer = slot(out, inner, false, None);
            let (_, report) = run_on(dtype, &[out, inner], &data, &layer, vec![term(&update, 1.5)], &options).unwrap();
            assert!((report.rounding.survived() - 1.0).abs() < 1e-2, "{simd:?} {dtype} {}", report.rounding.survived());
            assert!(report.rounding.relative_error() < 1e-2, "{simd:?} {dtype}");
        }
    }
}

#[test]
fn rounding_stats_in_f64_have_the_bits_of_the_fused_weights() {
    let mut case = Case::new(12);
    let (out, inner) = (13, 131);
    for dtype in DTYPES {
        for simd in Simd::available() {
            // All of the update is realised in f32 over zeros, column by column, so an element that is taken for another shows.
            let update = case.update(out, inner, 3);
            let data = stored(dtype, &vec![0.0; out * inner]);
            let options = FuseOptions { simd, ..FuseOptions::new(FuseTarget::F32) };
            let layer = slot(out, inner, false, None);
            let (_, report) =
                run_on(dtype, &[out, inner], &data, &layer, vec![term(&update, 1e-16)], &options).unwrap();
            assert_eq!((report.rounding.survived(), report.rounding.relative_error()), (1.0, 0.0), "{simd:?} {dtype}");
            assert!(report.rounding.norm > 0.0);
        }
    }
}

#[test]
fn fuse_of_several_slots_of_one_tensor_leaves_the_rows_between_alone() {
    let mut case = Case::new(9);
    let (total, inner) = (50, 20);
    let values = case.values(total * inner, 2.0);
    let data = stored(Dtype::Bf16, &values);
    let named = |name: &str, rows: (usize, usize)| Slot {
        name: name.into(),
        ..slot(rows.1 - rows.0, inner, false, Some(rows))
    };
    // In another order than that of the rows.
    let (late, early) = (named("late", (27, 40)), named("early", (3, 10)));
    let (for_late, for_early) = (case.update(13, inner, 2), case.update(7, inner, 1));
    let slots = [(&late, vec![term(&for_late, 1.0)]), (&early, vec![term(&for_early, -1.0)])];
    let base = WeightView { dtype: Dtype::Bf16, shape: &[total, inner], data: data.clone() };
    let tensors = [Changed { name: "layer.weight", base, slots: &slots }];
    let fused = fuse_tensors(&tensors, &FuseOptions::new(FuseTarget::F32)).unwrap();
    let names: Vec<&str> = fused.report.slots.iter().map(|slot| &slot.slot[..]).collect();
    assert_eq!(names, ["late", "early"]);
    let (got, base) = (floats(Dtype::F32, &fused.weights["layer.weight"]), floats(Dtype::Bf16, &data));
    let alone = |update: &Update, rows: (usize, usize), strength: f32| {
        let cut = stored(Dtype::Bf16, &base[rows.0 * inner..rows.1 * inner]);
        let layer = slot(rows.1 - rows.0, inner, false, None);
        let shape = [rows.1 - rows.0, inner];
        floats(Dtype::F32, &run(Dtype::Bf16, &shape, &cut, &layer, vec![term(update, strength)], FuseTarget::F32).0)
    };
    let mut expected = base.clone();
    expected[27 * inner..40 * inner].copy_from_slice(&alone(&for_late, (27, 40), 1.0));
    expected[3 * inner..10 * inner].copy_from_slice(&alone(&for_early, (3, 10), -1.0));
    assert_eq!(got, expected);
}

#[test]
fn fuse_lays_the_factors_of_some_tensors_out_at_a_time_and_counts_them() {
    struct Base(Vec<Slot>, Bytes);
    impl FuseBase for Base {
        fn slots(&self) -> &[Slot] {
            &self.0
        }
        fn base_weight(&self, _: &str) -> Result<WeightView<'_>, EngineError> {
            Ok(WeightView { dtype: Dtype::Bf16, shape: &[7, 4000], data: self.1.clone() })
        }
    }
    let mut case = Case::new(13);
    let (layers, rank, out, inner) = (5, 512, 7, 4000);
    let data = stored(Dtype::Bf16, &case.values(out * inner, 2.0));
    let base = Base((0..layers).map(|n| Slot::linear(format!("layer{n}"), out, inner)).collect(), data);
    let update = Arc::new(case.update(out, inner, rank));
    let adapter = |layers: &mut dyn Iterator<Item = usize>| Adapter {
        name: "a".into(),
        layers: layers.map(|n| (format!("layer{n}"), update.clone())).collect(),
    };
    let (all, one) = (adapter(&mut (0..layers)), adapter(&mut (0..1)));
    let of_one = packed_bytes(&base, [&one]);
    assert!(of_one >= ((out + inner) * rank * 4) as u64 && of_one < LAID_OUT as u64, "{of_one}");
    let at_once = packed_bytes(&base, [&all]);
    assert!(at_once <= LAID_OUT as u64 && at_once > LAID_OUT as u64 - of_one, "{at_once} of {of_one} each");
    let options = FuseOptions::new(FuseTarget::Storage);
    let together = fuse_with(&base, &[(&all, 1.0)], &options).unwrap();
    let alone = fuse_with(&base, &[(&one, 1.0)], &options).unwrap();
    assert_eq!((together.weights.len(), together.report.slots.len()), (layers, layers));
    assert!(together.weights.values().all(|weight| *weight == alone.weights["layer0.weight"]));
    assert!(together.report.slots.iter().all(|slot| slot.rounding == alone.report.slots[0].rounding));
    assert_eq!(batches([LAID_OUT + 1, 1, LAID_OUT, 0].into_iter()), [0..1, 1..2, 2..4]);
}

#[test]
fn fuse_that_is_cancelled_or_finds_no_memory_gives_an_error_and_the_pool_its_buffer_back() {
    let mut case = Case::new(10);
    let (out, inner) = (16, 16);
    let update = case.update(out, inner, 1);
    let data = stored(Dtype::Bf16, &case.values(out * inner, 2.0));
    let layer = slot(out, inner, false, None);
    let pool = Pool::with_limit(600);
    let fuse = |pool: &Pool, stop: bool| {
        let cancelled = || stop;
        let options =
            FuseOptions { pool: Some(pool), cancelled: Some(&cancelled), ..FuseOptions::new(FuseTarget::Storage) };
        run_on(Dtype::Bf16, &[out, inner], &data, &layer, vec![term(&update, 1.0)], &options)
    };
    assert!(matches!(fuse(&pool, true), Err(FuseError::Cancelled)));
    assert_eq!((pool.held(), pool.free()), (512, 512), "kept for the next fuse");
    let kept = fuse(&pool, false).unwrap();
    assert!(matches!(fuse(&pool, false), Err(FuseError::Memory { needed: 512, .. })));
    let again = kept.clone();
    drop(kept);
    assert!(fuse(&pool, false).is_err(), "a clone still uses the buffer");
    drop(again);
    assert!(fuse(&pool, false).is_ok());
}

#[test]
fn fuse_of_two_adapters_rounds_once() {
    let mut case = Case::new(6);
    let (out, inner) = (8, 40);
    let data = stored(Dtype::Bf16, &vec![1.0; out * inner]);
    let half_step = |v: f32| {
        let (down, up) = (Array2::from_elem((1, inner), 1.0), Array2::from_elem((out, 1), v));
        Update::from(LowRank { down, up, alpha: 1.0 })
    };
    // Each alone is below half of bf16's step at 1 (2⁻⁷), together they are above it.
    let (a, b) = (half_step(0.003), half_step(0.003));
    let layer = slot(out, inner, false, None);
    let (one, report) = run(Dtype::Bf16, &[out, inner], &data, &layer, vec![term(&a, 1.0)], FuseTarget::Storage);
    assert_eq!(one, data);
    assert_eq!((report.rounding.survived(), report.rounding.relative_error(), report.unchanged()), (0.0, 1.0, 1.0));
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
    let error = check_term(&layer, &term(&wrong, 1.0)).unwrap_err().to_string();
    assert!(error.contains("slot `layer`: expected down [rank, 4] and up [8, rank], found down [1, 5]"), "{error}");
    let wrong = Update::Full(case.matrix(8, 5, 1.0));
    let error = check_term(&layer, &term(&wrong, 1.0)).unwrap_err();
    assert!(matches!(error, FuseError::ShapeMismatch { .. }));
    assert!(error.to_string().contains("slot `layer`: expected a difference [8, 4], found [8, 5]"), "{error}");
    let mut bad = case.factors(8, 4, 1);
    bad.up[[3, 0]] = f32::NAN;
    assert!(matches!(check_term(&layer, &term(&bad.into(), 1.0)), Err(FuseError::NotFinite { factor: "up", .. })));
    let good = case.factors(8, 4, 1);
    let huge = LowRank { alpha: 3e38, ..good.clone() }.into();
    assert!(check_term(&layer, &term(&huge, 1.0)).is_ok());
    assert!(matches!(check_term(&layer, &term(&huge, 2.0)), Err(FuseError::NotFinite { .. })));
    for good in [good.into(), Update::Full(case.matrix(8, 4, 1.0))] {
        assert!(check_term(&layer, &term(&good, 1.0)).is_ok());
        let endless = check_term(&layer, &term(&good, f32::INFINITY));
        assert!(matches!(endless, Err(FuseError::NotFinite { factor: "strength", .. })));
    }
}

#[test]
fn fuse_beyond_the_range_of_f16_is_an_error() {
    let factor = |shape| Array2::from_elem(shape, 300.0);
    let product = LowRank { down: factor((1, 2)), up: factor((2, 1)), alpha: 1.0 };
    let updates = [product.into(), Update::Full(Array2::from_elem((2, 2), 9e4))];
    let data = stored(Dtype::F16, &[1.0; 4]);
    let layer = slot(2, 2, false, None);
    for (simd, big) in Simd::available().into_iter().flat_map(|simd| updates.each_ref().map(|big| (simd, big))) {
        let into = |target| {
            let options = FuseOptions { simd, ..FuseOptions::new(target) };
            run_on(Dtype::F16, &[2, 2], &data, &layer, vec![term(big, 1.0)], &options)
        };
        assert!(matches!(into(FuseTarget::Storage), Err(FuseError::Overflow { .. })), "{simd:?}");
        assert!(into(FuseTarget::F32).is_ok());
    }
}
