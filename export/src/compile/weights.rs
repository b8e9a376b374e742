//! Which weights an engine stores, and in which type.

use std::collections::BTreeMap;
use std::io::{self, Write};

use v2l_graphs::{DataType, Initializer, Model, TensorData};
use v2l_runtime::engine::manifest::RESERVED_PREFIX;
use v2l_runtime::tensor::Dtype;

use super::types::{from_runtime, to_runtime};
use crate::ExportError;
use crate::engine_writer::WeightSource;

/// Weight bytes as an engine source.
pub(super) struct Streamed(pub(super) TensorData);

impl WeightSource for Streamed {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.write_to(out)
    }
}

/// One weight as it will be stored.
pub(crate) struct StoredWeight {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: TensorData,
}

/// The union of the graphs' weights, each in its storage type: for matrices that of `planned`, else `storage`.
pub(crate) fn plan_weights<'a>(
    models: impl Iterator<Item = &'a (String, Model)>,
    storage: Option<Dtype>,
    planned: &BTreeMap<String, DataType>,
) -> Result<BTreeMap<String, StoredWeight>, ExportError> {
    let mut union: BTreeMap<&str, (&str, &Initializer)> = BTreeMap::new();
    for (graph, model) in models {
        for (name, weight) in model.graph.initializers.iter().filter(|(_, w)| w.external) {
            let fail = |reason: String| Err(ExportError::Graph { graph: graph.clone(), reason });
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
    let kept = kept_type(union.values().map(|(_, w)| *w));
    let matrix_type = storage.map_or(kept, from_runtime);
    Ok(union
        .into_iter()
        .map(|(name, (_, weight))| {
            let own = weight.data.widened_from().filter(|t| *t != DataType::Double).unwrap_or(weight.dtype);
            let target = if weight.dtype == DataType::Float && weight.shape.len() >= 2 {
                planned.get(name).copied().unwrap_or(matrix_type)
            } else {
                own
            };
            let data = weight.data.clone().converted(weight.dtype, target);
            (name.to_owned(), StoredWeight { dtype: to_runtime(target), shape: weight.shape.clone(), data })
        })
        .collect())
}

/// [`kept_type`] of all weights of these graphs.
pub(super) fn source_type(models: &[(String, Model)]) -> DataType {
    kept_type(models.iter().flat_map(|(_, model)| model.graph.initializers.values().filter(|w| w.external)))
}

/// The type in which the matrices of the source lose nothing: f16 or bf16 if all have that type, else f32.
fn kept_type<'a>(weights: impl Iterator<Item = &'a Initializer>) -> DataType {
    let mut types = weights
        .filter(|w| w.dtype == DataType::Float && w.shape.len() >= 2)
        .map(|w| w.data.widened_from().filter(|t| t.size() == 2).unwrap_or(DataType::Float));
    match types.next() {
        Some(first) if types.all(|t| t == first) => first,
        _ => DataType::Float,
    }
}

/// The storage type of the matrices, f32 if there are none.
pub(super) fn matrix_type(weights: &BTreeMap<String, StoredWeight>) -> Dtype {
    weights.values().find(|w| w.shape.len() >= 2 && w.dtype.is_float()).map_or(Dtype::F32, |w| w.dtype)
}
