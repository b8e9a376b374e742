//! A reference video as the predictor's encoder wants it.

use ndarray::Array5;

use super::config::{ConfigError, PixelRange, ReferenceConfig, ReferenceFrames, ReferenceResize};
use super::error::PipelineError;
use crate::media::resize::{Filter, resize_rgb};
use crate::media::video::{Frames, frames_to_pixels};

/// A reference video.
#[derive(Clone, Copy, Debug)]
pub enum Reference<'a> {
    /// Frames, still to be chosen and resized.
    Frames(&'a Frames),
    /// Pixels `[1, 3, F, H, W]` in [-1, 1], used as they are but for their range.
    Pixels(&'a Array5<f32>),
}

/// The pixels to encode, `[1, 3, F, H, W]`; `size` is (width, height) of the video to generate.
///
/// # Errors
/// [`PipelineError::Config`] for impossible knobs, [`PipelineError::Resize`] or [`PipelineError::Video`] for impossible sizes.
pub fn reference_pixels(
    knobs: &ReferenceConfig,
    reference: Reference<'_>,
    size: (usize, usize),
) -> Result<Array5<f32>, PipelineError> {
    knobs.check().map_err(ConfigError::from)?;
    let signed = knobs.range == PixelRange::Signed;
    match reference {
        Reference::Pixels(pixels) if signed => Ok(pixels.clone()),
        Reference::Pixels(pixels) => Ok(pixels.mapv(|x| x / 2.0 + 0.5)),
        Reference::Frames(frames) => {
            let (width, height) =
                if knobs.resize == ReferenceResize::None { (frames.width(), frames.height()) } else { size };
            let all: Vec<&[u8]> = frames.iter().collect();
            let mut data = Vec::new();
            for index in chosen(knobs.frames, frames) {
                data.extend(resized(all[index], (frames.width(), frames.height()), size, knobs.resize)?);
            }
            Ok(frames_to_pixels(&Frames::new(width, height, data, frames.fps())?, signed))
        }
    }
}

/// Indices of the frames that count.
fn chosen(which: ReferenceFrames, frames: &Frames) -> Vec<usize> {
    let count = frames.count();
    match which {
        ReferenceFrames::All => (0..count).collect(),
        ReferenceFrames::FirstN(n) => (0..count.min(n)).collect(),
        ReferenceFrames::Resample { count: most, fps: target } => {
            let source = frames.fps().unwrap_or(target);
            let at = |k: usize| match frames.starts() {
                Some(starts) => nearest(starts, k as f64 / target),
                None => (k as f64 * source / target).round() as usize,
            };
            (0..most).map(at).take_while(|&i| i < count).collect()
        }
    }
}

/// The frame that begins nearest to a time; behind the middle of the last, none: `starts` ends with the end.
fn nearest(starts: &[f64], time: f64) -> usize {
    let after = starts.partition_point(|start| *start <= time);
    let (before, next) = (after.saturating_sub(1), after.min(starts.len() - 1));
    // Of two as near, the later, as where a rate is rounded.
    if starts[next] - time <= time - starts[before] { next } else { before }
}

fn resized(
    frame: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    how: ReferenceResize,
) -> Result<Vec<u8>, PipelineError> {
    match how {
        ReferenceResize::None => Ok(frame.to_vec()),
        ReferenceResize::Stretch => Ok(resize_rgb(frame, from, to, Filter::Bicubic)?),
        ReferenceResize::CoverCrop => {
            let scale = (to.0 as f64 / from.0 as f64).max(to.1 as f64 / from.1 as f64);
            let covered = |from: usize, to: usize| ((from as f64 * scale).round() as usize).max(to);
            let (width, height) = (covered(from.0, to.0), covered(from.1, to.1));
            let image = resize_rgb(frame, from, (width, height), Filter::Bicubic)?;
            let left = (width - to.0) / 2;
            let rows = image.chunks_exact(width * 3).skip((height - to.1) / 2).take(to.1);
            Ok(rows.flat_map(|row| row[left * 3..(left + to.0) * 3].iter().copied()).collect())
        }
    }
}

#[cfg(test)]
mod tests;
