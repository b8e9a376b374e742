//! The frames of an animation, as they are read.

use image::metadata::Orientation;

use super::super::frames::Frames;
use super::super::growing::Growing;
use super::asked::{Asked, Bad};
use super::upright::{turn, turned_size};

/// Frames of one size with their durations, as they are read, upright.
pub(super) struct Collected {
    asked: Asked,
    /// As stored.
    size: (usize, usize),
    orientation: Orientation,
    data: Growing,
    durations: Vec<f64>,
}

impl Collected {
    pub(super) fn new(size: (usize, usize), orientation: Orientation, asked: Asked) -> Self {
        Self { asked, size, orientation, data: Growing::default(), durations: Vec::new() }
    }

    /// Takes a frame of `channels` bytes a pixel, of which the first three count, that is shown for so many milliseconds.
    pub(super) fn push(&mut self, pixels: &[u8], channels: usize, milliseconds: f64) -> Result<(), Bad> {
        let count = self.durations.len() + 1;
        self.asked.check(self.size, count)?;
        self.data.make_room(self.size, count)?;
        let rgb = pixels.chunks_exact(channels).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        self.data.extend_from_slice(&turn(self.size, rgb, self.orientation)?.1);
        // Browsers show a frame for a tenth of a second where its file says a hundredth or nothing.
        self.durations.push(if milliseconds > 10.0 { milliseconds / 1000.0 } else { 0.1 });
        Ok(())
    }

    pub(super) fn into_frames(self) -> Result<Frames, Bad> {
        if self.durations.is_empty() {
            return Err(Bad::Broken("there is no frame".to_owned()));
        }
        let (width, height) = turned_size(self.size, self.orientation);
        Ok(Frames::new(width, height, self.data.into(), None)?.lasting(&self.durations))
    }
}
