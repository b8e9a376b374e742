//! Single pictures as PNG files.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, RgbImage};

use super::frames::{VideoError, extension, io_error};
use crate::io::atomic::write_file;

/// Refuses a name that does not end in `.png`.
///
/// # Errors
/// [`VideoError::NotPng`].
pub fn check_png(path: &Path) -> Result<(), VideoError> {
    if extension(path) == "png" { Ok(()) } else { Err(VideoError::NotPng { path: path.to_owned() }) }
}

/// Writes a picture, whole or not at all.
///
/// # Errors
/// [`VideoError::NotPng`], [`VideoError::Image`], [`VideoError::Io`].
pub fn write_png(path: &Path, picture: &RgbImage) -> Result<(), VideoError> {
    check_png(path)?;
    let mut bytes = Cursor::new(Vec::new());
    let image_error = |e: image::ImageError| VideoError::Image { path: path.to_owned(), message: e.to_string() };
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(image_error)?;
    write_file(path, bytes.get_ref()).map_err(io_error(path))
}
