use crate::{Builder, Extent, Value};

/// Cosine and sine tables for a whole sequence whose first tokens are not rotated, split into even and odd columns.
#[derive(Clone, Debug)]
pub struct RotaryTables {
    cos: [Value; 2],
    sin: [Value; 2],
}

impl RotaryTables {
    /// Tables `[S, D/2, 1]` of a cosine and a sine for each pair.
    pub fn of_pairs(cos: Value, sin: Value) -> Self {
        Self { cos: [cos.clone(), cos], sin: [sin.clone(), sin] }
    }

    /// Tables for `leading` unrotated tokens (an int64 value `[1]`) followed by those of `cos` and `sin` `[S, D]`.
    ///
    /// The unrotated tokens get cosine 1 and sine 0, which leaves them exactly as they are.
    pub fn new(b: &mut Builder, cos: &Value, sin: &Value, leading: &Value, head_dim: usize) -> Self {
        b.in_fp32(|b| {
            let shape = b.shape(&[Extent::from(leading), head_dim.into()]);
            let (one, zero) = (b.float(1.0), b.float(0.0));
            let ones = b.op("Expand", &[&one, &shape]);
            let zeros = b.op("Expand", &[&zero, &shape]);
            let mut halves = |head: &Value, table: &Value| {
                let table = b.concat(&[head, table], 0);
                let pairs = b.reshape(&table, &[(-1i64).into(), (head_dim / 2).into(), 2i64.into()]);
                let parts = b.split(&pairs, -1, 2);
                [parts[0].clone(), parts[1].clone()]
            };
            Self { cos: halves(&ones, cos), sin: halves(&zeros, sin) }
        })
    }
}

/// Rotates adjacent pairs of the last axis of `x` `[B, H, S, D]`:
/// `(x₀·cos₀ − x₁·sin₀, x₁·cos₁ + x₀·sin₁)`, always in float32, as the reference does.
pub fn rotate_interleaved(b: &mut Builder, x: &Value, tables: &RotaryTables, head_dim: usize) -> Value {
    b.in_fp32(|b| {
        let pairs = b.reshape(x, &[0i64.into(), 0i64.into(), 0i64.into(), (head_dim / 2).into(), 2i64.into()]);
        let parts = b.split(&pairs, -1, 2);
        let mut product = |x: &Value, table: &Value| b.op("Mul", &[x, table]);
        let terms = [
            product(&parts[0], &tables.cos[0]),
            product(&parts[1], &tables.sin[0]),
            product(&parts[1], &tables.cos[1]),
            product(&parts[0], &tables.sin[1]),
        ];
        let even = b.op("Sub", &[&terms[0], &terms[1]]);
        let odd = b.op("Add", &[&terms[2], &terms[3]]);
        let rotated = b.concat(&[&even, &odd], -1);
        b.reshape(&rotated, &[0i64.into(), 0i64.into(), 0i64.into(), head_dim.into()])
    })
}
