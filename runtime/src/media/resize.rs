//! Resizing RGB images with the very bytes that Pillow's `Image.resize` gives.
//!
//! Pillow (`src/libImaging/Resample.c`) resizes in two passes, horizontal then vertical, with 8 bits in between; filter
//! weights are fixed-point numbers of 22 fractional bits. Shrinking widens the filter, so there is no aliasing.
//! Pillow 13 takes the vertical pass first in some cases, Pillow before 13 never.

use std::f64::consts::PI;

use crate::error::{Classified, ErrorClass};

/// The interpolation filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Pillow's default: bicubic with a = -0.5, support 2.
    Bicubic,
    /// Lanczos, support 3.
    Lanczos,
}

/// Why an image cannot be resized.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResizeError {
    /// A side is zero or too long.
    #[error("image of {width}x{height} pixels, expected sides from 1 to {MAX_SIDE}")]
    Size {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// The buffer does not hold the image.
    #[error("{found} bytes for an RGB image of {width}x{height} pixels, expected {expected}")]
    Length {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// `width * height * 3`.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

impl Classified for ResizeError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Usage
    }
}

/// Longest side that is accepted, in pixels.
pub const MAX_SIDE: usize = 16_384;

const PRECISION_BITS: u32 = 32 - 8 - 2;
const CHANNELS: usize = 3;

impl Filter {
    const fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

/// The source pixels of one output pixel: `weights[i]` belongs to pixel `start + i`.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

fn taps(filter: Filter, input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    (0..output)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let weights: Vec<f64> = (0..end - start)
                .map(|x| filter.weight((x as f64 + start as f64 - center + 0.5) * (1.0 / filter_scale)))
                .collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| {
                let w = if sum == 0.0 { *w } else { w / sum } * f64::from(1 << PRECISION_BITS);
                (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
            };
            Taps { start, weights: weights.iter().map(fixed).collect() }
        })
        .collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn horizontal(data: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / width * taps.len());
    for row in data.chunks_exact(width * CHANNELS) {
        for tap in taps {
            let pixels = &row[tap.start * CHANNELS..(tap.start + tap.weights.len()) * CHANNELS];
            let mut sums = [1 << (PRECISION_BITS - 1); CHANNELS];
            for (pixel, weight) in pixels.chunks_exact(CHANNELS).zip(&tap.weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            out.extend(sums.map(clip));
        }
    }
    out
}

fn vertical(data: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let stride = width * CHANNELS;
    let mut out = Vec::with_capacity(stride * taps.len());
    let mut sums = vec![0; stride];
    for tap in taps {
        sums.fill(1 << (PRECISION_BITS - 1));
        for (row, weight) in data[tap.start * stride..].chunks_exact(stride).zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().copied().map(clip));
    }
    out
}

fn check_side(width: usize, height: usize) -> Result<(), ResizeError> {
    let good = 1..=MAX_SIDE;
    if good.contains(&width) && good.contains(&height) { Ok(()) } else { Err(ResizeError::Size { width, height }) }
}

/// Resizes an RGB image of interleaved bytes, `width * height * 3`, to `to` = (width, height), as Pillow before 13.
///
/// The aspect ratio is not kept. A side that does not change is not filtered, as in Pillow.
///
/// # Errors
/// [`ResizeError`] if a side is 0 or above [`MAX_SIDE`], or `data` has the wrong length.
pub fn resize_rgb(
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>, ResizeError> {
    resized(data, from, to, filter, false)
}

/// The same as Pillow 13: the vertical pass is the first if the image loses more than twice as many rows as columns.
///
/// # Errors
/// As [`resize_rgb`].
pub fn resize_rgb_13(
    data: &[u8],
    (width, height): (usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>, ResizeError> {
    // A side that grows loses less than nothing.
    let lost = |before: usize, after: usize| before as f64 - after as f64;
    let vertical_first = to.1 < height && lost(height, to.1) > 2.0 * lost(width, to.0);
    resized(data, (width, height), to, filter, vertical_first)
}

fn resized(
    data: &[u8],
    (width, height): (usize, usize),
    to: (usize, usize),
    filter: Filter,
    vertical_first: bool,
) -> Result<Vec<u8>, ResizeError> {
    check_side(width, height)?;
    check_side(to.0, to.1)?;
    let expected = width * height * CHANNELS;
    if data.len() != expected {
        return Err(ResizeError::Length { width, height, expected, found: data.len() });
    }
    let across = |data: &[u8]| horizontal(data, width, &taps(filter, width, to.0));
    let down = |data: &[u8], width: usize| vertical(data, width, &taps(filter, height, to.1));
    Ok(match (to.0 == width, to.1 == height) {
        (true, true) => data.to_vec(),
        (false, true) => across(data),
        (true, false) => down(data, width),
        (false, false) if vertical_first => across(&down(data, width)),
        (false, false) => down(&across(data), to.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_equal_pillows_in_every_golden_file() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/preprocess");
        let mut compared = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let image = file.tensor("input.image").unwrap();
            for (name, filter) in [("output.bicubic", Filter::Bicubic), ("output.lanczos", Filter::Lanczos)] {
                let expected = file.tensor(name).unwrap();
                let size = |shape: &[usize]| (shape[1], shape[0]);
                let found = resize_rgb(image.data(), size(image.shape()), size(expected.shape()), filter).unwrap();
                assert!(found == expected.data(), "{}: {name}", path.display());
                compared += 1;
            }
        }
        assert!(compared >= 18);
    }

    /// The hash (FNV-1a) of what Pillow 13.0.0 makes of a pattern, with Lanczos and bicubic.
    #[test]
    fn bytes_equal_pillow_13s_whichever_pass_is_first() {
        let hash = |data: &[u8]| {
            data.iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        };
        for (from, to, expected) in [
            ((23, 33), (83, 3), [0x34b9_4949_9175_d73e, 0xf820_be89_7918_b45e]),
            ((60, 60), (50, 36), [0x9524_1cd1_e565_303c, 0x7be6_196b_7bc5_ff77]),
            ((60, 60), (50, 40), [0xa08b_bfe9_ee37_0a09, 0x44ba_b77e_412a_a22a]),
            ((60, 60), (50, 41), [0xeb73_d3cd_1ca1_6fc1, 0x1897_9f48_a358_0930]),
            ((29, 16), (73, 86), [0x38a0_4492_bc25_1b51, 0x11cc_5239_8486_ce96]),
            ((82, 11), (20, 50), [0x3e84_681f_3bf6_2349, 0x3ece_0134_e310_4438]),
            ((35, 61), (48, 32), [0x3454_835b_9db0_c0d3, 0x542b_740c_7332_2bff]),
            ((40, 30), (40, 20), [0x92b7_2cc5_a3b0_b84a, 0x9b47_da5c_1e00_0958]),
            ((40, 30), (20, 30), [0x6092_a3fc_c43a_6f51, 0x1d5c_753e_c70d_c8b0]),
        ] {
            let data: Vec<u8> = (0..from.0 * from.1 * 3).map(|i| ((i * i * 31 + i * 7) >> 3) as u8).collect();
            let found =
                [Filter::Lanczos, Filter::Bicubic].map(|filter| hash(&resize_rgb_13(&data, from, to, filter).unwrap()));
            assert_eq!(found, expected, "{from:?} {to:?}");
        }
    }

    #[test]
    fn same_size_returns_the_same_bytes() {
        let data: Vec<u8> = (0..60).collect();
        assert_eq!(resize_rgb(&data, (5, 4), (5, 4), Filter::Lanczos).unwrap(), data);
    }

    #[test]
    fn flat_image_stays_flat_at_any_size() {
        let data = [17, 130, 255].repeat(31 * 9);
        for filter in [Filter::Bicubic, Filter::Lanczos] {
            for to in [(1, 1), (7, 50), (100, 3), (31, 2)] {
                let out = resize_rgb(&data, (31, 9), to, filter).unwrap();
                assert_eq!(out, [17, 130, 255].repeat(to.0 * to.1), "{filter:?} {to:?}");
            }
        }
    }

    #[test]
    fn bad_sizes_are_refused() {
        assert!(matches!(resize_rgb(&[], (0, 4), (2, 2), Filter::Bicubic), Err(ResizeError::Size { .. })));
        assert!(matches!(resize_rgb(&[0; 12], (2, 2), (2, 1 << 20), Filter::Bicubic), Err(ResizeError::Size { .. })));
        assert!(matches!(resize_rgb(&[0; 11], (2, 2), (1, 1), Filter::Bicubic), Err(ResizeError::Length { .. })));
    }
}
