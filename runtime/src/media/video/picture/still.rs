//! One picture, upright, in RGB of 8 bits.

use image::metadata::Orientation;
use image::{ColorType, ImageDecoder};

use super::super::frames::Frames;
use super::asked::{Asked, Bad, limits};
use super::upright::turn;

/// Decodes a picture, and turns it.
pub(super) fn read(mut decoder: impl ImageDecoder, turned: Orientation, asked: Asked) -> Result<Frames, Bad> {
    decoder.set_limits(limits())?;
    let (width, height) = decoder.dimensions();
    let size = (width as usize, height as usize);
    asked.check(size, 1)?;
    let color = decoder.color_type();
    let length = usize::try_from(decoder.total_bytes()).map_err(|_| Bad::Broken("it is too large".to_owned()))?;
    let mut samples = vec![0; length];
    decoder.read_image(&mut samples)?;
    let ((width, height), pixels) = turn(size, rgb(color, samples)?, turned)?;
    Ok(Frames::new(width, height, pixels, None)?)
}

/// Samples of 8 bits as interleaved RGB: transparency is dropped.
fn rgb(color: ColorType, samples: Vec<u8>) -> Result<Vec<u8>, Bad> {
    match color {
        ColorType::L8 => Ok(samples.into_iter().flat_map(|grey| [grey; 3]).collect()),
        ColorType::Rgb8 => Ok(samples),
        ColorType::Rgba8 => {
            Ok(samples.as_chunks::<4>().0.iter().flat_map(|&[red, green, blue, _]| [red, green, blue]).collect())
        }
        other => Err(Bad::Broken(format!("its samples are {other:?}"))),
    }
}
