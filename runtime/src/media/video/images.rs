//! Images and folders of images.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::frames::{Frames, MAX_BYTES, VideoError, extension, io_error};
use super::growing::Growing;
use super::natural;
use super::picture::{self, Asked, Format, Kind, Wanted};
use crate::io::atomic::FileSet;
use crate::io::detect;
use crate::io::map::map_file;

/// What systems leave in folders; besides, all that begins with a dot.
const BESIDE: [&str; 6] = ["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"];

/// True for what systems leave in folders, which nobody means for a frame.
fn is_beside(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_lowercase();
    name.starts_with('.') || BESIDE.contains(&&*name)
}

/// The pictures of a folder, in natural order of their names. Anything else in it is refused, but for what systems leave there.
pub(super) fn read_folder(folder: &Path, wanted: Wanted) -> Result<Frames, VideoError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io_error(folder))? {
        let entry = entry.map_err(io_error(folder))?;
        if !is_beside(&entry.file_name()) {
            paths.push(entry.path());
        }
    }
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_owned();
    paths.sort_by(|a, b| natural::compare(&name(a), &name(b)));
    let mut frames = Vec::with_capacity(paths.len());
    for path in paths {
        let format = frame_format(&path)?;
        frames.push((path, format));
    }
    if wanted == Wanted::First {
        frames.truncate(1);
    }
    read_images(&frames, folder)
}

/// The format of a file in a folder of frames, which is a picture.
fn frame_format(path: &Path) -> Result<Format, VideoError> {
    let not = |what| Err(VideoError::NotAFrame { path: path.to_owned(), what });
    let metadata = std::fs::metadata(path).map_err(io_error(path))?;
    if metadata.is_dir() {
        return not("a folder");
    }
    if !metadata.is_file() {
        return not("no file");
    }
    let start = start(&mut File::open(path).map_err(io_error(path))?, path)?;
    refuse_stand_in(&start, path)?;
    match known(&start, path)? {
        Kind::Picture(format) => Ok(format),
        Kind::Avif => not("an AVIF picture"),
        Kind::NotRead(what) => not(what),
        Kind::Other => not("another kind of file"),
    }
}

/// Images of one size as frames; `folder` is named where there are none.
fn read_images(files: &[(PathBuf, Format)], folder: &Path) -> Result<Frames, VideoError> {
    let mut data = Growing::default();
    let mut size = None;
    let asked = Asked { wanted: Wanted::Only, most: MAX_BYTES };
    for (path, format) in files {
        let bytes = map_file(path).map_err(io_error(path))?;
        let image = picture::read(*format, &bytes, asked).map_err(|bad| bad.of(path))?;
        let (found_width, found_height) = (image.width(), image.height());
        let (width, height) = *size.get_or_insert((found_width, found_height));
        if (width, height) != (found_width, found_height) {
            return Err(VideoError::MixedSizes { path: path.clone(), width, height, found_width, found_height });
        }
        data.make_room((width, height), files.len())?;
        data.extend_from_slice(image.data());
    }
    let (width, height) = size.ok_or_else(|| VideoError::NoFrames { path: folder.to_owned() })?;
    Frames::new(width, height, data.into(), None)
}

/// The first bytes of a file.
pub(super) fn start(file: &mut File, path: &Path) -> Result<Vec<u8>, VideoError> {
    let mut start = Vec::new();
    file.take(detect::START as u64).read_to_end(&mut start).map_err(io_error(path))?;
    Ok(start)
}

/// The kind of a file that begins so. One that is named as a picture and is none is refused.
pub(super) fn known(start: &[u8], path: &Path) -> Result<Kind, VideoError> {
    const NAMED: [&str; 7] = ["png", "apng", "jpg", "jpeg", "jfif", "webp", "avif"];
    let kind = picture::kind(start);
    if kind == Kind::Other && NAMED.contains(&&*extension(path)) {
        let message =
            "it is no picture (PNG, JPEG, WebP, GIF, AVIF), though its name says so; expected an intact image";
        return Err(VideoError::Image { path: path.to_owned(), message: message.to_owned() });
    }
    Ok(kind)
}

/// Refuses a pointer of Git LFS or a web page, by how it begins.
pub(super) fn refuse_stand_in(start: &[u8], path: &Path) -> Result<(), VideoError> {
    match detect::stand_in(start) {
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
