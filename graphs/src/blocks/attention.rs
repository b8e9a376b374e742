use crate::{Builder, Extent, Value};

/// `[B·S, H·D]` to `[B, S, H, D]`, where `batch` is the int64 value `[1]` of B.
pub fn split_heads(b: &mut Builder, x: &Value, batch: &Value, heads: usize, head_dim: usize) -> Value {
    b.reshape(x, &[Extent::from(batch), (-1i64).into(), heads.into(), head_dim.into()])
}

/// `[B, H, S, D]` to `[B·S, H·D]`.
pub fn merge_heads(b: &mut Builder, x: &Value, heads: usize, head_dim: usize) -> Value {
    let x = b.transpose(x, &[0, 2, 1, 3]);
    b.reshape(&x, &[(-1i64).into(), (heads * head_dim).into()])
}

/// `softmax(scale · q kᵀ + bias) v` for `q` `[B, H, S, D]` and `k`, `v` `[B, H, L, D]`; `bias` broadcasts to `[B, H,
/// S, L]`.
pub fn scaled_dot_product_attention(
    b: &mut Builder,
    q: &Value,
    k: &Value,
    v: &Value,
    scale: Option<f32>,
    bias: Option<&Value>,
) -> Value {
    let q = match scale {
        Some(scale) => {
            let scale = b.float(scale);
            b.op("Mul", &[q, &scale])
        }
        None => q.clone(),
    };
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let mut logits = b.op("MatMul", &[&q, &k]);
    if let Some(bias) = bias {
        logits = b.op("Add", &[&logits, bias]);
    }
    let weights = b.node("Softmax", &[&logits]).attr("axis", -1).out();
    b.op("MatMul", &[&weights, v])
}
