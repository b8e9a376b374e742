//! Which weights an engine stores, and in which type.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use v2l_graphs::{DataType, Initializer, Model, TensorData, tables};
use v2l_runtime::engine::manifest::RESERVED_PREFIX;
use v2l_runtime::tensor::Dtype;

use crate::ExportError;
use crate::engine_writer::WeightSource;
use crate::finite::{Watch, Watched};
use crate::types::{from_runtime, to_runtime};

/// Weight bytes as an engine source.
pub(crate) struct Streamed {
    pub(crate) data: TensorData,
    /// The stored type, if NaN and infinity are refused. A graph may have either among its constants; a layer's matrix may not.
    pub(crate) finite: Option<DataType>,
}

impl WeightSource for Streamed {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(dtype) = self.finite else { return self.data.write_to(out) };
        let watch = Watch::default();
        watch.begin(dtype);
        self.data.write_to(&mut Watched { inner: out, watch: watch.clone() })?;
        match watch.end() {
            None => Ok(()),
            Some(at) => {
                let reason = format!(
                    "element {at} is NaN or infinite in {dtype}; expected finite numbers. Look for it in the model, or store another type"
                );
                Err(io::Error::new(io::ErrorKind::InvalidData, reason))
            }
        }
    }
}

/// One weight as it will be stored.
pub(crate) struct StoredWeight {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: TensorData,
    /// It may be stored in another type than the source's: a matrix, and no table.
    narrows: bool,
}

/// The union of the graphs' weights, each in its storage type: for matrices that of `planned`, else `storage`, else
/// their own. Vectors and tables keep their own, and f32 is kept what a graph hands out as it is.
pub(crate) fn plan_weights<'a>(
    models: impl Iterator<Item = (&'a String, &'a Model)>,
    storage: Option<Dtype>,
    planned: &BTreeMap<String, DataType>,
) -> Result<BTreeMap<String, StoredWeight>, ExportError> {
    let models: Vec<(&String, &Model)> = models.collect();
    let tables = tables(models.iter().map(|(_, model)| *model));
    let handed_out: HashSet<&str> =
        models.iter().flat_map(|(_, model)| &model.graph.outputs).map(|output| output.name.as_str()).collect();
    let mut union: BTreeMap<&str, (&str, &Initializer)> = BTreeMap::new();
    for (graph, model) in &models {
        for (name, weight) in model.graph.initializers.iter().filter(|(_, w)| w.external) {
            let fail = |reason: String| Err(ExportError::Graph { graph: (*graph).clone(), reason });
            if name.starts_with(RESERVED_PREFIX) {
                return fail(format!(
                    "weight `{name}`: names under `{RESERVED_PREFIX}` are the engine's own; rename it"
                ));
            }
            match union.get(name.as_str()) {
                Some((other, known)) if (known.dtype, &known.shape) != (weight.dtype, &weight.shape) => {
                    return fail(format!(
                        "weight `{name}` is {} {:?}, but {} {:?} in graph `{other}`; \
                         graphs of one component share their weights",
                        weight.dtype, weight.shape, known.dtype, known.shape
                    ));
                }
                Some(_) => {}
                None => drop(union.insert(name, (graph, weight))),
            }
        }
    }
    Ok(union
        .into_iter()
        .map(|(name, (_, weight))| {
            let own = weight.data.widened_from().filter(|t| *t != DataType::Double).unwrap_or(weight.dtype);
            let matrix = weight.dtype == DataType::Float && weight.shape.len() >= 2;
            let narrows = matrix && !tables.contains(name) && !handed_out.contains(name);
            let target = match narrows {
                true => planned.get(name).copied().or(storage.map(from_runtime)).unwrap_or(own),
                false if handed_out.contains(name) => weight.dtype,
                false => own,
            };
            let data = weight.data.clone().converted(weight.dtype, target);
            let shape = weight.shape.clone();
            (name.to_owned(), StoredWeight { dtype: to_runtime(target), shape, data, narrows })
        })
        .collect())
}

/// The type in which the matrices of the source are stored: f16 or bf16 if all have that type, else f32. Tables do not
/// count.
pub(crate) fn source_type(models: &[(String, Model)]) -> DataType {
    let tables = tables(models.iter().map(|(_, model)| model));
    let weights = models.iter().flat_map(|(_, model)| &model.graph.initializers);
    let mut types = weights
        .filter(|(name, w)| {
            w.external && w.dtype == DataType::Float && w.shape.len() >= 2 && !tables.contains(name.as_str())
        })
        .map(|(_, w)| w.data.widened_from().filter(|t| t.size() == 2).unwrap_or(DataType::Float));
    match types.next() {
        Some(first) if types.all(|t| t == first) => first,
        _ => DataType::Float,
    }
}

/// The type in which most of the matrices' elements are stored, that of tables if there is nothing else; f32 if there
/// is no matrix.
pub(crate) fn matrix_type(weights: &BTreeMap<String, StoredWeight>) -> Dtype {
    let matrices = || weights.values().filter(|w| w.shape.len() >= 2 && w.dtype.is_float());
    let most = |narrows: bool| {
        let elements = |dtype: Dtype| {
            let of_type = matrices().filter(|w| w.dtype == dtype && w.narrows == narrows);
            of_type.map(|w| w.data.len() / dtype.size()).sum::<usize>()
        };
        [Dtype::F32, Dtype::Bf16, Dtype::F16]
            .into_iter()
            .max_by_key(|dtype| elements(*dtype))
            .filter(|d| elements(*d) > 0)
    };
    most(true).or_else(|| most(false)).unwrap_or(Dtype::F32)
}
