use crate::{Builder, Extent, Value};

/// Layer normalisation over the last axis with scale and bias.
pub fn layer_norm(b: &mut Builder, x: &Value, scale: &Value, bias: Option<&Value>, epsilon: f32) -> Value {
    let inputs: Vec<&Value> = [x, scale].into_iter().chain(bias).collect();
    b.node("LayerNormalization", &inputs).attr("axis", -1).attr("epsilon", epsilon).out()
}

/// Root-mean-square normalisation over the last axis: `x / sqrt(mean(x²) + epsilon) · scale`.
pub fn rms_norm(b: &mut Builder, x: &Value, scale: &Value, epsilon: f32) -> Value {
    let square = b.op("Mul", &[x, x]);
    let axes = b.ints(&[-1]);
    let mean = b.op("ReduceMean", &[&square, &axes]);
    let epsilon = b.float(epsilon);
    let shifted = b.op("Add", &[&mean, &epsilon]);
    let root = b.op("Sqrt", &[&shifted]);
    let normal = b.op("Div", &[x, &root]);
    b.op("Mul", &[&normal, scale])
}

/// Group normalisation of `x` `[B, C, T, H, W]` over each group's channels and all of time and space, then
/// `· scale + bias` per channel.
///
/// `scale` and `bias` are `[C]`. The statistics come from `InstanceNormalization` over a `[B, groups, …]` view.
pub fn group_norm(b: &mut Builder, x: &Value, groups: usize, scale: &Value, bias: &Value, epsilon: f32) -> Value {
    let (ones, zeros) = (b.floats(&[groups], &vec![1.0; groups]), b.floats(&[groups], &vec![0.0; groups]));
    let grouped = b.reshape(x, &[0i64.into(), groups.into(), (-1i64).into()]);
    let normal = b.node("InstanceNormalization", &[&grouped, &ones, &zeros]).attr("epsilon", epsilon).out();
    let extents: Vec<Value> = (0..5).map(|axis| b.extent(x, axis)).collect();
    let normal = b.reshape(&normal, &extents.iter().map(Extent::from).collect::<Vec<_>>());
    let (scale, bias) = (b.unsqueeze(scale, &[1, 2, 3]), b.unsqueeze(bias, &[1, 2, 3]));
    let scaled = b.op("Mul", &[&normal, &scale]);
    b.op("Add", &[&scaled, &bias])
}

/// `x` `[B, channels, …]` divided by its root mean square over channels, then `· gamma`; where the sum of squares has a
/// root below 1e-12, that takes its place.
///
/// `gamma` broadcasts to `x`. The statistics are always float32, as in the reference.
pub fn channel_norm(b: &mut Builder, x: &Value, channels: usize, gamma: &Value) -> Value {
    let factor = b.in_fp32(|b| {
        let square = b.op("Mul", &[x, x]);
        let axes = b.ints(&[1]);
        let sum = b.op("ReduceSum", &[&square, &axes]);
        let root = b.op("Sqrt", &[&sum]);
        let (least, scale) = (b.float(1e-12), b.float((channels as f32).sqrt()));
        let root = b.op("Max", &[&root, &least]);
        b.op("Div", &[&scale, &root])
    });
    let normal = b.op("Mul", &[x, &factor]);
    b.op("Mul", &[&normal, gamma])
}

/// `x · (1 + scale) + shift`, all broadcast against each other.
pub fn modulate(b: &mut Builder, x: &Value, scale: &Value, shift: &Value) -> Value {
    let one = b.float(1.0);
    let scale = b.op("Add", &[scale, &one]);
    let scaled = b.op("Mul", &[x, &scale]);
    b.op("Add", &[&scaled, shift])
}
