//! What values a model takes: extremes, percentiles, what is not finite.

use indexmap::IndexMap;
use serde::Serialize;

/// Bins of a histogram per factor of two.
const BINS_PER_OCTAVE: usize = 8;
/// Magnitudes below 2⁻⁴⁰ fall into the first bin, those from 2⁴⁰ on into the last.
const FIRST_EXPONENT: i32 = -40;
const OCTAVES: usize = 80;
const BINS: usize = OCTAVES * BINS_PER_OCTAVE;

/// The smallest magnitude that float16 holds with full precision.
pub const FLOAT16_NORMAL: f32 = 6.103_515_6e-5;

/// The values that one tensor took. 5 KB, however many there were.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// Values seen.
    pub count: u64,
    /// Those that are not finite.
    pub non_finite: u64,
    /// Smallest finite value; infinite if there was none.
    pub min: f32,
    /// Largest finite value; negatively infinite if there was none.
    pub max: f32,
    /// Values other than zero that are smaller than [`FLOAT16_NORMAL`]: float16 loses bits of them, or all.
    pub subnormal: u64,
    /// Index of the label under which the largest magnitude was seen first.
    pub largest_under: usize,
    /// Index of the label under which the first value that is not finite was seen.
    pub non_finite_under: Option<usize>,
    histogram: Vec<u64>,
}

impl Default for Range {
    fn default() -> Self {
        Self {
            count: 0,
            non_finite: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            subnormal: 0,
            largest_under: 0,
            non_finite_under: None,
            histogram: vec![0; BINS],
        }
    }
}

impl Range {
    /// The largest finite magnitude; 0 if there is none.
    pub fn largest(&self) -> f32 {
        if self.min > self.max { 0.0 } else { self.min.abs().max(self.max.abs()) }
    }

    /// The magnitude that a part `share` (0 to 1) of the finite values does not exceed.
    ///
    /// It is the upper edge of a bin of a histogram with eight bins per factor of two, so at most an eighth too large, and
    /// never beyond the largest magnitude; below 2⁻⁴⁰ it is 2⁻⁴⁰.
    pub fn percentile(&self, share: f64) -> f32 {
        let finite = self.count - self.non_finite;
        let rank = (share.clamp(0.0, 1.0) * finite as f64).ceil() as u64;
        let mut seen = 0;
        for (bin, count) in self.histogram.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return if bin + 1 == BINS { self.largest() } else { upper_edge(bin).min(self.largest()) };
            }
        }
        self.largest()
    }

    fn observe(&mut self, values: &[f32], label: usize) {
        let before = self.largest();
        for &value in values {
            if !value.is_finite() {
                self.non_finite += 1;
                self.non_finite_under.get_or_insert(label);
                continue;
            }
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            let magnitude = value.abs();
            self.subnormal += u64::from(magnitude > 0.0 && magnitude < FLOAT16_NORMAL);
            self.histogram[bin(magnitude)] += 1;
        }
        self.count += values.len() as u64;
        if self.largest() > before {
            self.largest_under = label;
        }
    }

    fn merge(&mut self, other: &Self, labels: &[usize]) {
        if other.largest() > self.largest() {
            self.largest_under = labels[other.largest_under];
        }
        self.count += other.count;
        self.non_finite += other.non_finite;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.subnormal += other.subnormal;
        self.non_finite_under = self.non_finite_under.or(other.non_finite_under.map(|label| labels[label]));
        for (mine, theirs) in self.histogram.iter_mut().zip(&other.histogram) {
            *mine += theirs;
        }
    }
}

/// Exponent and the three highest bits of the fraction, counted from the first bin.
fn bin(magnitude: f32) -> usize {
    let place = i64::from(magnitude.to_bits() >> 20) - i64::from((FIRST_EXPONENT + 127) << 3);
    place.clamp(0, BINS as i64 - 1) as usize
}

fn upper_edge(bin: usize) -> f32 {
    f32::from_bits((bin as u32 + 1 + (((FIRST_EXPONENT + 127) as u32) << 3)) << 20)
}

/// The values that a model's tensors took, over many inputs and strengths of adapters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges {
    /// What was run, in order: `case_0.safetensors with adapters at strength 1`.
    pub labels: Vec<String>,
    values: IndexMap<String, Range>,
}

impl Ranges {
    /// What is observed from now on was seen under `label`.
    pub fn begin(&mut self, label: impl Into<String>) {
        self.labels.push(label.into());
    }

    /// Adds the values of a tensor. Costs one pass over them.
    pub fn observe(&mut self, name: &str, values: &[f32]) {
        let label = self.labels.len().saturating_sub(1);
        match self.values.get_mut(name) {
            Some(range) => range.observe(values, label),
            None => self.values.entry(name.to_owned()).or_default().observe(values, label),
        }
    }

    /// Adds what was seen elsewhere, behind what is here.
    pub fn merge(&mut self, other: &Self) {
        let labels: Vec<usize> = (0..other.labels.len().max(1)).map(|label| label + self.labels.len()).collect();
        self.labels.extend_from_slice(&other.labels);
        for (name, range) in &other.values {
            self.values.entry(name.clone()).or_default().merge(range, &labels);
        }
    }

    /// What is known of a tensor.
    pub fn get(&self, name: &str) -> Option<&Range> {
        self.values.get(name)
    }

    /// All tensors, in the order in which they were first seen.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Range)> {
        self.values.iter().map(|(name, range)| (name.as_str(), range))
    }

    /// True if nothing was observed.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The label at `index`, or a stand-in for values that were observed without one.
    pub fn label(&self, index: usize) -> &str {
        self.labels.get(index).map_or("the given values", String::as_str)
    }

    /// One row per tensor, for `--json` and for files.
    pub fn table(&self) -> Vec<RangeRow<'_>> {
        self.iter()
            .map(|(name, range)| RangeRow {
                name,
                count: range.count,
                non_finite: range.non_finite,
                min: finite(range.min),
                max: finite(range.max),
                largest: range.largest(),
                p99: range.percentile(0.99),
                p99_9: range.percentile(0.999),
                p99_99: range.percentile(0.9999),
                subnormal_share: range.subnormal as f64 / range.count.max(1) as f64,
                largest_under: self.label(range.largest_under),
            })
            .collect()
    }
}

fn finite(value: f32) -> Option<f32> {
    value.is_finite().then_some(value)
}

/// A tensor's row in the table of ranges. Magnitudes are of finite values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RangeRow<'a> {
    /// The tensor.
    pub name: &'a str,
    /// Values seen.
    pub count: u64,
    /// Those that are not finite.
    pub non_finite: u64,
    /// Smallest value.
    pub min: Option<f32>,
    /// Largest value.
    pub max: Option<f32>,
    /// Largest magnitude.
    pub largest: f32,
    /// Magnitude that 99 % do not exceed, at most an eighth too large.
    pub p99: f32,
    /// The same of 99.9 %.
    pub p99_9: f32,
    /// The same of 99.99 %.
    pub p99_99: f32,
    /// Part of the values that float16 does not hold with full precision, zeros apart.
    pub subnormal_share: f64,
    /// What was run when the largest magnitude was seen.
    pub largest_under: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_known_values_are_exact_and_percentiles_within_an_eighth() {
        let mut ranges = Ranges::default();
        ranges.begin("one");
        let values: Vec<f32> = (1..=10_000).map(|i| i as f32 * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        ranges.observe("x", &values);
        let range = ranges.get("x").unwrap();
        assert_eq!((range.min, range.max, range.largest()), (-9999.0, 10_000.0, 10_000.0));
        for (share, exact) in [(0.5, 5000.0f32), (0.99, 9900.0), (0.999, 9990.0), (1.0, 10_000.0)] {
            let found = range.percentile(share);
            assert!(found >= exact && found <= exact * 1.125, "{share}: {found}");
        }
    }

    #[test]
    fn ranges_tell_non_finite_and_subnormal_values_apart() {
        let mut ranges = Ranges::default();
        ranges.begin("one");
        ranges.observe("x", &[1.0, 0.0]);
        ranges.begin("two");
        ranges.observe("x", &[f32::NAN, f32::NEG_INFINITY, 1e-5, -6e-8, 0.5]);
        let range = ranges.get("x").unwrap();
        assert_eq!((range.count, range.non_finite, range.subnormal), (7, 2, 2));
        assert_eq!((range.non_finite_under, range.largest_under), (Some(1), 0));
    }

    #[test]
    fn ranges_of_extreme_magnitudes_stay_within_the_histogram() {
        let mut ranges = Ranges::default();
        ranges.observe("x", &[0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, -f32::MAX]);
        let range = ranges.get("x").unwrap();
        assert_eq!(range.percentile(1.0), f32::MAX);
        assert_eq!(range.percentile(0.5), upper_edge(0));
        assert_eq!(Range::default().percentile(0.99), 0.0);
    }

    #[test]
    fn ranges_merged_are_those_of_all_values_in_one() {
        let (mut whole, mut first, mut second) = (Ranges::default(), Ranges::default(), Ranges::default());
        for (label, values) in [("a", [1.0, -3.0]), ("b", [7.0, f32::INFINITY])] {
            whole.begin(label);
            whole.observe("x", &values);
        }
        first.begin("a");
        first.observe("x", &[1.0, -3.0]);
        second.begin("b");
        second.observe("x", &[7.0, f32::INFINITY]);
        first.merge(&second);
        assert_eq!(first, whole);
        assert_eq!(first.label(first.get("x").unwrap().largest_under), "b");
    }
}
