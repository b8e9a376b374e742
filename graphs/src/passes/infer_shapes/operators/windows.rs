//! Convolution, pooling, resizing and padding.

use super::{extents, like};
use crate::passes::infer_shapes::expr::Expr;
use crate::passes::infer_shapes::symbols::Symbols;
use crate::passes::infer_shapes::{Inference, Partial};
use crate::passes::tensor::{Numbers, Tensor, axis};
use crate::{Attribute, Node};

pub(super) fn conv(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let (x, weight) = (like(cx, node, 0)?, like(cx, node, 1)?);
    if x.len() != weight.len() || x.len() < 3 {
        return None;
    }
    let kernel: Vec<Option<i64>> = match node.ints("kernel_shape") {
        Some(kernel) => kernel.iter().copied().map(Some).collect(),
        None => weight[2..].iter().map(|e| e.as_ref().and_then(Expr::number)).collect(),
    };
    windowed(cx, node, &x, weight[0].clone(), &kernel)
}

pub(super) fn pool(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let x = like(cx, node, 0)?;
    let kernel: Vec<Option<i64>> = node.ints("kernel_shape")?.iter().copied().map(Some).collect();
    let channels = x.get(1)?.clone();
    windowed(cx, node, &x, channels, &kernel)
}

/// `[batch, channels, …]` with every further extent `⌊(extent + pads − window) / stride⌋ + 1`.
fn windowed(
    cx: &mut Inference<'_>,
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
            let steps = cx.symbols.floor_div(&reach, of("strides", axis, 1)?)?;
            steps.add(&1.into())
        });
        shape.push(extent);
    }
    Some(shape)
}

/// By sizes, or by scales that are whole or a half, a quarter, ….
pub(super) fn resize(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let x = like(cx, node, 0)?;
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
    if Inference::given(node, 3) {
        return extents(cx, node, 3).filter(|sizes| sizes.len() == x.len()).or(open);
    }
    let Some(scales) = cx.floats(node, 2).filter(|scales| scales.len() == x.len()) else { return open };
    Some(x.iter().zip(scales).map(|(e, scale)| scaled(&mut cx.symbols, e.as_ref()?, scale)).collect())
}

fn scaled(symbols: &mut Symbols, extent: &Expr, scale: f32) -> Option<Expr> {
    let whole = |f: f32| (f.fract() == 0.0 && (1.0..=1024.0).contains(&f)).then_some(f as i64);
    if let Some(factor) = whole(scale) {
        return extent.mul(&factor.into());
    }
    let parts = whole(1.0 / scale).filter(|n| n.count_ones() == 1)?;
    symbols.floor_div(extent, parts)
}

pub(super) fn pad(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let mut shape = like(cx, node, 0)?;
    let open = Some(vec![None; shape.len()]);
    let pads = if Inference::given(node, 1) { cx.numbers(node, 1) } else { node.ints("pads").map(<[i64]>::to_vec) };
    let axes: Option<Vec<usize>> = if Inference::given(node, 3) {
        cx.numbers(node, 3).and_then(|axes| axes.into_iter().map(|a| axis(a, shape.len())).collect())
    } else {
        Some((0..shape.len()).collect())
    };
    let (Some(pads), Some(axes)) = (pads, axes) else { return open };
    if pads.len() != 2 * axes.len() {
        return open;
    }
    for (i, &at) in axes.iter().enumerate() {
        let total = pads[i].checked_add(pads[i + axes.len()]);
        shape[at] = shape[at].as_ref().and_then(|e| e.add(&total?.into()));
    }
    Some(shape)
}

impl Inference<'_> {
    /// The elements of a constant float input.
    fn floats(&self, node: &Node, input: usize) -> Option<Vec<f32>> {
        let name = node.inputs.get(input)?;
        let constant = self.graph.initializers.get(name).filter(|i| !i.external)?;
        if self.graph.inputs.iter().any(|i| i.name == *name) {
            return None;
        }
        match Tensor::from_initializer(constant)?.numbers()? {
            Numbers::Float(values) => Some(values),
            _ => None,
        }
    }
}
