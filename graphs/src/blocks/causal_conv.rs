use crate::{Builder, Extent, Value};

/// Where a causal convolution gets the two frames before its input.
#[derive(Clone, Debug)]
pub enum TimeCache {
    /// The first frame, repeated: the first chunk of a video.
    RepeatFirst,
    /// The last two frames of the previous chunk.
    Previous(Value),
}

/// 3×3×3 convolution of `x` `[B, C, T, H, W]`, causal in time and zero-padded by one pixel in space.
///
/// `weight` is `[out, C, 3, 3, 3]`. Returns the result `[B, out, T, H, W]` and the cache `[B, C, 2, H, W]` for the next
/// chunk: the last two frames of the time-padded input.
pub fn causal_conv3d(b: &mut Builder, x: &Value, weight: &Value, bias: &Value, cache: &TimeCache) -> (Value, Value) {
    let padded = match cache {
        TimeCache::RepeatFirst => {
            let first = b.slice(x, 2, 0i64.into(), 1i64.into());
            b.concat(&[&first, &first, x], 2)
        }
        TimeCache::Previous(frames) => b.concat(&[frames, x], 2),
    };
    let next = b.slice(&padded, 2, (-2i64).into(), i64::MAX.into());
    let out = b
        .node("Conv", &[&padded, weight, bias])
        .attr("kernel_shape", vec![3, 3, 3])
        .attr("pads", vec![0, 1, 1, 0, 1, 1])
        .out();
    (out, next)
}

/// 1×1×1 convolution of `x` `[B, C, T, H, W]`; `weight` is `[out, C, 1, 1, 1]`.
pub fn conv3d(b: &mut Builder, x: &Value, weight: &Value, bias: &Value) -> Value {
    b.node("Conv", &[x, weight, bias]).attr("kernel_shape", vec![1, 1, 1]).out()
}

/// 3×3 convolution of each frame of `x` `[B, C, T, H, W]`; `pads` as in ONNX (top, left, bottom, right).
pub fn conv2d_per_frame(
    b: &mut Builder,
    x: &Value,
    weight: &Value,
    bias: &Value,
    channels: usize,
    stride: i64,
    pads: [i64; 4],
) -> Value {
    let (batch, time) = (b.extent(x, 0), b.extent(x, 2));
    let (height, width) = (b.extent(x, 3), b.extent(x, 4));
    let frames = b.transpose(x, &[0, 2, 1, 3, 4]);
    let frames = b.reshape(&frames, &[(-1i64).into(), channels.into(), Extent::from(&height), Extent::from(&width)]);
    let out = b
        .node("Conv", &[&frames, weight, bias])
        .attr("kernel_shape", vec![3, 3])
        .attr("strides", vec![stride, stride])
        .attr("pads", pads.to_vec())
        .out();
    let (height, width) = (b.extent(&out, 2), b.extent(&out, 3));
    let out = b.reshape(
        &out,
        &[Extent::from(&batch), Extent::from(&time), channels.into(), Extent::from(&height), Extent::from(&width)],
    );
    b.transpose(&out, &[0, 2, 1, 3, 4])
}
