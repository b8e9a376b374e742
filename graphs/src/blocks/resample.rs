use crate::{Builder, Extent, Value};

/// `extent mod 2` for an int64 value `[1]`.
fn parity(b: &mut Builder, extent: &Value) -> Value {
    let two = b.ints(&[2]);
    b.op("Mod", &[extent, &two])
}

/// Halves the time axis of `x` `[B, C, T, H, W]`: frames are averaged in pairs; an odd first frame stays by itself.
pub fn average_frame_pairs(b: &mut Builder, x: &Value) -> Value {
    let frames = b.extent(x, 2);
    let odd = parity(b, &frames);
    let (one, two) = (b.ints(&[1]), b.ints(&[2]));
    let halves = b.op("Add", &[&frames, &odd]);
    let halves = b.op("Div", &[&halves, &two]);
    // Pairs are (2j − odd, 2j + 1 − odd), the first clipped at 0: an odd first frame is averaged with itself.
    let index = b.range(&halves);
    let doubled = b.op("Mul", &[&index, &two]);
    let left = b.op("Sub", &[&doubled, &odd]);
    let right = b.op("Add", &[&left, &one]);
    let zero = b.ints(&[0]);
    let left = b.op("Max", &[&left, &zero]);
    let (left, right) = (b.gather(x, &left, 2), b.gather(x, &right, 2));
    let sum = b.op("Add", &[&left, &right]);
    let half = b.float(0.5);
    b.op("Mul", &[&sum, &half])
}

/// Doubles the time axis of `x` `[B, C, T, H, W]` by repeating frames; with `first_apart`, an odd first frame stays
/// single.
pub fn repeat_frames(b: &mut Builder, x: &Value, first_apart: bool) -> Value {
    let frames = b.extent(x, 2);
    let odd = if first_apart { parity(b, &frames) } else { b.ints(&[0]) };
    let two = b.ints(&[2]);
    let doubled = b.op("Mul", &[&frames, &two]);
    let count = b.op("Sub", &[&doubled, &odd]);
    let index = b.range(&count);
    let index = b.op("Add", &[&index, &odd]);
    let index = b.op("Div", &[&index, &two]);
    b.gather(x, &index, 2)
}

/// Nearest-neighbour doubling of height and width of `x` `[B, C, T, H, W]`.
pub fn double_space(b: &mut Builder, x: &Value) -> Value {
    let scales = b.floats(&[5], &[1.0, 1.0, 1.0, 2.0, 2.0]);
    let none = Value::from("");
    b.node("Resize", &[x, &none, &scales])
        .attr("mode", "nearest")
        .attr("coordinate_transformation_mode", "asymmetric")
        .attr("nearest_mode", "floor")
        .out()
}

/// Which frame of a latent of `from` frames belongs to each of `to` frames, both int64 values `[1]`, by nearest
/// neighbour; with `first_apart`, an odd first frame by itself.
pub fn nearest_frames(b: &mut Builder, from: &Value, to: &Value, first_apart: bool) -> Value {
    let odd = if first_apart { parity(b, to) } else { b.ints(&[0]) };
    let one = b.ints(&[1]);
    let source = b.op("Sub", &[from, &odd]);
    let target = b.op("Sub", &[to, &odd]);
    let target = b.op("Max", &[&target, &one]);
    let index = b.range(to);
    let offset = b.op("Sub", &[&index, &odd]);
    let scaled = b.op("Mul", &[&offset, &source]);
    let zero = b.ints(&[0]);
    let scaled = b.op("Max", &[&scaled, &zero]);
    let nearest = b.op("Div", &[&scaled, &target]);
    // Frame 0 of an odd sequence keeps source 0; every other is shifted past it.
    let shift = b.op("Min", &[&index, &odd]);
    b.op("Add", &[&nearest, &shift])
}

/// Nearest-neighbour resize of `x` `[B, channels, T, h, w]` to the height and width of `like` `[B, C, T', H, W]`.
pub fn resize_space_like(b: &mut Builder, x: &Value, channels: usize, like: &Value) -> Value {
    let (batch, time) = (b.extent(x, 0), b.extent(x, 2));
    let (height, width) = (b.extent(like, 3), b.extent(like, 4));
    let sizes = b.shape(&[
        Extent::from(&batch),
        channels.into(),
        Extent::from(&time),
        Extent::from(&height),
        Extent::from(&width),
    ]);
    let none = Value::from("");
    b.node("Resize", &[x, &none, &none, &sizes])
        .attr("mode", "nearest")
        .attr("coordinate_transformation_mode", "asymmetric")
        .attr("nearest_mode", "floor")
        .out()
}
