//! Images and folders of images.

use std::path::{Path, PathBuf};

use image::{ImageReader, Limits, RgbImage};

use super::{Frames, MAX_SIDE, VideoError, check_total, extension, io_error};

/// True for a file that [`read_images`] reads.
pub(super) fn is_image(path: &Path) -> bool {
    matches!(extension(path).as_str(), "png" | "jpg" | "jpeg" | "webp")
}

/// All `.png`, `.jpg` and `.jpeg` files of a folder, by name.
pub(super) fn read_folder(folder: &Path) -> Result<Frames, VideoError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if matches!(extension(&path).as_str(), "png" | "jpg" | "jpeg") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    read_images(&paths, folder)
}

/// Images of one size as frames; `source` is named where there are none.
pub(super) fn read_images(paths: &[PathBuf], source: &Path) -> Result<Frames, VideoError> {
    let mut data = Vec::new();
    let mut size = None;
    for path in paths {
        let image = read_image(path)?;
        let (found_width, found_height) = (image.width() as usize, image.height() as usize);
        let (width, height) = *size.get_or_insert((found_width, found_height));
        if (width, height) != (found_width, found_height) {
            return Err(VideoError::MixedSizes { path: path.clone(), width, height, found_width, found_height });
        }
        check_total(width, height, paths.len())?;
        data.extend_from_slice(image.as_raw());
    }
    let (width, height) = size.ok_or_else(|| VideoError::NoFrames { path: source.to_owned() })?;
    Frames::new(width, height, data, None)
}

/// Reads one image as RGB; an alpha channel is dropped, as Pillow's `convert("RGB")` does.
fn read_image(path: &Path) -> Result<RgbImage, VideoError> {
    let error = |message: String| VideoError::Image { path: path.to_owned(), message };
    let mut reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io_error(path))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    reader.limits(limits);
    Ok(reader.decode().map_err(|e| error(e.to_string()))?.into_rgb8())
}

/// Writes `00000.png`, `00001.png`, … into a folder that exists.
pub(super) fn write_folder(folder: &Path, frames: &Frames) -> Result<(), VideoError> {
    for (i, frame) in frames.iter().enumerate() {
        let path = folder.join(format!("{i:05}.png"));
        image::save_buffer(&path, frame, frames.width() as u32, frames.height() as u32, image::ExtendedColorType::Rgb8)
            .map_err(|e| VideoError::Image { path: path.clone(), message: e.to_string() })?;
    }
    Ok(())
}
