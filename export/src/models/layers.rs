//! Layers with their parameters, as every architecture has them.

use v2l_graphs::{Builder, Value, blocks};

use crate::{ExportError, Vars};

/// The linear layer `vars` `[out, in]` of `x` `[rows, in]`.
pub(crate) fn linear(
    b: &mut Builder,
    vars: &Vars<'_>,
    x: &Value,
    [out, input]: [usize; 2],
    bias: bool,
) -> Result<Value, ExportError> {
    let weight = vars.get(b, "weight", &[out, input])?;
    let bias = if bias { Some(vars.get(b, "bias", &[out])?) } else { None };
    Ok(blocks::linear(b, x, &weight, bias.as_ref()))
}

/// The layer norm `vars` over the last axis, of width `dim`.
pub(crate) fn layer_norm(
    b: &mut Builder,
    vars: &Vars<'_>,
    x: &Value,
    dim: usize,
    epsilon: f32,
) -> Result<Value, ExportError> {
    let (scale, bias) = (vars.get(b, "weight", &[dim])?, vars.get(b, "bias", &[dim])?);
    Ok(blocks::layer_norm(b, x, &scale, Some(&bias), epsilon))
}
