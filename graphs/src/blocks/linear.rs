use crate::{Builder, Value};

/// `y = x · Wᵀ + bias` for `x` `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`; one `Gemm` fed directly by its
/// weight.
pub fn linear(b: &mut Builder, x: &Value, weight: &Value, bias: Option<&Value>) -> Value {
    let inputs: Vec<&Value> = [x, weight].into_iter().chain(bias).collect();
    b.node("Gemm", &inputs).attr("transB", 1).out()
}
