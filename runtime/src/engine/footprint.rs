//! What runs of a stored graph take besides weights, by the formulas that the compiler left in the manifest.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::engine::session::{Dim, Port};
use crate::tensor::Dtype;

/// A sum of products: a factor, and the extents, by their index, that it is multiplied by.
pub type Sum = Vec<(i64, Vec<usize>)>;

/// What an extent of a [`Footprint`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// An extent of the whole graph's inputs, by its name.
    Input(String),
    /// Known only when the graph has run.
    Open,
    /// Quotient, rounded down.
    Quotient(Sum, i64),
    /// Remainder.
    Remainder(Sum, i64),
    /// The larger of two.
    Larger(Sum, Sum),
    /// The smaller of two.
    Smaller(Sum, Sum),
}

/// What a run of a stored graph takes, as formulas over the extents of its inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Extents that the sums name; each depends on earlier ones only.
    pub extents: Vec<Extent>,
    /// Bytes of the values that live at once: the largest of these.
    pub peaks: Vec<Sum>,
    /// The shape of each output, in graph order, where it is known.
    pub outputs: Vec<Option<Vec<Sum>>>,
    /// Values of which nothing is known, and which no sum counts.
    pub unknown: usize,
}

/// The footprints of a stored graph's variants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprints {
    /// Of the variant whose weights are all f32.
    pub f32: Footprint,
    /// Of the variant whose weights have their stored type; as the other if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Footprint>,
}

/// Shapes by the names of inputs or outputs.
pub type Shapes = HashMap<String, Vec<usize>>;

/// What a run of a graph takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Bytes of values that live at once inside of a run.
    pub activations: u64,
    /// Bytes of outputs that precomputed graphs keep for the runs to come.
    pub kept: u64,
    /// Bytes of the outputs, which callers get.
    pub outputs: u64,
    /// Their shapes, where they are known.
    pub shapes: Shapes,
    /// False if the formulas leave values out: then more is taken.
    pub complete: bool,
}

impl Demand {
    /// Bytes that lie beside what is computed with: what precomputed graphs keep, and the outputs.
    pub const fn data(&self) -> u64 {
        self.kept.saturating_add(self.outputs)
    }
}

impl Footprint {
    /// What each extent is; files may hold anything, so nothing here can fail.
    fn values(&self, given: &HashMap<&str, usize>) -> Vec<f64> {
        let mut values: Vec<f64> = Vec::with_capacity(self.extents.len());
        for extent in &self.extents {
            let of = |sum: &Sum| evaluate(sum, &values);
            let value = match extent {
                Extent::Input(name) => given.get(&name[..]).map_or(1.0, |&extent| extent as f64),
                Extent::Open => 1.0,
                Extent::Quotient(a, n) => (of(a) / *n as f64).floor(),
                Extent::Remainder(a, n) => of(a).rem_euclid(*n as f64),
                Extent::Larger(a, b) => of(a).max(of(b)),
                Extent::Smaller(a, b) => of(a).min(of(b)),
            };
            values.push(value);
        }
        values
    }

    /// Bytes at once, and the shapes of the outputs.
    pub(super) fn at(&self, given: &HashMap<&str, usize>) -> (u64, Vec<Option<Vec<usize>>>) {
        let values = self.values(given);
        let peak = self.peaks.iter().map(|sum| evaluate(sum, &values)).fold(0.0, f64::max);
        let shape = |sums: &Vec<Sum>| sums.iter().map(|sum| evaluate(sum, &values) as usize).collect();
        (peak as u64, self.outputs.iter().map(|output| output.as_ref().map(shape)).collect())
    }
}

fn evaluate(sum: &Sum, values: &[f64]) -> f64 {
    let product =
        |factors: &Vec<usize>| factors.iter().map(|&f| values.get(f).copied().unwrap_or(1.0)).product::<f64>();
    sum.iter().map(|(n, factors)| *n as f64 * product(factors)).sum()
}

/// The extents that ports name, by the shapes that they are given; the first port that names one counts.
pub(super) fn bound<'a>(ports: impl Iterator<Item = &'a Port>, shapes: &Shapes) -> HashMap<&'a str, usize> {
    let mut given = HashMap::new();
    for port in ports {
        for (dim, &extent) in port.shape.iter().zip(shapes.get(&port.name).into_iter().flatten()) {
            if let Dim::Symbol(name) = dim {
                given.entry(&name[..]).or_insert(extent);
            }
        }
    }
    given
}

/// Bytes of a tensor, or as many as can be counted.
pub(crate) fn tensor_bytes(dtype: Dtype, shape: &[usize]) -> u64 {
    shape.iter().fold(dtype.size() as u64, |bytes, &extent| bytes.saturating_mul(extent as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(terms: &[(i64, &[usize])]) -> Sum {
        terms.iter().map(|(n, factors)| (*n, factors.to_vec())).collect()
    }

    #[test]
    fn footprint_takes_the_largest_sum_at_the_extents_that_are_given() {
        let footprint = Footprint {
            extents: vec![
                Extent::Input("n".into()),
                Extent::Input("m".into()),
                Extent::Quotient(sum(&[(1, &[0]), (1, &[])]), 2),
                Extent::Larger(sum(&[(1, &[1])]), sum(&[(3, &[])])),
            ],
            peaks: vec![sum(&[(4, &[0, 2])]), sum(&[(8, &[3]), (100, &[])])],
            outputs: vec![Some(vec![sum(&[(2, &[2])]), sum(&[(7, &[])])]), None],
            unknown: 0,
        };
        let at = |n: usize, m: usize| footprint.at(&HashMap::from([("n", n), ("m", m)]));
        assert_eq!(at(9, 1), (180, vec![Some(vec![10, 7]), None]));
        assert_eq!(at(1, 50).0, 500);
        let text = serde_json::to_string(&footprint).unwrap();
        assert_eq!(serde_json::from_str::<Footprint>(&text).unwrap(), footprint);
    }

    #[test]
    fn footprint_of_a_hostile_file_gives_a_number() {
        let extents = vec![Extent::Quotient(sum(&[(i64::MAX, &[7, 0])]), 0), Extent::Remainder(sum(&[(1, &[0])]), 0)];
        let peaks = vec![sum(&[(i64::MAX, &[0, 0, 1, 99]), (i64::MIN, &[1, 1])])];
        let footprint = Footprint { extents, peaks, outputs: vec![Some(vec![sum(&[(i64::MIN, &[1])])])], unknown: 0 };
        let (_, outputs) = footprint.at(&HashMap::new());
        assert_eq!(outputs.len(), 1);
    }
}
