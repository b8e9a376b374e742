//! The linear layers of CogVideoX-Fun-V1.1-5b-InP's transformer.

/// Transformer blocks.
pub(crate) const LAYERS: usize = 42;
const WIDTH: usize = 3072;
const TIME: usize = 512;

/// `[out, in]` of the layers of `layers` blocks and of those around them; with [`LAYERS`] blocks they are 341.
pub(crate) fn linears(layers: usize) -> Vec<[usize; 2]> {
    let around = [[WIDTH, 4096], [TIME, WIDTH], [TIME, TIME], [2 * WIDTH, TIME], [64, WIDTH]];
    let block = [
        [6 * WIDTH, TIME],
        [WIDTH, WIDTH],
        [WIDTH, WIDTH],
        [WIDTH, WIDTH],
        [WIDTH, WIDTH],
        [6 * WIDTH, TIME],
        [4 * WIDTH, WIDTH],
        [WIDTH, 4 * WIDTH],
    ];
    around.into_iter().chain(std::iter::repeat_n(block, layers).flatten()).collect()
}
