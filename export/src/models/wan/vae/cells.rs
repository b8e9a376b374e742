//! Moving neighbours in time and space to channels and back.

use v2l_graphs::{Builder, Extent, Value};

/// `[B, C, T, H, W]` to `[B, C·t·h·w, T/t, H/h, W/w]` for `factors` t, h, w, the neighbours in a channel ordered by
/// the axes `order` of these.
pub(super) fn fold(b: &mut Builder, x: &Value, channels: usize, factors: [usize; 3], order: [usize; 3]) -> Value {
    let batch = b.extent(x, 0);
    let extents = [0, 1, 2].map(|axis| {
        let extent = b.extent(x, 2 + axis as i64);
        match factors[axis] {
            1 => extent,
            factor => {
                let factor = b.ints(&[factor as i64]);
                b.op("Div", &[&extent, &factor])
            }
        }
    });
    let [time, height, width] = extents.each_ref().map(Extent::from);
    let [t, h, w] = factors.map(Extent::from);
    let batch = Extent::from(&batch);
    let grid = [batch.clone(), channels.into(), time.clone(), t, height.clone(), h, width.clone(), w];
    let split = b.reshape(x, &grid);
    let [first, second, third] = order.map(|axis| 3 + 2 * axis as i64);
    let moved = b.transpose(&split, &[0, 1, first, second, third, 2, 4, 6]);
    let folded = channels * factors.iter().product::<usize>();
    b.reshape(&moved, &[batch, folded.into(), time, height, width])
}

/// The reverse of [`fold`]; `channels` are those of the result.
pub(super) fn unfold(b: &mut Builder, x: &Value, channels: usize, factors: [usize; 3], order: [usize; 3]) -> Value {
    let extents = [0, 2, 3, 4].map(|axis| b.extent(x, axis));
    let [batch, time, height, width] = extents.each_ref().map(Extent::from);
    let [first, second, third] = order.map(|axis| Extent::from(factors[axis]));
    let split = b.reshape(x, &[batch.clone(), channels.into(), first, second, third, time, height, width]);
    // Where each factor stands now.
    let at = |axis: usize| 2 + order.iter().position(|&other| other == axis).unwrap_or(axis) as i64;
    let moved = b.transpose(&split, &[0, 1, 5, at(0), 6, at(1), 7, at(2)]);
    let full = [0, 1, 2].map(|axis| match factors[axis] {
        1 => extents[1 + axis].clone(),
        factor => {
            let factor = b.ints(&[factor as i64]);
            b.op("Mul", &[&extents[1 + axis], &factor])
        }
    });
    let [time, height, width] = full.each_ref().map(Extent::from);
    b.reshape(&moved, &[batch, channels.into(), time, height, width])
}

/// Pixels in square patches as channels: colour, column, row.
pub(super) fn from_pixels(b: &mut Builder, x: &Value, colours: usize, patch: usize) -> Value {
    match patch {
        1 => x.clone(),
        _ => b.scope("patchify", |b| fold(b, x, colours, [1, patch, patch], [0, 2, 1])),
    }
}

/// The reverse of [`from_pixels`].
pub(super) fn to_pixels(b: &mut Builder, x: &Value, colours: usize, patch: usize) -> Value {
    match patch {
        1 => x.clone(),
        _ => b.scope("unpatchify", |b| unfold(b, x, colours, [1, patch, patch], [0, 2, 1])),
    }
}
