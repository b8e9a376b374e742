//! Which weights an adapter can change.

use super::closest::closest;
use crate::Graph;
use crate::slots::{Readers, Reading};

/// Why an adapter cannot change a weight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// No such initializer.
    #[error(
        "slot `{name}`: the graph has no initializer of this name; expected a weight under its checkpoint name{}",
        hint(closest)
    )]
    Missing {
        /// The weight asked for.
        name: String,
        /// The initializer with the most similar name.
        closest: Option<String>,
    },
    /// Nothing reads it.
    #[error("slot `{name}`: no node reads this initializer; remove the slot or export the model again")]
    Unused {
        /// The weight.
        name: String,
    },
    /// A node other than MatMul, Gemm and Conv reads it.
    #[error(
        "slot `{name}`: node `{node}` ({op_type}) reads it; expected MatMul, Gemm or Conv with the weight as second input; run `passes::optimize`, or export the layer with its weight unchanged"
    )]
    Indirect {
        /// The weight.
        name: String,
        /// The node that stands between, or reads it besides.
        node: String,
        /// Its operator.
        op_type: String,
    },
}

fn hint(closest: &Option<String>) -> String {
    closest.as_ref().map_or_else(String::new, |c| format!(", perhaps `{c}`"))
}

/// Says of each named weight what keeps an adapter from changing it: every reader in the main graph, and in bodies,
/// must be a `MatMul`, `Gemm` or `Conv` with the weight as second input, or look up rows of it.
///
/// # Errors
/// One finding for each name that is missing or unused, and one for each node that reads a weight otherwise.
pub fn check_slots(graph: &Graph, names: &[&str]) -> Result<(), Vec<SlotError>> {
    let readers = Readers::new(graph);
    let mut findings = Vec::new();
    for &name in names {
        if !graph.initializers.contains_key(name) {
            let closest = closest(name, graph.initializers.keys().map(String::as_str));
            findings.push(SlotError::Missing { name: name.to_owned(), closest });
            continue;
        }
        let nodes = readers.of(name);
        if nodes.is_empty() {
            findings.push(SlotError::Unused { name: name.to_owned() });
        }
        for reader in nodes.iter().filter(|reader| reader.reading == Reading::Other) {
            let (node, op_type) = (reader.node.clone(), reader.op_type.clone());
            findings.push(SlotError::Indirect { name: name.to_owned(), node, op_type });
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(findings) }
}
