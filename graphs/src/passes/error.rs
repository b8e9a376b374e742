//! Why a pass gave up.

/// Why a pass gave up. The model may then have been changed in part, but still computes the same.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PassError {
    /// Nodes wait for each other.
    #[error(
        "graph `{graph}`: the nodes {} wait for each other in a cycle; expected a graph without cycles; export the model again",
        quoted(nodes)
    )]
    Cycle {
        /// The graph or subgraph.
        graph: String,
        /// The nodes of one cycle, each before the one that reads it.
        nodes: Vec<String>,
    },
    /// The model's own record of weight transforms cannot be read.
    #[error(
        "metadata `{key}`: {reason}; expected a JSON object of strings; remove the entry, or export the model again"
    )]
    BadMetadata {
        /// The `metadata_props` key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    names.join(" -> ")
}
