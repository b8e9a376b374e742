//! Model-local functions that stand in a domain whose operators are known here.
//!
//! ONNX lets a model define a function under the name of an operator, and leaves it to the runtime which of both a
//! node then calls. ONNX Runtime takes the operator if it has a kernel for it, and loads no function of ONNX's own
//! domain. A node of such a domain must not be taken for what it is not, so that it may call no function.

use std::collections::HashSet;

use crate::onnx::{FunctionProto, ModelProto, NodeProto};
use crate::operators::has_operators;

/// Takes the functions out of a model that stand in a domain whose operators are known ([`has_operators`]). Costs time
/// linear in its nodes.
///
/// # Errors
/// The first node, bodies and functions included, that calls one of them; the model is then as it was.
pub(crate) fn take_out(model: &mut ModelProto) -> Result<(), Box<NodeProto>> {
    let misplaced: HashSet<Called<'_>> = model.functions.iter().filter(|f| is_misplaced(f)).map(called).collect();
    let main = model.graph.iter().map(|graph| &graph.node);
    let mut nodes = main.chain(model.functions.iter().map(|function| &function.node));
    if !misplaced.is_empty()
        && let Some(node) = nodes.find_map(|nodes| calls(nodes, &misplaced))
    {
        return Err(Box::new(node.clone()));
    }
    model.functions.retain(|function| !is_misplaced(function));
    Ok(())
}

fn is_misplaced(function: &FunctionProto) -> bool {
    has_operators(function.domain())
}

/// Domain, with one spelling of ONNX's own, and name of what is called. Overloads are one.
type Called<'a> = (&'a str, &'a str);

fn called(function: &FunctionProto) -> Called<'_> {
    (plain(function.domain()), function.name())
}

fn plain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// The first node that calls one of the functions.
fn calls<'a>(nodes: &'a [NodeProto], functions: &HashSet<Called<'_>>) -> Option<&'a NodeProto> {
    nodes.iter().find_map(|node| {
        let calls_itself = functions.contains(&(plain(node.domain()), node.op_type()));
        let bodies = || node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
        let inside = || bodies().find_map(|body| calls(&body.node, functions));
        if calls_itself { Some(node) } else { inside() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{AttributeProto, GraphProto};

    fn node(domain: &str, op_type: &str) -> NodeProto {
        NodeProto { domain: Some(domain.to_owned()), op_type: Some(op_type.to_owned()), ..NodeProto::default() }
    }

    fn function(domain: &str, name: &str, body: NodeProto) -> FunctionProto {
        let (domain, name) = (Some(domain.to_owned()), Some(name.to_owned()));
        FunctionProto { domain, name, node: vec![body], ..FunctionProto::default() }
    }

    /// A model of one node and these functions.
    fn model(node: NodeProto, functions: Vec<FunctionProto>) -> ModelProto {
        let graph = GraphProto { node: vec![node], ..GraphProto::default() };
        ModelProto { graph: Some(graph), functions, ..ModelProto::default() }
    }

    #[test]
    fn call_of_a_function_in_a_domain_of_operators_is_found_in_graphs_bodies_and_functions() {
        let body = GraphProto { node: vec![node("", "Add")], ..GraphProto::default() };
        let mut branch = node("", "If");
        branch.attribute.push(AttributeProto { g: Some(body), ..AttributeProto::default() });
        let add = || function("", "Add", node("", "Sub"));
        let by_other = vec![add(), function("acme", "Outer", node("ai.onnx", "Add"))];
        for mut model in [
            model(node("", "Add"), vec![add()]),
            model(node("", "Add"), vec![function("ai.onnx", "Add", node("", "Sub"))]),
            model(branch, vec![add()]),
            model(node("acme", "Outer"), by_other),
        ] {
            let before = model.functions.len();
            assert_eq!(take_out(&mut model).unwrap_err().op_type(), "Add");
            assert_eq!(model.functions.len(), before);
        }
        let mut fused =
            model(node("com.microsoft", "Fused"), vec![function("com.microsoft", "Fused", node("", "Sub"))]);
        assert_eq!(take_out(&mut fused).unwrap_err().op_type(), "Fused");
    }

    #[test]
    fn functions_that_nothing_calls_or_of_other_domains_are_in_nobodys_way() {
        let functions = vec![function("", "Add", node("", "Sub")), function("acme", "Add", node("", "Mul"))];
        let mut model = model(node("acme", "Add"), functions);
        take_out(&mut model).unwrap();
        assert_eq!(model.functions.iter().map(FunctionProto::domain).collect::<Vec<_>>(), ["acme"]);
    }
}
