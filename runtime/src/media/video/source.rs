//! Files and pipes to frames: each by what it holds.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::decode::{Input, Wish, decode};
use super::frames::{Frames, MAX_BYTES, VideoError, io_error};
use super::images::{known, read_folder, refuse_stand_in, start};
use super::picture::{self, Asked, Bad, Kind, MAX_FILE, Wanted, check_avif};
use crate::io::detect;
use crate::io::map::map_file;

/// Reads a file, a pipe or a folder.
pub(super) fn read(path: &Path, ffmpeg: Option<&Path>, wanted: Wanted) -> Result<Frames, VideoError> {
    let metadata = std::fs::metadata(path).map_err(io_error(path))?;
    if metadata.is_dir() {
        return read_folder(path, wanted);
    }
    let mut wish = Wish { first: wanted == Wanted::First, picture: false };
    let ffmpeg = || ffmpeg.ok_or_else(|| VideoError::NoFfmpeg { path: path.to_owned() });
    if !metadata.is_file() {
        return read_pipe(path, ffmpeg, wanted);
    }
    let bytes = map_file(path).map_err(io_error(path))?;
    let asked = Asked { wanted, most: MAX_BYTES };
    let start = &bytes[..bytes.len().min(detect::START)];
    refuse_stand_in(start, path)?;
    match known(start, path)?.check().map_err(|bad| bad.of(path))? {
        Kind::Picture(format) if wanted == Wanted::All && picture::several(format, &bytes) => {
            // Through a pipe, as by a picture's name ffmpeg would read the first only.
            let file = File::open(path).map_err(io_error(path))?;
            return decode(Input::Pipe(Vec::new(), file), path, ffmpeg()?, wish);
        }
        Kind::Picture(format) => return picture::read(format, &bytes, asked).map_err(|bad| bad.of(path)),
        Kind::Avif => {
            check_avif(&bytes, wanted == Wanted::All).map_err(|bad| bad.of(path))?;
            wish.picture = true;
        }
        Kind::NotRead(_) | Kind::Other => {}
    }
    decode(Input::File(path), path, ffmpeg()?, wish)
}

/// What comes through a pipe can be read once only: a picture into memory, a video by ffmpeg as it comes. Pictures one behind the
/// other are a video, unless the first is enough.
fn read_pipe<'a>(
    path: &Path,
    ffmpeg: impl Fn() -> Result<&'a Path, VideoError>,
    wanted: Wanted,
) -> Result<Frames, VideoError> {
    let mut pipe = File::open(path).map_err(io_error(path))?;
    let mut start = start(&mut pipe, path)?;
    refuse_stand_in(&start, path)?;
    match picture::kind(&start).check().map_err(|bad| bad.of(path))? {
        Kind::Picture(format) => {
            // More than may be, by what was read before: it is then refused.
            pipe.by_ref().take(MAX_FILE).read_to_end(&mut start).map_err(io_error(path))?;
            if wanted != Wanted::All || !picture::several(format, &start) {
                return picture::read(format, &start, Asked { wanted, most: MAX_BYTES }).map_err(|bad| bad.of(path));
            }
        }
        Kind::Avif => {
            let what = "an AVIF picture through a pipe".to_owned();
            return Err(Bad::NotRead { what, way_out: "give the file, or a PNG, JPEG or WebP picture" }.of(path));
        }
        Kind::NotRead(_) | Kind::Other => {}
    }
    let wish = Wish { first: wanted == Wanted::First, picture: false };
    decode(Input::Pipe(start, pipe), path, ffmpeg()?, wish)
}
