//! `Where` on booleans as logic: ONNX Runtime selects among numbers only.

use std::collections::{HashMap, HashSet};

use super::parts::node;
use crate::operators::is_onnx;
use crate::precision::value_types_within;
use crate::walk::{bodies_mut, defined_names, free_name};
use crate::{DataType, Graph, Model, Node};

/// Replaces each `Where(c, x, y)` of booleans, in bodies too, by `(c and x) or (not c and y)`, which broadcasts alike;
/// returns how many.
pub fn lower_logic(model: &mut Model) -> usize {
    let mut taken = defined_names(&model.graph);
    lower(&mut model.graph, &HashMap::new(), &mut taken)
}

fn lower(graph: &mut Graph, outer: &HashMap<String, DataType>, taken: &mut HashSet<String>) -> usize {
    let types = value_types_within(graph, outer);
    let mut done = 0;
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for mut node in std::mem::take(&mut graph.nodes) {
        done += bodies_mut(&mut node).map(|body| lower(body, &types, taken)).sum::<usize>();
        if selects_booleans(&node, &types) {
            nodes.extend(logic(&node, taken));
            done += 1;
        } else {
            nodes.push(node);
        }
    }
    graph.nodes = nodes;
    done
}

fn selects_booleans(node: &Node, types: &HashMap<String, DataType>) -> bool {
    let bools = |names: &[String]| names.iter().any(|name| types.get(name) == Some(&DataType::Bool));
    let [_, choices @ ..] = &node.inputs[..] else { return false };
    node.op_type == "Where" && is_onnx(node) && choices.len() == 2 && node.outputs.len() == 1 && bools(choices)
}

fn logic(select: &Node, taken: &mut HashSet<String>) -> [Node; 4] {
    let [condition, chosen, other] = [0, 1, 2].map(|at| &select.inputs[at][..]);
    let made = &select.outputs[0];
    let [not, then, otherwise] = ["not", "then", "else"].map(|part| free_name(&format!("{made}.{part}"), taken));
    [
        node("Not", &[condition], &not, &[]),
        node("And", &[condition, chosen], &then, &[]),
        node("And", &[&not, other], &otherwise, &[]),
        Node {
            name: select.name.clone(),
            metadata: select.metadata.clone(),
            ..node("Or", &[&then, &otherwise], made, &[])
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attribute, Builder, Value};

    #[test]
    fn where_on_booleans_becomes_logic_also_in_bodies_and_on_numbers_stays() {
        let mut b = Builder::new("body");
        let inner = b.op("Where", &[&Value::from("c"), &Value::from("x"), &Value::from("c")]);
        b.output("inner", &inner, DataType::Bool, [2usize]);
        let body = Attribute::Graph(Box::new(b.finish().unwrap().graph));
        let mut b = Builder::new("g");
        let c = b.input("c", DataType::Bool, [2usize]);
        let x = b.input("x", DataType::Bool, [2usize]);
        let n = b.input("n", DataType::Float, [2usize]);
        let logic = b.op("Where", &[&c, &x, &c]);
        let number = b.op("Where", &[&logic, &n, &n]);
        b.output("number", &number, DataType::Float, [2usize]);
        let flag = b.input("flag", DataType::Bool, [0usize; 0]);
        let y = b.node("If", &[&flag]).attr("then_branch", body.clone()).attr("else_branch", body).out();
        b.output("y", &y, DataType::Bool, [2usize]);
        let mut model = b.finish().unwrap();
        assert_eq!(lower_logic(&mut model), 3);
        crate::check::check(&model).unwrap();
        let line = |n: &Node| format!("{} = {}({})", n.outputs[0], n.op_type, n.inputs.join(", "));
        let lines: Vec<String> = model.graph.nodes[..5].iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "Where.not = Not(c)",
                "Where.then = And(c, x)",
                "Where.else = And(Where.not, c)",
                "Where = Or(Where.then, Where.else)",
                "number = Where(Where, n, n)"
            ]
        );
        assert_eq!(lower_logic(&mut model), 0);
    }
}
