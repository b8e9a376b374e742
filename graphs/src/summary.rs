//! A short, stable text of a model, for people and for snapshots.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::{Attribute, Model, ValueInfo};

impl Model {
    /// Inputs, outputs, weights and operator counts, one line each; with `nodes`, every node too.
    pub fn summary(&self, nodes: bool) -> String {
        let mut out = String::new();
        let _ = self.write_summary(&mut out, nodes);
        out
    }

    fn write_summary(&self, out: &mut String, nodes: bool) -> std::fmt::Result {
        let opsets: Vec<String> = self
            .opsets
            .iter()
            .map(|(domain, version)| format!("{} {version}", if domain.is_empty() { "ai.onnx" } else { domain }))
            .collect();
        writeln!(out, "graph {} (opset {})", self.graph.name, opsets.join(", "))?;
        for info in &self.graph.inputs {
            writeln!(out, "  in  {}", line(info))?;
        }
        for info in &self.graph.outputs {
            writeln!(out, "  out {}", line(info))?;
        }
        let weights = self.graph.initializers.values().filter(|i| i.external);
        let (count, bytes) = weights.fold((0usize, 0usize), |(n, b), i| (n + 1, b + i.data.len()));
        writeln!(out, "  weights {count} ({bytes} bytes)")?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &self.graph.nodes {
            *counts.entry(&node.op_type).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(op, n)| format!("{op} {n}")).collect();
        writeln!(out, "  nodes {}: {}", self.graph.nodes.len(), counts.join(", "))?;
        if nodes {
            for node in &self.graph.nodes {
                write!(out, "  {} = {}({})", node.outputs.join(", "), node.op_type, node.inputs.join(", "))?;
                for (name, value) in &node.attributes {
                    write!(out, " {name}={}", attribute(value))?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }
}

fn attribute(value: &Attribute) -> String {
    match value {
        Attribute::Int(v) => v.to_string(),
        Attribute::Float(v) => v.to_string(),
        Attribute::String(v) => format!("{:?}", String::from_utf8_lossy(v)),
        Attribute::Ints(v) => format!("{v:?}"),
        Attribute::Floats(v) => format!("{v:?}"),
        Attribute::Tensor(t) => format!("<{} {:?}>", t.dtype, t.shape),
        Attribute::Graph(g) => format!("<graph of {} nodes>", g.nodes.len()),
        Attribute::Other(_) => "<…>".to_owned(),
    }
}

fn line(info: &ValueInfo) -> String {
    let Some(ty) = &info.ty else { return format!("{}: ?", info.name) };
    let shape = ty.shape.as_ref().map_or("?".to_owned(), |dims| {
        let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
        format!("[{}]", dims.join(", "))
    });
    format!("{}: {} {shape}", info.name, ty.dtype)
}
