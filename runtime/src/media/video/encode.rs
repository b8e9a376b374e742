//! Frames to video files, through ffmpeg.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ffmpeg_sidecar::command::FfmpegCommand;

use super::decode::{Messages, Running, file_argument};
use super::frames::{FRAME_RATES, Frames, VideoError, extension, io_error};
use super::images;
use crate::io::atomic::{AtomicFile, FileSet};

/// What ffmpeg is told for a container: codec options, and the muxer's name (the temporary file has another extension).
struct Format {
    muxer: &'static str,
    options: &'static [&'static str],
    /// Luma and chroma, the latter at half size: sides must be even, and the file says what the numbers mean.
    yuv: bool,
}

/// The number of encoder threads is fixed, because x264's output depends on it.
const H264: &[&str] = &["-c:v", "libx264", "-preset", "medium", "-crf", "17", "-pix_fmt", "yuv420p", "-threads", "4"];
const VP9: &[&str] = &["-c:v", "libvpx-vp9", "-crf", "20", "-b:v", "0", "-pix_fmt", "yuv420p", "-threads", "4"];
/// RGB to limited BT.709, which is what players take a video of 720 lines or more for, whatever it says. The frames say so, too:
/// some versions of ffmpeg ask them, others the options.
const TO_YUV: &str = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,\
    setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709";
const TAGS: [&str; 8] =
    ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"];
/// Side of the frames that a probe writes, in pixels: the smallest that all codecs take.
const PROBE: usize = 64;
/// A program as it was when it wrote a format, and the format's muxer.
type Tried = (PathBuf, (SystemTime, u64), &'static str);
static WORKS: Mutex<BTreeSet<Tried>> = Mutex::new(BTreeSet::new());
const GIF: &[&str] = &["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"];

fn format(path: &Path) -> Option<Format> {
    Some(match extension(path).as_str() {
        "mp4" => Format { muxer: "mp4", options: H264, yuv: true },
        "mov" => Format { muxer: "mov", options: H264, yuv: true },
        "mkv" => Format { muxer: "matroska", options: H264, yuv: true },
        "webm" => Format { muxer: "webm", options: VP9, yuv: true },
        "gif" => Format { muxer: "gif", options: GIF, yuv: false },
        _ => return None,
    })
}

/// Writes frames as a video, or as PNG files `00000.png`, `00001.png`, … if `path` ends in `/` or is a folder.
///
/// `.mp4`, `.mov` and `.mkv` hold H.264 (yuv420p, CRF 17), `.webm` VP9, all in limited BT.709 and tagged so (matrix, primaries,
/// transfer, range); `.gif` a palette of the whole clip. An odd side
/// is padded by one black row or column where the format needs even ones. `fps` is in frames per second. Equal frames
/// give equal bytes with one ffmpeg build. A file appears whole or not at all. Frames of an earlier video leave a folder with the
/// first of the new ones: files named as above, whatever made them. All else stays.
///
/// # Errors
/// [`VideoError`]; an existing file is then as it was.
pub fn write_video(path: &Path, frames: &Frames, fps: f64, ffmpeg: Option<&Path>) -> Result<(), VideoError> {
    write_commented(path, frames, fps, "", ffmpeg)
}

/// As [`write_video`], with a comment in the metadata of the video, unless it is empty; PNG files and GIFs have none.
///
/// # Errors
/// As [`write_video`].
pub fn write_commented(
    path: &Path,
    frames: &Frames,
    fps: f64,
    comment: &str,
    ffmpeg: Option<&Path>,
) -> Result<(), VideoError> {
    if is_folder(path) {
        return images::write_folder(path, frames);
    }
    if !FRAME_RATES.contains(&fps) {
        return Err(VideoError::Fps(fps));
    }
    let format = format(path).ok_or_else(|| VideoError::Extension { path: path.to_owned() })?;
    let ffmpeg = ffmpeg.ok_or_else(|| VideoError::NoFfmpeg { path: path.to_owned() })?;
    let file = AtomicFile::create(path).map_err(io_error(path))?;
    encode(file.path(), &format, (frames, fps, comment), ffmpeg)?;
    file.commit().map_err(io_error(path))
}

/// Finds out whether [`write_video`] could write there, and changes nothing: the folder and ffmpeg with its codec are tried on two
/// small black frames. An ffmpeg that has written a format once in this process is not tried again.
///
/// # Errors
/// Those of [`write_video`].
pub fn probe_video(path: &Path, ffmpeg: Option<&Path>) -> Result<(), VideoError> {
    if is_folder(path) {
        return FileSet::create(path).map(drop).map_err(io_error(path));
    }
    let format = format(path).ok_or_else(|| VideoError::Extension { path: path.to_owned() })?;
    let ffmpeg = ffmpeg.ok_or_else(|| VideoError::NoFfmpeg { path: path.to_owned() })?;
    let file = AtomicFile::create(path).map_err(io_error(path))?;
    let program = std::fs::metadata(ffmpeg).ok().and_then(|found| Some((found.modified().ok()?, found.len())));
    let tried = program.map(|program| (ffmpeg.to_owned(), program, format.muxer));
    let works = || WORKS.lock().unwrap_or_else(PoisonError::into_inner);
    if tried.as_ref().is_some_and(|tried| works().contains(tried)) {
        return Ok(());
    }
    let black = Frames::new(PROBE, PROBE, vec![0; 2 * 3 * PROBE * PROBE], None)?;
    encode(file.path(), &format, (&black, 8.0, ""), ffmpeg).map_err(|error| match error {
        VideoError::Ffmpeg { status, message, .. } => VideoError::Ffmpeg { path: path.to_owned(), status, message },
        other => other,
    })?;
    works().extend(tried);
    Ok(())
}

/// True if [`write_video`] needs ffmpeg for this path, false for a folder.
///
/// # Errors
/// [`VideoError::Extension`] for a file of no known format.
pub fn needs_ffmpeg(path: &Path) -> Result<bool, VideoError> {
    match format(path) {
        _ if is_folder(path) => Ok(false),
        Some(_) => Ok(true),
        None => Err(VideoError::Extension { path: path.to_owned() }),
    }
}

fn is_folder(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().ends_with('/') || path.is_dir()
}

fn encode(
    path: &Path,
    format: &Format,
    (frames, fps, comment): (&Frames, f64, &str),
    ffmpeg: &Path,
) -> Result<(), VideoError> {
    let mut command = FfmpegCommand::new_with_path(ffmpeg);
    command
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size"])
        .arg(format!("{}x{}", frames.width(), frames.height()))
        .args(["-framerate", &fps.to_string(), "-i", "-"])
        .args(format.options);
    if format.yuv {
        let odd = frames.width() % 2 == 1 || frames.height() % 2 == 1;
        let pad = if odd { "pad=ceil(iw/2)*2:ceil(ih/2)*2," } else { "" };
        command.args(["-vf", &format!("{pad}{TO_YUV}")]).args(TAGS);
    }
    // Nothing of the machine or the day goes into the file.
    command.args(["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]);
    if !comment.is_empty() {
        command.args(["-metadata", &format!("comment={comment}")]);
    }
    let output: OsString = file_argument(path);
    command.args(["-f", format.muxer, "-y"]).output(output);

    let child = Running::start(&mut command, ffmpeg)?;
    let stdin = child.stdin();
    let events = child.events()?;
    let mut messages = Messages::default();
    let written = std::thread::scope(|scope| {
        // ffmpeg's messages are read while it is fed, or it would stop at a full pipe.
        let writer = scope.spawn(move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(frames.data())));
        for event in events {
            messages.record(&event);
        }
        writer.join()
    });
    // If ffmpeg gave up, its own words matter more than the broken pipe.
    child.finish(path, &messages)?;
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(VideoError::Io { path: path.to_owned(), source }),
        Err(_) => Err(VideoError::Io { path: path.to_owned(), source: std::io::Error::other("the writer stopped") }),
    }
}
