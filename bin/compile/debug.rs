//! `v2l-compile debug`: where a compiled model leaves its source.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use v2l_cli::{Failure, Output};
use v2l_export::check::{Comparison, Trace};
use v2l_export::targets::{OnnxRuntime, OpenVino};
use v2l_export::{CompileOptions, debug};

use super::Precision;
use super::check::{CheckArgs, comparison};

/// Compare a model with what would be compiled from it, block by block, then node by node in the worst block.
#[derive(Args)]
pub(crate) struct DebugArgs {
    /// ONNX file.
    #[arg(value_name = "MODEL.onnx")]
    input: PathBuf,
    /// Type in which matrices are stored, and what arithmetic is tried.
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Most nodes in a block.
    #[arg(long, value_name = "N", default_value_t = 200)]
    block_nodes: usize,
    /// What runs what would be compiled; the source runs on ONNX Runtime.
    #[arg(long, default_value = "ort", value_parser = ["ort", "openvino"])]
    backend: String,
    #[command(flatten)]
    check: CheckArgs,
}

pub(crate) fn run(args: &DebugArgs, output: &mut Output) -> anyhow::Result<()> {
    if args.check.switched_off() {
        return Err(Failure::usage("--no-verify leaves nothing for debug to do"));
    }
    let options = CompileOptions {
        storage: args.precision.and_then(Precision::storage),
        check: args.check.options(false),
        target: if args.backend == "openvino" { Arc::new(OpenVino) } else { Arc::new(OnnxRuntime) },
        ..CompileOptions::default()
    };
    let (inputs, trace) = debug(&args.input, &options, args.block_nodes)?;
    for (index, block) in trace.blocks.iter().enumerate() {
        let fields = json!({
            "index": index, "first": block.first, "last": block.last,
            "own": comparison(&block.own), "accumulated": comparison(&block.accumulated),
        });
        output.event("block", fields);
    }
    for node in &trace.nodes {
        let fields = json!({
            "node": node.node, "op_type": node.op_type, "value": node.value, "error": comparison(&node.error),
            "magnitude": node.magnitude,
        });
        output.event("node", fields);
    }
    let culprit = trace.culprit();
    let fields = json!({ "node": culprit.map(|n| &n.node), "op_type": culprit.map(|n| &n.op_type) });
    output.result("culprit", fields, || table(&inputs, &trace));
    Ok(())
}

fn table(inputs: &str, trace: &Trace) -> String {
    let mut lines =
        vec![format!("inputs: {inputs}"), format!("{:>5}  {:>10}  {:>11}  nodes", "block", "own", "accumulated")];
    for (index, block) in trace.blocks.iter().enumerate() {
        let mark = if trace.block == Some(index) { "<" } else { " " };
        let error = |c: &Comparison| match c.non_finite {
            0 => format!("{:.2e}", c.relative_l2),
            n => format!("{n} inf/nan"),
        };
        lines.push(format!(
            "{index:>5}  {:>10}  {:>11} {mark} {} … {}",
            error(&block.own),
            error(&block.accumulated),
            block.first,
            block.last
        ));
    }
    match trace.culprit() {
        Some(_) => {
            lines.push(String::new());
            lines.push("the nodes of the worst block that add most, its inputs being the source's:".to_owned());
            let mut nodes: Vec<_> = trace.nodes.iter().filter(|n| n.added > 0.0).collect();
            nodes.sort_by(|a, b| b.added.total_cmp(&a.added));
            for node in nodes.iter().take(10) {
                lines.push(format!(
                    "  {} ({}) `{}`: {}, magnitude {:.4e}",
                    node.node, node.op_type, node.value, node.error, node.magnitude
                ));
            }
        }
        None => lines.push("no block differs from the source".to_owned()),
    }
    lines.join("\n")
}
