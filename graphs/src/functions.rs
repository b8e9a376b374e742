//! Model-local functions that stand in a domain whose operators are known here.
//!
//! ONNX lets a model define a function under the name of an operator, and the function is then what a node of that name
//! calls. Nothing that asks for an operator by domain and name may take it for the operator.

use std::collections::HashSet;

use crate::onnx::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::operators::has_operators;

/// What the domain is called that such functions move to, with a number behind it if the model has one of this name.
const LOCAL: &str = "v2l.local";

/// Moves every function that stands in a domain whose operators are known ([`has_operators`]), and every call of it, to a domain of the model's own.
///
/// The model computes the same: its functions are found by domain and name. Costs time linear in the model's nodes.
pub(crate) fn set_apart(model: &mut ModelProto) {
    let moved: HashSet<Called> = model.functions.iter().filter(|f| has_operators(f.domain())).map(Called::of).collect();
    if moved.is_empty() {
        return;
    }
    let domain = free_domain(model);
    model.opset_import.push(import(&domain));
    let calls = Calls { moved: &moved, domain: &domain };
    model.graph.iter_mut().for_each(|graph| calls.redirect_graph(graph));
    for function in &mut model.functions {
        calls.redirect(&mut function.node);
        function.opset_import.push(import(&domain));
        if has_operators(function.domain()) {
            function.domain = Some(domain.clone());
        }
    }
}

fn import(domain: &str) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(1) }
}

fn free_domain(model: &ModelProto) -> String {
    let functions = model.functions.iter().map(FunctionProto::domain);
    let used: HashSet<&str> = functions.chain(model.opset_import.iter().map(OperatorSetIdProto::domain)).collect();
    let numbered = (2..).map(|n| format!("{LOCAL}_{n}"));
    std::iter::once(LOCAL.to_owned()).chain(numbered).find(|name| !used.contains(&name[..])).unwrap_or_default()
}

/// What a node calls: domain, with one spelling of ONNX's own, name and overload.
#[derive(PartialEq, Eq, Hash)]
struct Called([String; 3]);

impl Called {
    fn new(domain: &str, name: &str, overload: &str) -> Self {
        let domain = if domain == "ai.onnx" { "" } else { domain };
        Self([domain, name, overload].map(str::to_owned))
    }

    fn of(function: &FunctionProto) -> Self {
        Self::new(function.domain(), function.name(), function.overload())
    }
}

struct Calls<'a> {
    moved: &'a HashSet<Called>,
    domain: &'a str,
}

impl Calls<'_> {
    fn redirect_graph(&self, graph: &mut GraphProto) {
        self.redirect(&mut graph.node);
    }

    fn redirect(&self, nodes: &mut [NodeProto]) {
        for node in nodes {
            if self.moved.contains(&Called::new(node.domain(), node.op_type(), node.overload())) {
                node.domain = Some(self.domain.to_owned());
            }
            let bodies = |attribute: &mut AttributeProto| {
                attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| self.redirect_graph(body));
            };
            node.attribute.iter_mut().for_each(bodies);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::{Passes, fold_constants, hoist, infer_shapes};
    use crate::{Builder, DataType, Dim, Function, Initializer, Model, ReadOptions, encode_model, read_model};

    /// `y = x · w + rows · v`, all by rows of timesteps, whose sum is the function's; and a sum of constants.
    fn model() -> Model {
        let mut b = Builder::new("step");
        let x = b.input("x", DataType::Float, [Dim::from("batch"), 4.into()]);
        let time = b.input("time", DataType::Float, [Dim::from("batch")]);
        let w = b.initializer("w", Initializer::inline(DataType::Float, &[4, 4], vec![0; 64]));
        let column = b.unsqueeze(&time, &[1]);
        let four = b.floats(&[4], &[1.0; 4]);
        let row = b.op("Mul", &[&column, &four]);
        let product = b.op("MatMul", &[&row, &w]);
        let mixed = b.op("Add", &[&product, &four]);
        let y = b.op("Mul", &[&x, &mixed]);
        b.output("y", &y, DataType::Float, [Dim::from("batch"), 4.into()]);
        let (two, three) = (b.ints(&[2]), b.ints(&[3]));
        let folded = b.op("Add", &[&two, &three]);
        let z = b.op("Identity", &[&folded]);
        b.output("z", &z, DataType::Int64, [1usize]);
        b.finish().unwrap()
    }

    fn node(domain: &str, op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            domain: Some(domain.to_owned()),
            op_type: Some(op_type.to_owned()),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    /// `c = a + mean over all rows of a + b`.
    fn mixing_sum(domain: &str) -> FunctionProto {
        let onnx = OperatorSetIdProto { domain: Some(String::new()), version: Some(22) };
        FunctionProto {
            domain: Some(domain.to_owned()),
            name: Some("Add".to_owned()),
            input: vec!["a".to_owned(), "b".to_owned()],
            output: vec!["c".to_owned()],
            node: vec![node("", "ReduceMean", &["a"], "mean"), node("", "Sum", &["a", "mean", "b"], "c")],
            opset_import: vec![onnx],
            ..FunctionProto::default()
        }
    }

    /// The model with these functions, as it is read from a file.
    fn read(functions: Vec<FunctionProto>) -> Model {
        let model = Model { functions: functions.into_iter().map(Function).collect(), ..model() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, encode_model(&model, &|_: &str| None).unwrap()).unwrap();
        read_model(&path, &ReadOptions::default()).unwrap()
    }

    #[test]
    fn function_under_an_operators_name_is_not_taken_for_the_operator() {
        for domain in ["", "ai.onnx"] {
            let mut model = read(vec![mixing_sum(domain)]);
            assert_eq!(crate::check::unsupported_operators(&model), []);
            infer_shapes(&mut model);
            let step = ["x", "time"].map(str::to_owned);
            let rows = hoist(&mut model.clone(), &step, &Passes::default()).times.unwrap();
            let moved: Vec<&str> = rows.model.graph.nodes.iter().map(|node| &node.op_type[..]).collect();
            assert!(moved.contains(&"MatMul") && !moved.contains(&"Add"), "{moved:?}");
            assert_eq!(fold_constants(&mut model), 0);
            let calls: Vec<&str> =
                model.graph.nodes.iter().filter(|n| n.op_type == "Add").map(|n| &n.domain[..]).collect();
            assert_eq!(calls, [LOCAL; 2]);
            assert_eq!((model.functions[0].0.domain(), model.opsets[LOCAL]), (LOCAL, 1));
        }
        // Without the function, the same sums are ONNX's.
        let mut plain = read(Vec::new());
        assert!(fold_constants(&mut plain) == 1 && !plain.opsets.contains_key(LOCAL));
    }

    #[test]
    fn calls_inside_functions_and_bodies_move_along() {
        let mut outer = mixing_sum(LOCAL);
        outer.name = Some("Outer".to_owned());
        let mut branch = node("", "If", &["a"], "d");
        let body = GraphProto { node: vec![node("ai.onnx", "Add", &["a", "b"], "e")], ..GraphProto::default() };
        branch.attribute.push(AttributeProto { g: Some(body), ..AttributeProto::default() });
        outer.node.push(branch);
        let mut proto = ModelProto { functions: vec![mixing_sum(""), outer], ..ModelProto::default() };
        set_apart(&mut proto);
        let [inner, outer] = &proto.functions[..] else { panic!("{}", proto.functions.len()) };
        // The model has functions in the first choice of a domain.
        assert_eq!((inner.domain(), outer.domain()), ("v2l.local_2", LOCAL));
        assert_eq!(inner.node.iter().map(NodeProto::domain).collect::<Vec<_>>(), ["", ""]);
        let body = outer.node[2].attribute[0].g.as_ref().unwrap();
        assert_eq!(body.node[0].domain(), "v2l.local_2");
        assert!(outer.opset_import.iter().any(|import| import.domain() == "v2l.local_2"));
    }
}
