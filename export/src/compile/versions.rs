//! What the ONNX Runtime at hand knows of later operator sets.

use v2l_graphs::passes::{LateNode, Versions};
use v2l_runtime::io::library::{onnxruntime, onnxruntime_minor};

use super::options::CompileOptions;
use super::targets::onnxruntime::OnnxRuntime;
use super::targets::openvino::Both;
use super::targets::target::Target;
use crate::ExportError;

/// From which minor version of ONNX Runtime 1.x on it takes which IR version and which of ONNX's operator sets, as measured
/// from 1.22.0 to 1.32.0. Every version that the runtime takes has the first row.
const TAKEN: [(u32, i64, i64); 5] = [(22, 10, 22), (23, 11, 23), (24, 13, 25), (25, 13, 26), (32, 14, 28)];

/// What came to an operator set when ONNX Runtime had it: operator, operator set, minor version that has it.
const LATE: [(&str, i64, u32); 1] = [("Attention", 25, 32)];

/// Refuses a graph that asks for what the ONNX Runtime at hand came too early for. One that asks for nothing late is taken
/// without a look at the library; so is every one where there is no library, or where ONNX Runtime is to run nothing.
pub(super) fn check_versions(label: &str, versions: &Versions, options: &CompileOptions) -> Result<(), ExportError> {
    let Some(needed) = needed(versions).filter(|_| runs(options)) else { return Ok(()) };
    let library = options.check.as_ref().and_then(|check| check.ort.ort.library.as_deref());
    let found = onnxruntime(library).ok().and_then(|_| onnxruntime_minor());
    match found {
        Some(found) if found < needed.minor => Err(needed.refused(label, found)),
        _ => Ok(()),
    }
}

/// True if ONNX Runtime runs the engine or the check.
fn runs(options: &CompileOptions) -> bool {
    options.check.is_some() || [OnnxRuntime.backend(), Both.backend()].contains(&options.target.backend())
}

/// What a graph asks of ONNX Runtime.
struct Needed<'a> {
    /// The first minor version that takes it.
    minor: u32,
    /// What came last of it.
    node: &'a LateNode,
}

/// What is needed beyond what every version takes.
fn needed(versions: &Versions) -> Option<Needed<'_>> {
    let since = |node: &LateNode| {
        let late = LATE.iter().find(|(op_type, opset, _)| *op_type == node.op_type && *opset == node.opset);
        let taken = TAKEN.iter().find(|(_, _, opset)| *opset >= node.opset);
        late.map(|(.., minor)| *minor).or(taken.map(|(minor, ..)| *minor)).unwrap_or(u32::MAX)
    };
    let node = versions.late.iter().max_by_key(|node| since(node))?;
    let by_ir_version = TAKEN.iter().find(|(_, ir_version, _)| *ir_version >= versions.ir_version);
    let minor = since(node).max(by_ir_version.map_or(u32::MAX, |(minor, ..)| *minor));
    Some(Needed { minor, node })
}

impl Needed<'_> {
    fn refused(&self, label: &str, found: u32) -> ExportError {
        let Self { minor, node: LateNode { node, op_type, opset } } = self;
        ExportError::Unsupported {
            what: format!("{label}: node `{node}`: {op_type} as operator set {opset} has it"),
            reason: format!(
                "this is ONNX Runtime 1.{found}, which came before it; name 1.{minor} or newer with V2L_ORT_LIB, or export the model \
                 with an older operator set"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::check::CheckOptions;
    use crate::compile::targets::openvino::OpenVino;

    fn versions(ir_version: i64, asks: &[(&str, i64)]) -> Versions {
        let late = asks.iter().map(|(op_type, opset)| LateNode {
            node: format!("the {op_type}"),
            op_type: (*op_type).to_owned(),
            opset: *opset,
        });
        let opset = asks.iter().map(|(_, opset)| *opset).max().unwrap_or(22);
        Versions { ir_version, opset, late: late.collect(), is_lowered: true }
    }

    #[test]
    fn needed_is_the_first_version_that_takes_operator_set_ir_version_and_operator() {
        for (ir_version, asks, expected) in [
            (10, &[][..], None),
            (10, &[("RMSNormalization", 23)], Some(23)),
            (12, &[("Cast", 24)], Some(24)),
            (13, &[("Cast", 25)], Some(24)),
            (10, &[("Attention", 25)], Some(32)),
            (10, &[("Attention", 25), ("CumProd", 26)], Some(32)),
            (10, &[("CumProd", 26), ("RMSNormalization", 23)], Some(25)),
            (10, &[("LinearAttention", 27)], Some(32)),
            (14, &[("Cast", 28)], Some(32)),
        ] {
            assert_eq!(needed(&versions(ir_version, asks)).map(|needed| needed.minor), expected, "{asks:?}");
        }
    }

    #[test]
    fn onnx_runtime_is_asked_where_it_runs_the_engine_or_the_check() {
        let options = |target: Arc<dyn Target>, check| CompileOptions { target, check, ..CompileOptions::default() };
        assert!(runs(&options(Arc::new(OnnxRuntime), None)));
        assert!(runs(&options(Arc::new(Both), None)));
        assert!(!runs(&options(Arc::new(OpenVino), None)));
        assert!(runs(&options(Arc::new(OpenVino), Some(CheckOptions::default()))));
    }

    #[test]
    fn refused_names_node_operator_versions_and_the_way_out() {
        let versions = versions(10, &[("CumProd", 26), ("LinearAttention", 27)]);
        let error = needed(&versions).unwrap().refused("m.onnx", 31);
        assert!(error.is_unsupported());
        let expected = "m.onnx: node `the LinearAttention`: LinearAttention as operator set 27 has it is not supported: this is \
                        ONNX Runtime 1.31, which came before it; name 1.32 or newer with V2L_ORT_LIB, or export the model with an \
                        older operator set";
        assert_eq!(error.to_string(), expected);
    }
}
