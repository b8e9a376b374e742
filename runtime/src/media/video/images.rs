//! Images and folders of images.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use image::{ImageReader, Limits, RgbImage};

use super::frames::{Frames, MAX_SIDE, VideoError, check_total, extension, io_error};
use crate::io::atomic::FileSet;
use crate::io::lookalike;

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
    refuse_stand_in(path)?;
    let error = |message: String| VideoError::Image { path: path.to_owned(), message };
    let mut reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io_error(path))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    reader.limits(limits);
    let bad = |e: image::ImageError| {
        let reason = e.to_string();
        error(format!("{}; expected an intact image of at most {MAX_SIDE} pixels a side", reason.trim_end_matches('.')))
    };
    Ok(reader.decode().map_err(bad)?.into_rgb8())
}

/// Refuses a pointer of Git LFS or a web page.
pub(super) fn refuse_stand_in(path: &Path) -> Result<(), VideoError> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(lookalike::START as u64).read_to_end(&mut start))
        .map_err(io_error(path))?;
    match lookalike::stand_in(&start) {
        Some(found) => Err(VideoError::Image { path: path.to_owned(), message: found.to_string() }),
        None => Ok(()),
    }
}

/// Writes `00000.png`, `00001.png`, … into a folder, which is made if need be, in place of earlier frames. If one cannot be
/// written, the folder is as it was.
pub(super) fn write_folder(folder: &Path, frames: &Frames) -> Result<(), VideoError> {
    let files = FileSet::create(folder).map_err(io_error(folder))?;
    let names: Vec<String> = (0..frames.count()).map(|i| format!("{i:05}.png")).collect();
    let (width, height) = (frames.width() as u32, frames.height() as u32);
    for (name, frame) in names.iter().zip(frames) {
        image::save_buffer(files.path().join(name), frame, width, height, image::ExtendedColorType::Rgb8).map_err(
            |e| match e {
                image::ImageError::IoError(source) => VideoError::Io { path: folder.join(name), source },
                other => VideoError::Image { path: folder.join(name), message: other.to_string() },
            },
        )?;
    }
    files.commit(&names, is_frame).map_err(io_error(folder))
}

/// True for a name that [`write_folder`] gives.
fn is_frame(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_suffix(".png"));
    digits.is_some_and(|digits| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()))
}
