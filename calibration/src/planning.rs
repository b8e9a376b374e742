//! From rules and measured ranges to a precision plan.

use indexmap::IndexMap;
use v2l_graphs::{
    DataType, Freedom, Graph, Model, Node, TensorData, freedom, is_movement, node_labels, save_casts, value_types,
};

use crate::plan::{Exception, GraphPlan, Precision, fingerprint};
use crate::ranges::{Range, Ranges};
use crate::rules::kept_in_fp32;

/// What precision is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// float32 throughout.
    Fp32,
    /// float16 where values fit, else float32.
    Fp16,
    /// bfloat16, and float32 where statistics need it.
    Bf16,
    /// float16 where values fit, else bfloat16, and float32 where statistics need it.
    Mixed,
}

impl Request {
    const fn default_type(self) -> Precision {
        match self {
            Self::Fp32 => Precision::Fp32,
            Self::Fp16 | Self::Mixed => Precision::Fp16,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

/// How much room a plan leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanOptions {
    /// The largest magnitude seen, times this, must fit the type: inputs that were not measured may exceed those that were.
    pub headroom: f32,
}

impl Default for PlanOptions {
    /// Twice the largest magnitude.
    fn default() -> Self {
        Self { headroom: 2.0 }
    }
}

/// Plans a graph: `model` in float32 with sorted nodes, its types inferred. Without ranges, the rules alone decide.
///
/// A node computes in the type that `request` names unless a rule keeps it in float32, or a value or weight that it reads or
/// makes does not fit. Cheap nodes between exceptions join them where that takes casts away.
pub fn plan_graph(
    name: &str,
    model: &Model,
    request: Request,
    ranges: Option<&Ranges>,
    options: PlanOptions,
) -> GraphPlan {
    let graph = &model.graph;
    let labels = node_labels(graph);
    let default = request.default_type();
    let free = freedom(graph);
    let mut found: Vec<Option<Exception>> = vec![None; graph.nodes.len()];
    if default != Precision::Fp32 {
        let kept = kept_in_fp32(graph);
        for (at, exception) in found.iter_mut().enumerate().filter(|(at, _)| free[*at] == Freedom::Any) {
            let rule = kept[at].map(|rule| Exception { precision: Precision::Fp32, why: rule.why().to_owned() });
            *exception = rule.or_else(|| ranges.and_then(|ranges| by_range(graph, at, request, ranges, options)));
        }
        join(graph, &free, default, &mut found);
    }
    let exceptions: IndexMap<String, Exception> =
        labels.into_iter().zip(found).filter_map(|(label, exception)| Some((label, exception?))).collect();
    GraphPlan { name: name.to_owned(), fingerprint: fingerprint(graph), default, exceptions }
}

/// Moves cheap nodes into the float32 exceptions next to them where that takes casts away.
fn join(graph: &Graph, free: &[Freedom], default: Precision, found: &mut [Option<Exception>]) {
    let type_of = |(at, exception): (usize, &Option<Exception>)| match exception {
        _ if free[at] != Freedom::Any => DataType::Float,
        Some(exception) => exception.precision.dtype(),
        None => default.dtype(),
    };
    let mut types: Vec<DataType> = found.iter().enumerate().map(type_of).collect();
    let before = types.clone();
    let movable: Vec<bool> =
        graph.nodes.iter().zip(free).map(|(node, free)| *free == Freedom::Any && is_cheap(node)).collect();
    save_casts(graph, &mut types, &movable);
    for (at, exception) in found.iter_mut().enumerate() {
        if types[at] != before[at] {
            *exception =
                Some(Exception { precision: Precision::Fp32, why: "between exceptions: saves casts".to_owned() });
        }
    }
}

/// True for nodes whose cost is that of reading and writing their values.
fn is_cheap(node: &Node) -> bool {
    is_movement(node)
        || matches!(
            node.op_type.as_str(),
            "Abs"
                | "Add"
                | "Cast"
                | "Clip"
                | "Div"
                | "Max"
                | "Min"
                | "Mul"
                | "Neg"
                | "Relu"
                | "Sigmoid"
                | "Sub"
                | "Tanh"
        )
}

/// The exception that a node must be by what it was seen to read and make.
fn by_range(graph: &Graph, at: usize, request: Request, ranges: &Ranges, options: PlanOptions) -> Option<Exception> {
    let node = &graph.nodes[at];
    let made = node.outputs.iter().map(|name| ("gives", name));
    let read = node.inputs.iter().map(|name| ("reads", name));
    let mut worst: Option<Exception> = None;
    for (verb, name, range) in made.chain(read).filter_map(|(verb, name)| Some((verb, name, ranges.get(name)?))) {
        let Some(exception) = of_value(verb, name, range, request, ranges, options) else { continue };
        if worst.as_ref().is_none_or(|w| exception.precision > w.precision) {
            worst = Some(exception);
        }
    }
    worst
}

/// The exception that a value calls for.
fn of_value(
    verb: &str,
    name: &str,
    range: &Range,
    request: Request,
    ranges: &Ranges,
    options: PlanOptions,
) -> Option<Exception> {
    if let Some(under) = range.non_finite_under {
        let (count, label) = (range.non_finite, ranges.label(under));
        let why = format!("{verb} `{name}`: {count} values are not finite in float32 already, first with {label}");
        return Some(Exception { precision: Precision::Fp32, why });
    }
    let largest = range.largest();
    let fits = |precision: Precision| largest <= precision.largest() / options.headroom;
    let choices: &[Precision] = match request {
        Request::Fp32 => &[Precision::Fp32],
        Request::Fp16 => &[Precision::Fp16, Precision::Fp32],
        Request::Bf16 => &[Precision::Bf16, Precision::Fp32],
        Request::Mixed => &[Precision::Fp16, Precision::Bf16, Precision::Fp32],
    };
    let chosen = choices.iter().copied().find(|p| fits(*p)).unwrap_or(Precision::Fp32);
    let first = *choices.first()?;
    if chosen == first {
        return None;
    }
    let (limit, headroom) = (first.largest(), options.headroom);
    let margin = if largest > limit {
        format!("limit {limit}")
    } else {
        format!("limit {limit}, of which 1/{headroom} is used at most")
    };
    let label = ranges.label(range.largest_under);
    let why = format!("overflows {first}: {verb} `{name}`, largest magnitude {largest:.3e} ({margin}) with {label}");
    Some(Exception { precision: chosen, why })
}

/// Adds the values of a model's weights to `ranges`, so that none is planned into a type that it does not fit.
///
/// Costs one pass over their bytes, in pieces.
///
/// # Errors
/// Those of reading a weight; see [`TensorData::write_to`].
pub fn observe_weights(ranges: &mut Ranges, model: &Model) -> std::io::Result<()> {
    ranges.begin("the model's own weights");
    for (name, weight) in &model.graph.initializers {
        if weight.dtype == DataType::Float && weight.external {
            stream(&weight.data, &mut |values| ranges.observe(name, values))?;
        }
    }
    Ok(())
}

/// Shows f32 bytes piece by piece.
fn stream(data: &TensorData, show: &mut dyn FnMut(&[f32])) -> std::io::Result<()> {
    struct Pieces<'a> {
        rest: Vec<u8>,
        show: &'a mut dyn FnMut(&[f32]),
    }
    impl std::io::Write for Pieces<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let bytes = &bytes[..bytes.len().min(1 << 20)];
            self.rest.extend_from_slice(bytes);
            let whole = self.rest.len() / 4 * 4;
            let values: Vec<f32> =
                self.rest[..whole].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            self.rest.drain(..whole);
            (self.show)(&values);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    data.write_to(&mut Pieces { rest: Vec::new(), show })
}

/// Names of the floating-point values that the main graph computes or is given: what calibration looks at.
pub fn float_values(model: &Model) -> std::collections::HashSet<String> {
    let types = value_types(&model.graph);
    types.into_iter().filter(|(_, dtype)| *dtype == DataType::Float).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests;
