//! Control tokens: numbers that steer a video, each by a token that the video's tokens attend to.
//!
//! A control `k` with the number `s` is the token `s · v_k + b_k`, of the transformer's width. In some blocks of the
//! transformer the video attends to the tokens of all controls besides itself. Controls have keys and values, made by the
//! block's own layers (with the adapters in them), and no queries and no positions: they see neither the video nor each
//! other, and every block gets them unchanged.
//!
//! LiON-LoRA says that such a token exists, and no more; its formulas are v2l's own.

use std::path::Path;

use serde_json::Value as Json;
use v2l_graphs::{Builder, DataType, Dim, Extent, Value};
use v2l_runtime::components::{CONTROL, CONTROL_MASK};
use v2l_runtime::io::json;
use v2l_runtime::io::weights::WeightFile;

use crate::ExportError;

const SCALE: &str = "control.embed_scale";
const BIAS: &str = "control.embed_bias";
const LOGITS: &str = "control.logit_bias";
/// Most controls that a file may have.
const MOST: usize = 64;
/// What is added to the logits of a control that is off: enough that nothing is left of it in any type.
const OFF: f32 = -2000.0;

/// The controls of a transformer.
#[derive(Clone, Debug)]
pub(crate) struct Controls {
    label: String,
    /// One for each control, in the order of the tokens.
    pub(crate) names: Vec<String>,
    /// Blocks that see them; `None`: the shallow third.
    blocks: Option<Vec<usize>>,
    width: usize,
    /// `v`, `[K, width]`.
    scale: Vec<f32>,
    /// `b`, `[K, width]`.
    bias: Vec<f32>,
    /// Added to the logits of each control.
    logits: Vec<f32>,
}

impl Controls {
    /// Reads `control.embed_scale` and `control.embed_bias` `[K, width]`, `control.logit_bias` `[K]` (0 if absent) and the
    /// metadata `control.names` and `control_blocks`, both JSON arrays.
    ///
    /// # Errors
    /// Names what is missing or does not fit.
    pub(crate) fn read(path: &Path) -> Result<Self, ExportError> {
        let file = WeightFile::open(path)?;
        let fail = |reason: String| ExportError::config(path, reason);
        let listed = |key: &str| {
            let text = file.metadata(key)?;
            Some(json::read::<Json>(text.as_bytes()).ok().and_then(|found| found.as_array().cloned()))
        };
        let names = match listed("control.names") {
            Some(Some(names)) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>(),
            Some(None) => None,
            None => return Err(fail("the metadata lacks `control.names`; expected a JSON array of names".to_owned())),
        };
        let names = names.ok_or_else(|| fail("`control.names`: expected a JSON array of names".to_owned()))?;
        let usable = |name: &String| !name.is_empty() && !name.contains('=');
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        if !(1..=MOST).contains(&names.len()) || !names.iter().all(usable) || distinct.len() != names.len() {
            return Err(fail(format!(
                "`control.names`: expected 1 to {MOST} different names without `=`, found {names:?}"
            )));
        }
        let blocks = match listed("control_blocks") {
            None => None,
            Some(found) => {
                let number = |block: &Json| block.as_u64().and_then(|block| usize::try_from(block).ok());
                let found = found.and_then(|found| found.iter().map(number).collect::<Option<Vec<usize>>>());
                let found = found.filter(|found| found.is_sorted_by(|a, b| a < b) && !found.is_empty());
                Some(found.ok_or_else(|| {
                    fail(
                        "`control_blocks`: expected a JSON array of numbers of blocks, each larger than the one before"
                            .to_owned(),
                    )
                })?)
            }
        };
        let count = names.len();
        let width = file.shape(SCALE).and_then(|shape| shape.last().copied()).unwrap_or(0);
        let floats = |name: &str, shape: &[usize]| {
            let view = file.get(name)?;
            if view.shape != shape {
                return Err(fail(format!("tensor `{name}` has shape {:?}, expected {shape:?}", view.shape)));
            }
            let found = view.to_tensor().and_then(|tensor| tensor.to_f32());
            let found =
                found.ok_or_else(|| fail(format!("tensor `{name}` is {}, expected f32, f16 or bf16", view.dtype)))?;
            match found.iter().all(|value| value.is_finite()) {
                true => Ok(found.iter().copied().collect::<Vec<f32>>()),
                false => Err(fail(format!("tensor `{name}` holds NaN or infinity"))),
            }
        };
        let (scale, bias) = (floats(SCALE, &[count, width])?, floats(BIAS, &[count, width])?);
        let logits = if file.contains(LOGITS) { floats(LOGITS, &[count])? } else { vec![0.0; count] };
        if let Some(other) = file.names().into_iter().find(|name| ![SCALE, BIAS, LOGITS].contains(&&name[..])) {
            return Err(fail(format!("tensor `{other}` is none of {SCALE}, {BIAS} and {LOGITS}")));
        }
        Ok(Self { label: path.display().to_string(), names, blocks, width, scale, bias, logits })
    }

    /// The blocks of a transformer of this width and depth that see the controls.
    ///
    /// # Errors
    /// If they are for another transformer.
    fn blocks(&self, width: usize, depth: usize) -> Result<Vec<usize>, ExportError> {
        let unfit = |what: &str, expected: String, found: String| ExportError::Unsupported {
            what: format!("{}: {what} {found}", self.label),
            reason: format!("the transformer has {expected}; use controls that were trained for it"),
        };
        if self.width != width {
            return Err(unfit("width", format!("width {width}"), self.width.to_string()));
        }
        let blocks = self.blocks.clone().unwrap_or_else(|| (0..depth.div_ceil(3)).collect());
        match blocks.last() {
            Some(last) if *last >= depth => {
                Err(unfit("control_blocks", format!("blocks 0 to {}", depth - 1), format!("{blocks:?}")))
            }
            _ => Ok(blocks),
        }
    }
}

/// The tokens of the controls in a graph.
pub(crate) struct ControlTokens {
    /// `[B, K, width]`.
    tokens: Value,
    /// What is added to their logits, `[B, 1, K, 1]`.
    bias: Value,
    width: usize,
    /// The blocks that see them.
    pub(crate) blocks: Vec<usize>,
}

impl ControlTokens {
    /// The tokens of these controls, if there are any, for a transformer of this width and depth. Adds the inputs `control` and
    /// `control_mask`, both `[B, K]` f32; a control whose mask is 0 is off.
    ///
    /// # Errors
    /// If the controls are for another transformer.
    pub(crate) fn of(
        b: &mut Builder,
        controls: Option<&Controls>,
        width: usize,
        depth: usize,
    ) -> Result<Option<Self>, ExportError> {
        let Some(controls) = controls else { return Ok(None) };
        let blocks = controls.blocks(width, depth)?;
        Ok(Some(b.scope("control", |b| Self::new(b, controls, blocks))))
    }

    fn new(b: &mut Builder, controls: &Controls, blocks: Vec<usize>) -> Self {
        let (count, width) = (controls.names.len(), controls.width);
        let shape = || [Dim::from("batch"), Dim::Fixed(count)];
        let control = b.input(CONTROL, DataType::Float, shape());
        let mask = b.input(CONTROL_MASK, DataType::Float, shape());
        b.in_fp32(|b| {
            let (scale, bias) = (b.floats(&[count, width], &controls.scale), b.floats(&[count, width], &controls.bias));
            let control = b.unsqueeze(&control, &[2]);
            let scaled = b.op("Mul", &[&control, &scale]);
            let tokens = b.op("Add", &[&scaled, &bias]);
            let (zero, off) = (b.float(0.0), b.float(OFF));
            let is_off = b.op("Equal", &[&mask, &zero]);
            let logits = b.floats(&[1, count], &controls.logits);
            let bias = b.op("Where", &[&is_off, &off, &logits]);
            let bias = b.unsqueeze(&bias, &[1, 3]);
            Self { tokens, bias, width, blocks }
        })
    }

    /// Rows `[B·N, width]` with the controls behind those of each sample: `[B·(N + K), width]`.
    pub(crate) fn behind(&self, b: &mut Builder, rows: &Value, batch: &Value) -> Value {
        let rows = b.reshape(rows, &[Extent::from(batch), (-1i64).into(), self.width.into()]);
        let all = b.concat(&[&rows, &self.tokens], 1);
        b.reshape(&all, &[(-1i64).into(), self.width.into()])
    }

    /// Keys `[B, H, N + K, D]`, of which `position` is applied to the video's `[B, H, N, D]` alone.
    pub(crate) fn positioned(
        &self,
        b: &mut Builder,
        keys: &Value,
        video: &Value,
        position: impl FnOnce(&mut Builder, &Value) -> Value,
    ) -> Value {
        let own = b.slice(keys, 2, 0i64.into(), Extent::from(video));
        let controls = b.slice(keys, 2, Extent::from(video), i64::MAX.into());
        let own = position(b, &own);
        b.concat(&[&own, &controls], 2)
    }

    /// Attention of queries `[B, H, N, D]` to keys and values `[B, H, N + K, D]`, the last K of which are the controls', as
    /// rows `[B·N, H·D]`. Queries before the number `blind` do not see them.
    pub(crate) fn attend(
        &self,
        b: &mut Builder,
        [q, k, v]: [&Value; 3],
        (batch, heads, dim): (&Value, usize, usize),
        blind: Option<&Value>,
    ) -> Value {
        let scale = 1.0 / (dim as f32).sqrt();
        let tokens = b.extent(q, 2);
        let (one, zero) = (b.float(1.0), b.float(0.0));
        let column = |b: &mut Builder, value: &Value, rows: &Value| {
            let shape = b.shape(&[Extent::from(batch), 1i64.into(), Extent::from(rows), 1i64.into()]);
            b.op("Expand", &[value, &shape])
        };
        // Logits are `scale · (q · k + Σ query · key)` over the columns.
        let over = b.float(1.0 / scale);
        let mut queries = vec![column(b, &one, &tokens)];
        let none = column(b, &zero, &tokens);
        let bias = b.op("Mul", &[&self.bias, &over]);
        let mut keys = vec![b.concat(&[&none, &bias], 2)];
        if let Some(blind) = blind {
            let rest = b.op("Sub", &[&tokens, blind]);
            let parts = [column(b, &one, blind), column(b, &zero, &rest)];
            queries.push(b.concat(&[&parts[0], &parts[1]], 2));
            let off = b.float(OFF / scale);
            let controls = b.extent(&self.tokens, 1);
            let off = column(b, &off, &controls);
            keys.push(b.concat(&[&none, &off], 2));
        }
        let count = queries.len();
        let mut wide = |x: &Value, columns: &[Value]| {
            let columns = b.concat(&columns.iter().collect::<Vec<_>>(), 3);
            let rows = b.extent(x, 2);
            let shape = b.shape(&[Extent::from(batch), heads.into(), Extent::from(&rows), count.into()]);
            let columns = b.op("Expand", &[&columns, &shape]);
            b.concat(&[x, &columns], 3)
        };
        let (q, k) = (wide(q, &queries), wide(k, &keys));
        let rows = b.extent(v, 2);
        let nothing = column(b, &zero, &rows);
        let shape = b.shape(&[Extent::from(batch), heads.into(), Extent::from(&rows), count.into()]);
        let nothing = b.op("Expand", &[&nothing, &shape]);
        let v = b.concat(&[v, &nothing], 3);
        let mixed = v2l_graphs::blocks::scaled_dot_product_attention(b, &q, &k, &v, Some(scale), None);
        let mixed = b.transpose(&mixed, &[0, 2, 1, 3]);
        let mixed = b.slice(&mixed, 3, 0i64.into(), dim.into());
        b.reshape(&mixed, &[(-1i64).into(), (heads * dim).into()])
    }
}
