use crate::{Builder, Extent, Value};

/// Where a causal convolution gets the two frames before its input.
#[derive(Clone, Debug)]
pub enum TimeCache {
    /// The first frame, repeated: the first chunk of a video.
    RepeatFirst,
    /// Zeros: the first chunk of a video.
    Zeros,
    /// The last two frames of the previous chunk.
    Previous(Value),
}

/// 3×3×3 convolution of `x` `[B, C, T, H, W]`, causal in time and zero-padded by one pixel in space.
///
/// `weight` is `[out, C, 3, 3, 3]`. Returns the result `[B, out, T, H, W]` and the cache `[B, C, 2, H, W]` for the next
/// chunk: the last two frames of the time-padded input.
pub fn causal_conv3d(b: &mut Builder, x: &Value, weight: &Value, bias: &Value, cache: &TimeCache) -> (Value, Value) {
    causal_conv(b, x, [weight, bias], cache, 1)
}

/// The same over time alone: `weight` is `[out, C, 3, 1, 1]`.
pub fn causal_time_conv(b: &mut Builder, x: &Value, weight: &Value, bias: &Value, cache: &TimeCache) -> (Value, Value) {
    causal_conv(b, x, [weight, bias], cache, 0)
}

/// Causal convolution over three frames, and `reach` pixels to each side.
fn causal_conv(b: &mut Builder, x: &Value, kernel: [&Value; 2], cache: &TimeCache, reach: i64) -> (Value, Value) {
    let padded = match cache {
        TimeCache::RepeatFirst => {
            let first = b.slice(x, 2, 0i64.into(), 1i64.into());
            b.concat(&[&first, &first, x], 2)
        }
        TimeCache::Zeros => zero_frames_before(b, x, 2),
        TimeCache::Previous(frames) => b.concat(&[frames, x], 2),
    };
    let next = b.slice(&padded, 2, (-2i64).into(), i64::MAX.into());
    let side = 2 * reach + 1;
    let out = b
        .node("Conv", &[&padded, kernel[0], kernel[1]])
        .attr("kernel_shape", vec![3, side, side])
        .attr("pads", vec![0, reach, reach, 0, reach, reach])
        .out();
    (out, next)
}

/// `x` `[B, C, T, H, W]` behind `count` frames of zeros.
pub fn zero_frames_before(b: &mut Builder, x: &Value, count: i64) -> Value {
    let pads = b.ints(&[0, 0, count, 0, 0, 0, 0, 0, 0, 0]);
    b.op("Pad", &[x, &pads])
}

/// 1×1×1 convolution of `x` `[B, C, T, H, W]`; `weight` is `[out, C, 1, 1, 1]`.
pub fn conv3d(b: &mut Builder, x: &Value, weight: &Value, bias: &Value) -> Value {
    b.node("Conv", &[x, weight, bias]).attr("kernel_shape", vec![1, 1, 1]).out()
}

/// 3×3 convolution of each frame of `x` `[B, C, T, H, W]`; `weight` is `[out, C, 3, 3]`, `channels` are `[out, C]`, and
/// `pads` as in ONNX (top, left, bottom, right).
pub fn conv2d_per_frame(
    b: &mut Builder,
    x: &Value,
    weight: &Value,
    bias: &Value,
    [out, input]: [usize; 2],
    stride: i64,
    pads: [i64; 4],
) -> Value {
    let (batch, time) = (b.extent(x, 0), b.extent(x, 2));
    let (height, width) = (b.extent(x, 3), b.extent(x, 4));
    let frames = b.transpose(x, &[0, 2, 1, 3, 4]);
    let frames = b.reshape(&frames, &[(-1i64).into(), input.into(), Extent::from(&height), Extent::from(&width)]);
    let result = b
        .node("Conv", &[&frames, weight, bias])
        .attr("kernel_shape", vec![3, 3])
        .attr("strides", vec![stride, stride])
        .attr("pads", pads.to_vec())
        .out();
    let (height, width) = (b.extent(&result, 2), b.extent(&result, 3));
    let result = b.reshape(
        &result,
        &[Extent::from(&batch), Extent::from(&time), out.into(), Extent::from(&height), Extent::from(&width)],
    );
    b.transpose(&result, &[0, 2, 1, 3, 4])
}
