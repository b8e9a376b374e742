//! Frames in memory, and why a video cannot be read or written.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::{Classified, ErrorClass};
use crate::memory::NotEnough;

/// Longest side of a frame, in pixels.
pub const MAX_SIDE: usize = 8192;

/// Largest number of frames.
pub const MAX_FRAMES: usize = 100_000;

/// The slowest and the fastest video, in frames per second: what ffmpeg can say in the containers that are written.
pub const FRAME_RATES: std::ops::RangeInclusive<f64> = 0.01..=1000.0;

/// Largest number of bytes that the frames of one video may take: 16 GiB.
pub const MAX_BYTES: usize = 1 << 34;

/// RGB frames of equal size, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Frames {
    width: usize,
    height: usize,
    data: Vec<u8>,
    fps: Option<f64>,
    /// When each frame begins and the last ends, in seconds, where they last differently long.
    starts: Option<Vec<f64>>,
}

impl Frames {
    /// Frames over interleaved RGB bytes `[count, height, width, 3]`; `fps` in frames per second, if known.
    ///
    /// # Errors
    /// [`VideoError::Size`] if a side is 0 or above [`MAX_SIDE`], there are no frames, or more than [`MAX_FRAMES`];
    /// [`VideoError::Length`] if `data` is not a whole number of frames.
    pub fn new(width: usize, height: usize, data: Vec<u8>, fps: Option<f64>) -> Result<Self, VideoError> {
        let bytes = frame_bytes(width, height)?;
        if data.is_empty() || !data.len().is_multiple_of(bytes) {
            return Err(VideoError::Length { found: data.len(), frame: bytes });
        }
        check_total(width, height, data.len() / bytes)?;
        Ok(Self { width, height, data, fps: fps.filter(|f| f.is_finite() && *f > 0.0), starts: None })
    }

    /// These frames, shown for so many seconds each: the rate is their mean. A single frame has none.
    pub(super) fn lasting(mut self, seconds: &[f64]) -> Self {
        let total: f64 = seconds.iter().sum();
        if seconds.len() != self.count() || seconds.len() < 2 || !(total.is_finite() && total > 0.0) {
            return self;
        }
        self.fps = Some(seconds.len() as f64 / total);
        if seconds.iter().any(|duration| (duration - seconds[0]).abs() > 1e-6) {
            let mut at = 0.0;
            let ends = seconds.iter().map(|duration| {
                at += duration;
                at
            });
            self.starts = Some(std::iter::once(0.0).chain(ends).collect());
        }
        self
    }

    /// When each frame begins and the last ends, in seconds from the first: `count + 1` times, where the source says that frames
    /// last differently long. `None`: evenly, by [`Self::fps`].
    pub fn starts(&self) -> Option<&[f64]> {
        self.starts.as_deref()
    }

    /// Width in pixels.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub const fn height(&self) -> usize {
        self.height
    }

    /// Frames per second, where the source says so; the mean, where they last differently long.
    pub const fn fps(&self) -> Option<f64> {
        self.fps
    }

    /// Number of frames, at least 1.
    pub const fn count(&self) -> usize {
        self.data.len() / (self.width * self.height * 3)
    }

    /// The bytes of all frames, `[count, height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The frames one by one, each `height * width * 3` bytes.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, u8> {
        self.data.chunks_exact(self.width * self.height * 3)
    }
}

impl<'a> IntoIterator for &'a Frames {
    type Item = &'a [u8];
    type IntoIter = std::slice::ChunksExact<'a, u8>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Bytes of one frame.
fn frame_bytes(width: usize, height: usize) -> Result<usize, VideoError> {
    let good = 1..=MAX_SIDE;
    if good.contains(&width) && good.contains(&height) {
        Ok(width * height * 3)
    } else {
        Err(VideoError::Size { width, height, frames: 1 })
    }
}

/// Refuses what would not fit.
pub(super) fn check_total(width: usize, height: usize, frames: usize) -> Result<(), VideoError> {
    let bytes = frame_bytes(width, height)?.checked_mul(frames);
    if frames > MAX_FRAMES || bytes.is_none_or(|b| b > MAX_BYTES) {
        return Err(VideoError::Size { width, height, frames });
    }
    Ok(())
}

/// Why a video cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The file is needed, and ffmpeg to read or write it, but no ffmpeg is known.
    #[error("{}: ffmpeg is needed for this format and was not found; install it, or use a folder of PNG files", path.display())]
    NoFfmpeg {
        /// The video.
        path: PathBuf,
    },
    /// The ffmpeg binary cannot be started.
    #[error("{}: cannot start ffmpeg ({source}); install ffmpeg 5.1 or newer, or give the path of another one", ffmpeg.display())]
    Spawn {
        /// The binary.
        ffmpeg: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// ffmpeg failed.
    #[error("{}: ffmpeg ended with {status}:\n{message}", path.display())]
    Ffmpeg {
        /// The video.
        path: PathBuf,
        /// Its exit status.
        status: String,
        /// The end of its messages.
        message: String,
    },
    /// There is no frame.
    #[error("{}: no video frame found; expected a video, an image, or a folder of PNG, JPEG or WebP files", path.display())]
    NoFrames {
        /// The file or folder.
        path: PathBuf,
    },
    /// Something lies among the frames of a folder that is none.
    #[error("{}: it is {what} in a folder of frames; expected PNG, JPEG and WebP pictures alone; take it out of the folder", path.display())]
    NotAFrame {
        /// The file or folder.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// Memory does not suffice.
    #[error(transparent)]
    Memory(#[from] NotEnough),
    /// An image cannot be read or written.
    #[error("{}: {message}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Frames of one video differ in size.
    #[error("{}: {found_width}x{found_height} pixels, the frames before it {width}x{height}; all frames must have one size", path.display())]
    MixedSizes {
        /// The image or video.
        path: PathBuf,
        /// Width of the first frame.
        width: usize,
        /// Height of the first frame.
        height: usize,
        /// Width of this one.
        found_width: usize,
        /// Height of this one.
        found_height: usize,
    },
    /// Too large, or empty.
    #[error("{frames} frames of {width}x{height} pixels; expected sides of 1 to {MAX_SIDE} pixels, at most {MAX_FRAMES} frames and {} GiB", MAX_BYTES >> 30)]
    Size {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Number of frames.
        frames: usize,
    },
    /// The bytes are not a whole number of frames.
    #[error("{found} bytes are no whole, positive number of frames of {frame} bytes")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes per frame.
        frame: usize,
    },
    /// A tensor does not hold a video.
    #[error("{}: {message}; expected one tensor `pixels` [1, 3, frames, height, width] of f32, f16 or bf16 in [-1, 1]", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A pixel is no number.
    #[error("a pixel is {0}; expected finite numbers in [-1, 1]")]
    NotFinite(f32),
    /// Frames per second make no sense.
    #[error("{0} frames per second, expected 0.01 to 1000")]
    Fps(f64),
    /// The file name says no known format.
    #[error("{}: unknown video format; expected .mp4, .mov, .mkv, .webm, .gif, or a folder (a path that ends in /) for PNG files", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// The file name of a picture says another format than PNG.
    #[error("{}: this picture is written as a PNG file; expected a name that ends in .png", path.display())]
    NotPng {
        /// The file.
        path: PathBuf,
    },
}

impl Classified for VideoError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Io { source, .. } | Self::Spawn { source, .. } => source.class(),
            Self::Ffmpeg { .. } | Self::Image { .. } => ErrorClass::Io,
            Self::Memory(error) => error.class(),
            Self::NoFfmpeg { .. } => ErrorClass::Version,
            Self::NotFinite(_) => ErrorClass::Numeric,
            _ => ErrorClass::Usage,
        }
    }
}

/// The extension in lower case, "" without one.
pub(super) fn extension(path: &Path) -> String {
    path.extension().and_then(OsStr::to_str).unwrap_or("").to_ascii_lowercase()
}

pub(super) fn io_error(path: &Path) -> impl Fn(std::io::Error) -> VideoError + '_ {
    |source| VideoError::Io { path: path.to_owned(), source }
}
