use crate::{Builder, Value};

/// `x · sigmoid(x)`.
pub fn silu(b: &mut Builder, x: &Value) -> Value {
    let gate = b.op("Sigmoid", &[x]);
    b.op("Mul", &[x, &gate])
}

/// GELU by the error function.
pub fn gelu(b: &mut Builder, x: &Value) -> Value {
    b.node("Gelu", &[x]).attr("approximate", "none").out()
}

/// GELU by its tanh approximation (`gelu-approximate`, `gelu_new`).
pub fn gelu_tanh(b: &mut Builder, x: &Value) -> Value {
    b.node("Gelu", &[x]).attr("approximate", "tanh").out()
}

/// `x · sigmoid(1.702 · x)`: CLIP's approximation of GELU.
pub fn quick_gelu(b: &mut Builder, x: &Value) -> Value {
    let factor = b.float(1.702);
    let scaled = b.op("Mul", &[x, &factor]);
    let gate = b.op("Sigmoid", &[&scaled]);
    b.op("Mul", &[x, &gate])
}
