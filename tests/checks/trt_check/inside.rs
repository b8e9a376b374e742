//! How much of an engine's weights its plan holds.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context;
use v2l_runtime::engine::Engine;

/// Bytes that are looked for as one; layouts that a plan changes keep that much together, or are not found.
const PIECE: usize = 16;

/// Bytes of the typed graph's weights that lie in its plan, in pieces that are not constant. A convolution's may lie there with its
/// channels innermost.
pub(crate) fn weight_bytes(engine: &Path) -> anyhow::Result<u64> {
    let engine = Engine::open(engine)?;
    let graph = &engine.manifest().graphs[0];
    let plan = engine.blob(&graph.files.plans.first().context("no plan")?.file)?;
    let inside: HashSet<&[u8]> = plan.windows(PIECE).collect();
    let weights = &graph.files.typed.as_ref().context("no typed graph")?.weights;
    let mut found = 0;
    let count = |data: &[u8]| {
        let telling = |piece: &&[u8]| piece.chunks_exact(4).any(|four| *four != piece[..4]);
        data.chunks_exact(PIECE).filter(telling).filter(|piece| inside.contains(piece)).count() * PIECE
    };
    for name in weights {
        let weight = engine.weight(name)?;
        let turned = if weight.shape.len() > 2 { count(&channels_last(&weight.data, weight.shape)) } else { 0 };
        found += count(&weight.data).max(turned);
    }
    Ok(found as u64)
}

/// A convolution's weight `[out, in, …]` as `[out, …, in]`.
fn channels_last(data: &[u8], shape: &[usize]) -> Vec<u8> {
    let (channels, taps) = (shape[1], shape[2..].iter().product::<usize>());
    let size = data.len() / (shape[0] * channels * taps).max(1);
    let mut turned = Vec::with_capacity(data.len());
    for filter in data.chunks_exact((channels * taps * size).max(1)) {
        for (tap, channel) in (0..taps).flat_map(|tap| (0..channels).map(move |channel| (tap, channel))) {
            let at = (channel * taps + tap) * size;
            turned.extend(&filter[at..at + size]);
        }
    }
    turned
}
