//! Operators over images and volumes `[batch, channels, …]`: convolution, pooling, resizing, sampling.

use super::entry::{Argument, INT64, Kind, MANY, Operator, RowRule, ShapeRule, known, op};
use super::extents::{extents, number};
use crate::symbolic::{Expr, Facts, Partial, Symbols};
use crate::{Attribute, Node};

/// A convolution of the first input by the second.
const fn convolution(name: &'static str) -> Operator {
    op(name, 1, 2, 3).same(0, MANY).narrow().weight_rank(|input, rank| match input {
        1 if rank < 3 => Some("at least three extents: [out, in / groups, kernel…]"),
        2 if rank != 1 => Some("one extent"),
        _ => None,
    })
}

/// Pooling by windows of `kernel_shape`.
const fn pool(name: &'static str) -> Operator {
    op(name, 1, 1, 1).required(&["kernel_shape"]).shape(ShapeRule::First(pool_shape))
}

pub(super) static OPERATORS: &[Operator] = &[
    known("AffineGrid", 20).arguments(&[(1, Argument::Extent)]),
    pool("AveragePool").narrow(),
    known("CausalConvWithState", 27),
    known("Col2Im", 18).arguments(&[(1, Argument::Extent), (2, Argument::Extent)]),
    convolution("Conv")
        .kind(Kind::Layer)
        .shape(ShapeRule::First(conv_shape))
        .rows(RowRule::By(|reads, rank| Some(reads.only_first_apart() && rank >= 3))),
    convolution("ConvTranspose").kind(Kind::Product),
    known("DeformConv", 19).kind(Kind::Product),
    op("GlobalAveragePool", 1, 1, 1).kind(Kind::Accumulation).shape(ShapeRule::First(global_pool_shape)).narrow(),
    known("GlobalLpPool", 1),
    known("GlobalMaxPool", 1),
    known("GridSample", 16),
    known("LpPool", 1),
    pool("MaxPool").kind(Kind::Move).outputs(1, 2).others(INT64),
    known("MaxRoiPool", 1),
    known("MaxUnpool", 9).arguments(&[(2, Argument::Extent)]),
    // Regions, scales and sizes are float32 or integers.
    op("Resize", 10, 1, 4)
        .arguments(&[(2, Argument::Factor), (3, Argument::Extent)])
        .shape(ShapeRule::First(resize_shape))
        .narrow()
        .float32_from(1),
    known("RoiAlign", 10).arguments(&[(2, Argument::Row)]),
    known("Upsample", 1).arguments(&[(1, Argument::Factor)]),
];

fn conv_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let (x, weight) = (facts.partial(node, 0)?, facts.partial(node, 1)?);
    if x.len() != weight.len() || x.len() < 3 {
        return None;
    }
    let kernel: Vec<Option<i64>> = match node.ints("kernel_shape") {
        Some(kernel) => kernel.iter().copied().map(Some).collect(),
        None => weight[2..].iter().map(|e| e.as_ref().and_then(Expr::number)).collect(),
    };
    windowed(facts, node, &x, weight[0].clone(), &kernel)
}

fn pool_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let x = facts.partial(node, 0)?;
    let kernel: Vec<Option<i64>> = node.ints("kernel_shape")?.iter().copied().map(Some).collect();
    let channels = x.get(1)?.clone();
    windowed(facts, node, &x, channels, &kernel)
}

fn global_pool_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shape = facts.partial(node, 0)?;
    Some(shape.into_iter().enumerate().map(|(at, e)| if at < 2 { e } else { number(1) }).collect())
}

/// `[batch, channels, …]` with every further extent `⌊(extent + pads − window) / stride⌋ + 1`.
fn windowed(
    facts: &mut Facts<'_>,
    node: &Node,
    x: &Partial,
    channels: Option<Expr>,
    kernel: &[Option<i64>],
) -> Option<Partial> {
    let spatial = x.len().checked_sub(2)?;
    let of = |name: &str, axis: usize, default: i64| node.ints(name).map_or(Some(default), |v| v.get(axis).copied());
    let rounds_down = node.int("ceil_mode").unwrap_or(0) == 0;
    let padding = match node.attributes.get("auto_pad") {
        None => Some(true),
        Some(Attribute::String(mode)) if mode.is_empty() || &mode[..] == b"NOTSET" => Some(true),
        Some(Attribute::String(mode)) if &mode[..] == b"VALID" => Some(false),
        Some(_) => None,
    };
    let mut shape = vec![x[0].clone(), channels];
    for axis in 0..spatial {
        let reach = || {
            let pad = |end: usize| if padding? { of("pads", axis + end * spatial, 0) } else { Some(0) };
            let window = (*kernel.get(axis)?)?.checked_sub(1)?.checked_mul(of("dilations", axis, 1)?)?;
            let slack = pad(0)?.checked_add(pad(1)?)?.checked_sub(window.checked_add(1)?)?;
            x[axis + 2].as_ref()?.add(&slack.into())
        };
        let extent = reach().filter(|_| rounds_down).and_then(|reach| {
            let steps = facts.symbols.floor_div(&reach, of("strides", axis, 1)?)?;
            steps.add(&1.into())
        });
        shape.push(extent);
    }
    Some(shape)
}

/// By sizes, or by scales that are whole or a half, a quarter, ….
fn resize_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let x = facts.partial(node, 0)?;
    let open = Some(vec![None; x.len()]);
    let stretches = match node.attributes.get("keep_aspect_ratio_policy") {
        None => true,
        Some(Attribute::String(policy)) => &policy[..] == b"stretch",
        Some(_) => false,
    };
    // Two inputs: an old operator set, in which the second has another meaning.
    if node.attributes.contains_key("axes") || !stretches || node.inputs.len() < 3 {
        return open;
    }
    if node.has_input(3) {
        return extents(facts, node, 3).filter(|sizes| sizes.len() == x.len()).or(open);
    }
    let Some(scales) = facts.floats(node, 2).filter(|scales| scales.len() == x.len()) else { return open };
    Some(x.iter().zip(scales).map(|(e, scale)| scaled(&mut facts.symbols, e.as_ref()?, scale)).collect())
}

fn scaled(symbols: &mut Symbols, extent: &Expr, scale: f32) -> Option<Expr> {
    let whole = |f: f32| (f.fract() == 0.0 && (1.0..=1024.0).contains(&f)).then_some(f as i64);
    if let Some(factor) = whole(scale) {
        return extent.mul(&factor.into());
    }
    let parts = whole(1.0 / scale).filter(|n| n.count_ones() == 1)?;
    symbols.floor_div(extent, parts)
}
