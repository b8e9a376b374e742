//! The domains of operators.

use crate::Node;

/// Domain of ONNX Runtime's own operators.
pub(crate) const CONTRIB: &str = "com.microsoft";

/// Domains beside ONNX's own whose operators ONNX Runtime brings along.
const BROUGHT_ALONG: [&str; 2] = [CONTRIB, "ai.onnx.ml"];

/// True for both names of ONNX's own domain.
pub(super) fn is_onnx_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// True for an operator of ONNX's own domain. It calls no function of the model: [`crate::read_model`] refuses that.
pub(crate) fn is_onnx(node: &Node) -> bool {
    is_onnx_domain(&node.domain)
}

/// True for a domain whose operators have a meaning of their own, in the table or to ONNX Runtime.
pub(crate) fn has_operators(domain: &str) -> bool {
    is_onnx_domain(domain) || BROUGHT_ALONG.contains(&domain)
}
