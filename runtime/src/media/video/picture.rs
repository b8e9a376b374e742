//! Pictures, still and moving, as frames: known by their content, upright, in RGB of 8 bits.
//!
//! What comes out is what Pillow's `ImageOps.exif_transpose(picture).convert("RGB")` gives: transparency is dropped, colour
//! profiles are not applied. Frames of animations are composed as Pillow composes them.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::jpeg::JpegDecoder;

use super::frames::Frames;

mod asked;
mod canvas;
mod collected;
mod containers;
mod gif;
mod kind;
mod png;
mod still;
mod upright;
mod webp;
mod whole;

pub(super) use asked::{Asked, Bad, MAX_FILE, Wanted};
pub(super) use containers::check_avif;
pub(super) use kind::{Format, Kind, kind};
use upright::orientation;
pub(super) use whole::several;

/// The frames of a picture's file. Sides are at most 8192 pixels; what memory does not suffice for is refused while it grows.
pub(super) fn read(format: Format, bytes: &[u8], asked: Asked) -> Result<Frames, Bad> {
    if bytes.len() as u64 > MAX_FILE {
        return Err(Bad::Broken(format!("the file has {} bytes, more than {MAX_FILE}", bytes.len())));
    }
    let frames = match format {
        Format::Jpeg => {
            kind::check_jpeg(bytes)?;
            let mut decoder = JpegDecoder::new(Cursor::new(bytes))?;
            // Metadata that cannot be read say nothing: the picture does. A segment has 64 KiB at most.
            let exif = decoder.exif_metadata().unwrap_or_default();
            let xmp = decoder.xmp_metadata().unwrap_or_default();
            still::read(decoder, orientation(exif.as_deref(), xmp.as_deref()), asked)
        }
        Format::Png => png::read(bytes, asked),
        Format::WebP => webp::read(bytes, asked),
        Format::Gif => gif::read(bytes, asked),
    }?;
    whole::check(format, bytes, asked.wanted)?;
    Ok(frames)
}
