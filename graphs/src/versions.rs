//! Which versions a model says it is of: numbers that anybody may have written.

use indexmap::IndexMap;

use crate::onnx::OperatorSetIdProto;
use crate::{NEWEST_IR_VERSION, NEWEST_OPSET};

/// The newest operator sets of the domains that ONNX Runtime brings along.
const NEWEST: [(&str, i64); 3] = [("", NEWEST_OPSET), ("ai.onnx.ml", 5), ("com.microsoft", 1)];

/// A version that cannot be used.
pub(crate) enum BadVersion {
    /// No model has it.
    Malformed(String),
    /// It came later than this was written.
    Later(String),
}

/// An operator domain; `ai.onnx` is the other spelling of the default one.
pub(crate) fn domain(name: Option<String>) -> String {
    name.filter(|n| n != "ai.onnx").unwrap_or_default()
}

/// The IR version, which every model has.
pub(crate) fn ir_version(found: Option<i64>) -> Result<i64, BadVersion> {
    match found.unwrap_or_default() {
        0 => Err(BadVersion::Malformed("it names no IR version; expected 1 or more".to_owned())),
        version @ ..0 => Err(BadVersion::Malformed(format!("it names the IR version {version}; expected 1 or more"))),
        version if version > NEWEST_IR_VERSION => Err(BadVersion::Later(format!(
            "IR version {version}, where {NEWEST_IR_VERSION} is the last that is known,"
        ))),
        version => Ok(version),
    }
}

/// The operator sets by domain; each domain is imported once.
pub(crate) fn opsets(imports: Vec<OperatorSetIdProto>) -> Result<IndexMap<String, i64>, BadVersion> {
    let mut opsets = IndexMap::new();
    for import in imports {
        let (domain, version) = (domain(import.domain), import.version.unwrap_or_default());
        let name = if domain.is_empty() { "ai.onnx" } else { &domain };
        if version < 1 {
            let reason = format!("it imports operator set {version} of domain `{name}`; expected 1 or more");
            return Err(BadVersion::Malformed(reason));
        }
        let newest = NEWEST.iter().find(|(known, _)| *known == domain);
        if let Some((_, newest)) = newest.filter(|(_, newest)| version > *newest) {
            let what = format!("operator set {version} of domain `{name}`, where {newest} is the last that is known,");
            return Err(BadVersion::Later(what));
        }
        if let Some(other) = opsets.get(&domain).filter(|other| **other != version) {
            let reason =
                format!("it imports operator sets {other} and {version} of domain `{name}`; expected one of them");
            return Err(BadVersion::Malformed(reason));
        }
        opsets.insert(domain, version);
    }
    Ok(opsets)
}
