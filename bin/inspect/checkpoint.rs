//! Safetensors files that are neither engines nor adapters.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use v2l_cli::{Output, shown};
use v2l_runtime::io::weights::WeightFile;

use super::count;

/// Every tensor with its type and shape.
pub(crate) fn show(path: &Path, output: &mut Output) -> anyhow::Result<()> {
    let file = WeightFile::open(path)?;
    let mut by_type: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut rows = Vec::new();
    for name in file.names() {
        let view = file.raw(&name)?;
        let entry = by_type.entry(view.dtype.to_string().to_lowercase()).or_default();
        *entry = (entry.0 + 1, entry.1 + view.data.len());
        rows.push((name.clone(), view.dtype.to_string().to_lowercase(), view.shape.to_vec()));
    }
    rows.sort();
    let (number, total) = by_type.values().fold((0, 0), |(n, b), (tensors, bytes)| (n + tensors, b + bytes));
    let types: BTreeMap<_, _> = by_type.iter().map(|(t, (n, b))| (t, json!({ "tensors": n, "bytes": b }))).collect();
    let fields = json!({ "path": shown(path), "tensors": number, "bytes": total, "by_type": types });
    output.result("checkpoint", fields, || {
        let types: Vec<String> = by_type.iter().map(|(t, (n, b))| format!("{t} {n} ({b} bytes)")).collect();
        format!("checkpoint {}\n  {} ({total} bytes): {}", path.display(), count(number, "tensor"), types.join(", "))
    });
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, dtype, shape) in rows {
        output.result("tensor", json!({ "name": name, "dtype": dtype, "shape": shape }), || {
            format!("    {name:<width$}  {dtype} {shape:?}")
        });
    }
    Ok(())
}
