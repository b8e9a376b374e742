use ndarray::{Array2, arr2};

use super::*;
use crate::engine::manifest::Slot;
use crate::lora::adapter::{Adapter, LowRank, Update};

fn update(out: usize, inputs: usize, rank: usize, seed: usize) -> LowRank {
    let value = |i: usize, j: usize| (((i * 31 + j * 17 + seed * 7) % 23) as f32 - 11.0) / 9.0;
    LowRank {
        down: Array2::from_shape_fn((rank, inputs), |(i, j)| value(i + 2, j)),
        up: Array2::from_shape_fn((out, rank), |(i, j)| value(j, 3 * i + 1)),
        alpha: rank as f32 * 0.5,
    }
}

fn adapter(name: &str, layers: &[(&str, LowRank)]) -> Adapter {
    let layers = layers.iter().map(|(slot, update)| ((*slot).to_owned(), update.clone().into()));
    Adapter { name: name.to_owned(), layers: layers.collect() }
}

fn delta(update: &Update) -> Array2<f64> {
    let wide = |factor: &Array2<f32>| factor.mapv(f64::from);
    let factors = update.to_low_rank();
    wide(&factors.up).dot(&wide(&factors.down)) * f64::from(factors.scale())
}

fn canonical(factors: &LowRank) -> Result<Canonical, AlgebraError> {
    Canonical::of(&factors.clone().into(), "a", "q")
}

fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    let norm = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>().sqrt();
    norm(&(a - b)) / norm(b).max(f64::MIN_POSITIVE)
}

#[test]
fn canonical_form_does_not_depend_on_the_factors() {
    let first = update(8, 6, 3, 1);
    // The same update from other factors: an invertible matrix and its inverse between them.
    let (mix, inverse) = (
        arr2(&[[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -4.0]]),
        arr2(&[[0.5, -0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -0.25]]),
    );
    let second = LowRank { up: first.up.dot(&mix), down: inverse.dot(&first.down), alpha: first.alpha };
    let [a, b] = [&first, &second].map(|update| canonical(update).unwrap());
    for (x, y) in a.values.iter().zip(&b.values) {
        assert!((x / y - 1.0).abs() < 1e-6, "{x} {y}");
    }
    let (a, b) = (a.factors(3), b.factors(3));
    assert!(distance(&a.up.mapv(f64::from), &b.up.mapv(f64::from)) < 1e-5);
    assert!(distance(&a.down.mapv(f64::from), &b.down.mapv(f64::from)) < 1e-5);
}

#[test]
fn canonical_form_of_its_own_factors_is_the_same() {
    for (out, inputs, rank) in [(9, 7, 4), (3, 8, 5)] {
        let once = canonical(&update(out, inputs, rank, 2)).unwrap().factors(rank);
        let twice = canonical(&once).unwrap().factors(rank);
        assert!(distance(&twice.up.mapv(f64::from), &once.up.mapv(f64::from)) < 1e-6);
        assert!(distance(&twice.down.mapv(f64::from), &once.down.mapv(f64::from)) < 1e-6);
    }
}

#[test]
fn recompress_says_what_a_lower_rank_keeps() {
    let whole = adapter("a", &[("q", update(9, 7, 4, 3))]);
    let canonical = Canonical::of(&whole.layers["q"], "a", "q").unwrap();
    let (cut, kept) = recompress(&whole, 2).unwrap();
    assert_eq!(cut.layers["q"].rank(), 2);
    let error = distance(&delta(&cut.layers["q"]), &delta(&whole.layers["q"]));
    assert!((1.0 - kept - error * error).abs() < 1e-6, "{kept} {error}");
    assert!((kept - canonical.energy(2)).abs() < 1e-12 && kept < 0.999);
    let (all, kept) = recompress(&whole, 64).unwrap();
    assert_eq!((all.layers["q"].rank(), kept), (4, 1.0));
}

#[test]
fn canonical_form_of_zero_is_zero() {
    let zero = LowRank { down: Array2::zeros((2, 5)), up: Array2::zeros((4, 2)), alpha: 2.0 };
    let found = canonical(&zero).unwrap();
    assert_eq!((found.numerical_rank(), found.norm(), found.energy(1)), (0, 0.0, 1.0));
    assert_eq!(found.factors(2).up, zero.up);
    let none = LowRank { down: Array2::zeros((0, 5)), up: Array2::zeros((4, 0)), alpha: 1.0 };
    assert_eq!(canonical(&none).unwrap().values, Vec::<f64>::new());
}

#[test]
fn what_cannot_be_worked_on_is_refused_by_name() {
    let wide = LowRank { down: Array2::zeros((MAX_RANK + 1, 1)), up: Array2::zeros((1, MAX_RANK + 1)), alpha: 1.0 };
    let error = Canonical::of(&wide.into(), "a.safetensors", "q").unwrap_err();
    assert!(error.to_string().starts_with("adapter `a.safetensors`, slot `q`: rank 1025"), "{error}");
    let mut damaged = update(3, 3, 1, 1);
    damaged.up[[0, 0]] = f32::NAN;
    assert!(matches!(canonical(&damaged), Err(AlgebraError::NotFinite { .. })));
    let (a, b) = (adapter("a", &[("q", update(3, 4, 1, 1))]), adapter("b", &[("q", update(4, 4, 1, 1))]));
    let error = merge("sum", &[(&a, 1.0), (&b, 1.0)]).unwrap_err();
    assert!(matches!(error, AlgebraError::Shape { expected: [3, 4], found: [4, 4], .. }), "{error}");
    assert!(matches!(compose(&[(&a, 1.0), (&b, 1.0)], Composition::Orthogonal), Err(AlgebraError::Shape { .. })));
    assert!(matches!(merge("sum", &[(&a, f32::INFINITY)]), Err(AlgebraError::NotFinite { .. })));
}

#[test]
fn average_of_factors_is_not_the_average_of_updates() {
    let (a, b) = (update(9, 7, 2, 1), update(9, 7, 2, 5));
    let (first, second) = (adapter("a", &[("q", a.clone())]), adapter("b", &[("q", b.clone())]));
    let sum = merge("sum", &[(&first, 0.5), (&second, 0.5)]).unwrap();
    let expected = (delta(&first.layers["q"]) + delta(&second.layers["q"])) * 0.5;
    assert!(distance(&delta(&sum.layers["q"]), &expected) < 1e-7);
    let averaged = LowRank { up: (&a.up + &b.up) * 0.5, down: (&a.down + &b.down) * 0.5, alpha: a.alpha };
    assert!(distance(&delta(&averaged.into()), &expected) > 0.1);
}

#[test]
fn interpolation_ends_at_its_ends() {
    let (a, b) = (adapter("a", &[("q", update(5, 6, 2, 1))]), adapter("b", &[("q", update(5, 6, 2, 4))]));
    for (strengths, end) in [([1.0, 0.0], &a), ([0.0, 1.0], &b)] {
        let sum = merge("sum", &[(&a, strengths[0]), (&b, strengths[1])]).unwrap();
        let alone = merge("sum", &[(end, 1.0)]).unwrap();
        assert_eq!(delta(&sum.layers["q"]), delta(&alone.layers["q"]));
    }
}

#[test]
fn norms_are_made_equal_in_every_layer_up_to_the_bound() {
    let (small, large) = (update(6, 5, 2, 1), LowRank { alpha: 3.0, ..update(6, 5, 2, 4) });
    let a = adapter("a", &[("q", small.clone()), ("k", small.clone())]);
    let b = adapter("b", &[("q", large.clone()), ("k", large.clone()), ("v", large)]);
    let options = NormConsistency { preserve_strength: false, ..NormConsistency::default() };
    let found = compose(&[(&a, 2.0), (&b, 1.0)], Composition::Norm(options)).unwrap();
    let norm = |at: usize, slot: &str, strength: f64| {
        Canonical::of(&found[at].adapter.layers[slot], "", slot).unwrap().norm() * strength
    };
    for slot in ["q", "k"] {
        let (first, second) = (norm(0, slot, 2.0), norm(1, slot, 1.0));
        assert!((first / second - 1.0).abs() < 1e-6, "{first} {second}");
    }
    assert_eq!(found[1].adapter.layers["v"], b.layers["v"], "a layer of one adapter stays");
    // Whole strengths stay: the factors of an adapter's layers have a geometric mean of 1.
    let kept = compose(&[(&a, 2.0), (&b, 1.0)], Composition::Norm(NormConsistency::default())).unwrap();
    let alpha = |adapter: &Adapter, slot: &str| adapter.layers[slot].to_low_rank().alpha;
    let factors: f64 =
        ["q", "k"].iter().map(|slot| f64::from(alpha(&kept[0].adapter, slot) / alpha(&a, slot)).ln()).sum();
    assert!(factors.abs() < 1e-6, "{factors}");
    // The bound.
    let far = adapter("far", &[("q", LowRank { alpha: 1e6, ..small })]);
    let found = compose(&[(&a, 1.0), (&far, 1.0)], Composition::Norm(options)).unwrap();
    assert!((alpha(&found[1].adapter, "q") / 1e6 - 0.25).abs() < 1e-6);
    assert!((found[1].kept - 1.0 / 16.0).abs() < 1e-6, "{}", found[1].kept);
}

#[test]
fn orthogonal_updates_have_nothing_in_common() {
    let a = adapter("a", &[("q", update(9, 7, 2, 1))]);
    let b = adapter("b", &[("q", update(9, 7, 3, 5))]);
    let c = adapter("c", &[("q", update(9, 7, 2, 8))]);
    let found = compose(&[(&a, 1.0), (&b, 0.5), (&c, 1.0)], Composition::Orthogonal).unwrap();
    assert_eq!((&found[0].adapter, found[0].kept), (&a, 1.0), "the first keeps everything");
    assert!(found[1..].iter().all(|composed| composed.kept > 0.0 && composed.kept < 1.0));
    let slots = [Slot::linear("q", 9, 7)];
    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
        let pair = compare(&slots, (&found[i].adapter, 1.0), (&found[j].adapter, 1.0)).unwrap();
        assert!(pair.slots[0].output < 1e-10 && pair.slots[0].cosine.abs() < 1e-6, "{:?}", pair.slots[0]);
    }
    // The same adapter twice: nothing is left. One of strength 0 takes nothing away.
    let twice = compose(&[(&a, 1.0), (&a, 1.0)], Composition::Orthogonal).unwrap();
    assert!(twice[1].kept < 1e-10, "{}", twice[1].kept);
    let off = compose(&[(&a, 0.0), (&b, 1.0)], Composition::Orthogonal).unwrap();
    assert_eq!((&off[1].adapter, off[1].kept), (&b, 1.0));
}

#[test]
fn adapters_that_act_alike_in_shallow_blocks_disturb_each_other() {
    let slots: Vec<Slot> = (0..6).map(|block| Slot::linear(format!("blocks.{block}.q"), 64, 64)).collect();
    let basis = |at: usize| LowRank {
        down: Array2::from_shape_fn((1, 64), |(_, j)| if j == at { 1.0 } else { 0.0 }),
        up: Array2::from_shape_fn((64, 1), |(i, _)| if i == at { 2.0 } else { 0.0 }),
        alpha: 1.0,
    };
    let of = |ats: [usize; 6]| {
        let layers = ats.iter().enumerate().map(|(block, &at)| (format!("blocks.{block}.q"), basis(at).into()));
        Adapter { name: "x".to_owned(), layers: layers.collect() }
    };
    // Alike in the first two of six blocks, the shallow third.
    let (a, b) = (of([1, 2, 3, 4, 5, 6]), of([1, 2, 30, 40, 50, 60]));
    let found = compare(&slots, (&a, 1.0), (&b, -1.0)).unwrap();
    assert!(found.disturbing);
    assert_eq!((found.shallow.slots, found.deep.slots), (2, 4));
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
    near(found.shallow.output, 1.0);
    near(found.deep.output, 0.0);
    // Of opposite strengths.
    near(found.slots[0].cosine, -1.0);
    assert_eq!(found.slots[0].random_output, 1.0 / 64.0);
    assert_eq!(found.modules["blocks.*.q"].slots, 6);
    assert!(matches!(found.worst.as_deref(), Some("blocks.0.q" | "blocks.1.q")));
    // Alike in the deep ones only.
    let (a, b) = (of([1, 2, 3, 4, 5, 6]), of([10, 20, 3, 4, 5, 6]));
    assert!(!compare(&slots, (&a, 1.0), (&b, 1.0)).unwrap().disturbing);
}
