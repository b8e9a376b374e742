//! Nodes and constants that passes write.

use crate::{Attribute, DataType, Initializer, Model, Node};

/// A node under construction, named after its first output.
pub(super) fn node(op_type: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> Node {
    Node {
        name: format!("{output}/{op_type}"),
        op_type: op_type.to_owned(),
        inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes: attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..Node::default()
    }
}

/// The name of a constant `[n]` of int64, shared by all that ask for the same one.
pub(super) fn ints(model: &mut Model, values: &[i64]) -> String {
    let words: Vec<String> = values.iter().map(i64::to_string).collect();
    let name = format!("v2l.ints.{}", words.join("."));
    model.graph.initializers.entry(name.clone()).or_insert_with(|| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Initializer::inline(DataType::Int64, &[values.len()], bytes)
    });
    name
}
