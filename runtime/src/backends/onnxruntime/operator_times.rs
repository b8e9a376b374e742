//! Where a run's time goes, from ONNX Runtime's profiler.

use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;

/// Bytes of the largest profile that is read.
const MAX_PROFILE_BYTES: u64 = 1 << 30;

/// Operators whose time is matrix products, convolutions among them. Attention is: softmax is the smaller part of it.
const PRODUCTS: [&str; 13] = [
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "FusedGemm",
    "MatMulNBits",
    "MatMulInteger",
    "Einsum",
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "MultiHeadAttention",
    "Attention",
    "GroupQueryAttention",
];

/// Seconds of the last run by operator, longest first; nodes that only hold others are not counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperatorTimes {
    /// Operator → seconds.
    pub seconds: IndexMap<String, f64>,
}

impl OperatorTimes {
    /// All operators.
    pub fn total(&self) -> f64 {
        self.seconds.values().sum()
    }

    /// Those that are matrix products.
    pub fn products(&self) -> f64 {
        PRODUCTS.iter().filter_map(|operator| self.seconds.get(*operator)).sum()
    }

    /// Reads the file that the profiler wrote.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
        if length > MAX_PROFILE_BYTES {
            return Err(format!("the profile has {length} bytes, more than {MAX_PROFILE_BYTES}"));
        }
        let events: Vec<Event> =
            serde_json::from_slice(&std::fs::read(path).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        let run = events.iter().rev().find(|event| event.name == "model_run");
        let run = run.ok_or("the profile holds no run")?;
        let mut this = Self::default();
        for event in events.iter().filter(|e| e.cat == "Node" && e.ts >= run.ts && e.name.ends_with("_kernel_time")) {
            let operator = event.args.op_name.as_deref().unwrap_or_default();
            if !matches!(operator, "If" | "Loop" | "Scan") {
                *this.seconds.entry(operator.to_owned()).or_default() += event.dur as f64 * 1e-6;
            }
        }
        this.seconds.sort_by(|_, a, _, b| b.total_cmp(a));
        Ok(this)
    }
}

/// An event of the profile, in the Trace Event Format; times in microseconds.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ts: u64,
    #[serde(default)]
    dur: u64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    op_name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_run_counts_and_no_bodies_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        let node = |name: &str, operator: &str, ts: u64, dur: u64| serde_json::json!({"cat": "Node", "name": name, "ts": ts, "dur": dur, "args": {"op_name": operator}});
        let events = serde_json::json!([
            {"cat": "Session", "name": "model_run", "ts": 10, "dur": 90, "args": {}},
            node("a_kernel_time", "MatMul", 20, 50),
            {"cat": "Session", "name": "model_run", "ts": 110, "dur": 90, "args": {}},
            node("a_kernel_time", "MatMul", 120, 40),
            node("a_fence_before", "MatMul", 120, 7),
            node("b_kernel_time", "Add", 160, 10),
            node("c_kernel_time", "If", 170, 10),
            node("d_kernel_time", "Add", 171, 5),
        ]);
        std::fs::write(&path, events.to_string()).unwrap();
        let times = OperatorTimes::read(&path).unwrap();
        assert_eq!(times.seconds.keys().collect::<Vec<_>>(), ["MatMul", "Add"]);
        assert!((times.total() - 55e-6).abs() < 1e-12 && (times.products() - 40e-6).abs() < 1e-12);
        std::fs::write(&path, "[]").unwrap();
        assert!(OperatorTimes::read(&path).unwrap_err().contains("no run"));
    }
}
