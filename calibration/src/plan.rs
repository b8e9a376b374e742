//! Precision plans: which node of a graph computes in which type, and why.

use std::fmt::{self, Write};
use std::str::FromStr;

use indexmap::IndexMap;
use serde::Serialize;
use v2l_graphs::{Attribute, DataType, Freedom, Graph, freedom, node_labels};

/// First line of a plan file.
const FORMAT: &str = "v2l precision plan 1";
/// Bytes of the largest plan file that is read.
pub const MAX_PLAN_BYTES: u64 = 64 << 20;

/// A floating-point type to compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float16: 11 bits, magnitudes up to 65504.
    Fp16,
    /// bfloat16: 8 bits, the range of float32.
    Bf16,
    /// float32.
    Fp32,
}

impl Precision {
    /// The ONNX type.
    pub const fn dtype(self) -> DataType {
        match self {
            Self::Fp16 => DataType::Float16,
            Self::Bf16 => DataType::Bfloat16,
            Self::Fp32 => DataType::Float,
        }
    }

    /// The largest finite magnitude.
    pub const fn largest(self) -> f32 {
        match self {
            Self::Fp16 => 65504.0,
            Self::Bf16 => 3.389_531_4e38,
            Self::Fp32 => f32::MAX,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp32 => "fp32",
        })
    }
}

impl FromStr for Precision {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Fp16, Self::Bf16, Self::Fp32].into_iter().find(|p| p.to_string() == text).ok_or(())
    }
}

/// A node that does not compute in the plan's default type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exception {
    /// Its type.
    pub precision: Precision,
    /// Why, in words: one line.
    pub why: String,
}

/// The plan for one graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphPlan {
    /// Graph, or `component/graph`.
    pub name: String,
    /// [`fingerprint`] of the graph that it was made for.
    pub fingerprint: String,
    /// Type of the nodes that are no exceptions.
    pub default: Precision,
    /// Node → its type and why, in graph order.
    pub exceptions: IndexMap<String, Exception>,
}

/// The plans for all graphs of a model: what a plan file holds.
///
/// The file is text. Its first line is `v2l precision plan 1`; `graph "NAME" FINGERPRINT TYPE` begins a graph with its
/// default type; each further line is an exception, `TYPE "NODE" WHY`. Names are JSON strings. Empty lines and lines that begin
/// with `#` are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrecisionPlan {
    /// One per graph.
    pub graphs: Vec<GraphPlan>,
}

/// Why a plan cannot be used. Each names the file, and the line where there is one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// A line is not what it should be.
    #[error(
        "{file}:{line}: expected {expected}, found `{found}`; correct the line, or save the plan again with `v2l-compile --save-precision-plan`"
    )]
    Line {
        /// The plan file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is possible there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A graph or node is planned twice.
    #[error("{file}:{line}: {what} has a line already, line {first}; expected one, remove one of them")]
    Twice {
        /// The plan file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// ``graph `step` ``, ``node `a/Gemm` ``.
        what: String,
        /// The earlier line.
        first: usize,
    },
    /// The plan was made for another model.
    #[error(
        "{file}: graph `{graph}`: expected a plan for {expected}, found one for {found}: it was made for another model, or by \
         other passes; save one for this model with `v2l-compile --save-precision-plan`"
    )]
    OtherModel {
        /// The plan file.
        file: String,
        /// The graph.
        graph: String,
        /// The model's fingerprint.
        expected: String,
        /// The plan's.
        found: String,
    },
    /// The model has a graph without a plan.
    #[error("{file}: there is no plan for graph `{graph}`; expected one among {found}: is the plan for another model?")]
    NoGraph {
        /// The plan file.
        file: String,
        /// The graph.
        graph: String,
        /// The graphs that have one.
        found: String,
    },
    /// The graph has no such node.
    #[error("{file}: graph `{graph}` has no node `{node}`{hint}; correct the name, or remove the line")]
    UnknownNode {
        /// The plan file.
        file: String,
        /// The graph.
        graph: String,
        /// The node.
        node: String,
        /// The most similar one.
        hint: String,
    },
    /// A node cannot have the type.
    #[error("{file}: graph `{graph}`, node `{node}`: expected fp32, found {found}: {op_type} {why}; correct the line")]
    Unsuitable {
        /// The plan file.
        file: String,
        /// The graph.
        graph: String,
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The planned type.
        found: Precision,
        /// Why not.
        why: &'static str,
    },
}

impl GraphPlan {
    /// The type of each node of `graph`, in order. `file` names the plan in errors.
    ///
    /// # Errors
    /// [`PlanError`] if the plan was made for another graph, or if it names a node that is not there or cannot have the type.
    pub fn types(&self, file: &str, graph: &Graph) -> Result<Vec<DataType>, PlanError> {
        let expected = fingerprint(graph);
        if self.fingerprint != expected {
            let (file, name, found) = (file.to_owned(), self.name.clone(), self.fingerprint.clone());
            return Err(PlanError::OtherModel { file, graph: name, expected, found });
        }
        let labels = node_labels(graph);
        let index: IndexMap<&str, usize> = labels.iter().enumerate().map(|(at, label)| (label.as_str(), at)).collect();
        let free = freedom(graph);
        let mut types: Vec<DataType> =
            free.iter().map(|f| if *f == Freedom::Any { self.default.dtype() } else { DataType::Float }).collect();
        for (node, exception) in &self.exceptions {
            let Some(&at) = index.get(node.as_str()) else {
                let closest = v2l_graphs::check::closest(node, index.keys().copied());
                let hint = closest.map_or_else(String::new, |name| format!("; the closest is `{name}`"));
                let (file, graph) = (file.to_owned(), self.name.clone());
                return Err(PlanError::UnknownNode { file, graph, node: node.clone(), hint });
            };
            let why = match free[at] {
                Freedom::Any => None,
                _ if exception.precision == Precision::Fp32 => None,
                Freedom::Float32 => Some("stays in float32"),
                Freedom::Typeless => Some("has no floating-point type"),
            };
            if let Some(why) = why {
                return Err(PlanError::Unsuitable {
                    file: file.to_owned(),
                    graph: self.name.clone(),
                    node: node.clone(),
                    op_type: graph.nodes[at].op_type.clone(),
                    found: exception.precision,
                    why,
                });
            }
            types[at] = exception.precision.dtype();
        }
        Ok(types)
    }
}

impl PrecisionPlan {
    /// The plan for `graph`. `file` names the plan in errors.
    ///
    /// # Errors
    /// [`PlanError::NoGraph`].
    pub fn graph(&self, file: &str, graph: &str) -> Result<&GraphPlan, PlanError> {
        self.graphs.iter().find(|g| g.name == graph).ok_or_else(|| PlanError::NoGraph {
            file: file.to_owned(),
            graph: graph.to_owned(),
            found: self.graphs.iter().map(|g| format!("`{}`", g.name)).collect::<Vec<_>>().join(", "),
        })
    }

    /// The text of the plan file.
    pub fn to_text(&self) -> String {
        let mut text = format!("{FORMAT}\n");
        for graph in &self.graphs {
            let GraphPlan { name, fingerprint, default, exceptions } = graph;
            let _ = writeln!(text, "\ngraph {} {fingerprint} {default}", quoted(name));
            for (node, Exception { precision, why }) in exceptions {
                let _ = writeln!(text, "{precision} {} {}", quoted(node), one_line(why));
            }
        }
        text
    }

    /// Reads the text of a plan file, which `file` names in errors.
    ///
    /// # Errors
    /// [`PlanError::Line`] and [`PlanError::Twice`].
    pub fn parse(file: &str, text: &str) -> Result<Self, PlanError> {
        let fail = |line: usize, expected: &str, found: &str| PlanError::Line {
            file: file.to_owned(),
            line,
            expected: expected.to_owned(),
            found: found.chars().take(120).collect(),
        };
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        match lines.next() {
            Some((_, line)) if line == FORMAT => {}
            other => return Err(fail(1, &format!("`{FORMAT}`"), other.map_or("", |(_, line)| line))),
        }
        let mut plan = Self::default();
        let mut seen: IndexMap<(usize, String), usize> = IndexMap::new();
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let name = strings.next().and_then(Result::ok);
            let rest = rest[strings.byte_offset()..].trim();
            let name = name.ok_or_else(|| fail(at, "a name in double quotes behind the first word", line))?;
            let (key, what) = if word == "graph" {
                let mut words = rest.split_whitespace();
                let fingerprint = words.next().filter(|w| w.starts_with("blake3:"));
                let default = words.next().and_then(|w| w.parse().ok());
                let (Some(fingerprint), Some(default), None) = (fingerprint, default, words.next()) else {
                    return Err(fail(at, "`graph \"NAME\" blake3:FINGERPRINT fp16|bf16|fp32`", line));
                };
                let (fingerprint, exceptions) = (fingerprint.to_owned(), IndexMap::new());
                plan.graphs.push(GraphPlan { name: name.clone(), fingerprint, default, exceptions });
                ((usize::MAX, name.clone()), format!("graph `{name}`"))
            } else {
                let precision = word.parse().map_err(|()| fail(at, "fp16, bf16, fp32 or graph as first word", line))?;
                let here = plan.graphs.len();
                let graph =
                    plan.graphs.last_mut().ok_or_else(|| fail(at, "a `graph` line before the first node", line))?;
                graph.exceptions.insert(name.clone(), Exception { precision, why: rest.to_owned() });
                ((here, name.clone()), format!("node `{name}`"))
            };
            if let Some(first) = seen.insert(key, at) {
                return Err(PlanError::Twice { file: file.to_owned(), line: at, what, first });
            }
        }
        Ok(plan)
    }
}

fn quoted(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A hash of a graph's structure: names and operators of its nodes, what they read, make and are set to, types and extents
/// of inputs, outputs and initializers. Weights' values and storage do not enter.
pub fn fingerprint(graph: &Graph) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for info in graph.inputs.iter().chain(&graph.outputs) {
        add(&info.name);
        add(&format!("{:?}", info.ty));
    }
    for (name, value) in &graph.initializers {
        add(name);
        add(&format!("{} {:?}", value.dtype, value.shape));
    }
    for (node, label) in graph.nodes.iter().zip(node_labels(graph)) {
        add(&label);
        add(&format!("{}:{} {:?} {:?}", node.domain, node.op_type, node.inputs, node.outputs));
        for (name, value) in &node.attributes {
            add(name);
            add(&match value {
                Attribute::Tensor(tensor) => format!("{} {:?}", tensor.dtype, tensor.shape),
                Attribute::Graph(body) => fingerprint(body),
                Attribute::Other(_) => String::new(),
                plain => format!("{plain:?}"),
            });
        }
    }
    format!("blake3:{}", &hasher.finalize().to_hex()[..32])
}

#[cfg(test)]
mod tests;
