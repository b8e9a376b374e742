//! Graphs over weights in the types that they are stored in.

use std::collections::HashMap;

use v2l_graphs::passes::rename_uses;
use v2l_graphs::{Attribute, DataType, Model, Node};

/// The f32 graph whose weights have the type that `stored` says, each narrow one behind one Cast to float32.
pub(crate) fn stored_variant(model: &Model, stored: &dyn Fn(&str) -> DataType) -> Model {
    let mut model = model.clone();
    let mut casts = HashMap::new();
    let mut nodes = Vec::new();
    for (name, value) in model.graph.initializers.iter_mut().filter(|(_, w)| w.external) {
        let stored = stored(name);
        if stored == value.dtype {
            continue;
        }
        value.data = value.data.clone().converted(value.dtype, stored);
        value.dtype = stored;
        let widened = format!("{name}.float32");
        nodes.push(Node {
            name: format!("{name}/Cast"),
            op_type: "Cast".into(),
            inputs: vec![name.clone()],
            outputs: vec![widened.clone()],
            attributes: [("to".to_owned(), Attribute::Int(DataType::Float.onnx().into()))].into_iter().collect(),
            ..Node::default()
        });
        casts.insert(name.clone(), widened);
    }
    rename_uses(&mut model.graph, &casts);
    model.graph.nodes.splice(0..0, nodes);
    v2l_graphs::passes::infer_shapes(&mut model);
    model
}
