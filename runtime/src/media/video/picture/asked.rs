//! What is asked of a picture, and what may be wrong with it.

use std::path::Path;

use image::{ImageError, Limits};

use super::super::frames::{MAX_SIDE, VideoError, check_total};

/// Longest file of one picture or animation: 2 GiB.
pub(in crate::media::video) const MAX_FILE: u64 = 1 << 31;

/// How many frames of a moving picture are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::media::video) enum Wanted {
    /// The first, as an input image: of an APNG with a picture of its own beside the animation, that picture.
    First,
    /// All, as a clip.
    All,
    /// The only one: a moving picture is refused, as it lies among single frames.
    Only,
}

/// What is asked of a picture.
#[derive(Clone, Copy, Debug)]
pub(in crate::media::video) struct Asked {
    /// How many frames.
    pub(in crate::media::video) wanted: Wanted,
    /// Most bytes that they may take.
    pub(in crate::media::video) most: usize,
}

impl Asked {
    /// Refuses `count` frames of (width, height) that are too large or too many.
    pub(super) fn check(self, (width, height): (usize, usize), count: usize) -> Result<(), Bad> {
        check_total(width, height, count)?;
        if (width * height * 3).saturating_mul(count) > self.most {
            return Err(Bad::Broken(format!("its frames take more than {} bytes", self.most)));
        }
        Ok(())
    }

    /// Refuses an animation where single pictures are wanted.
    pub(super) fn check_moving(self) -> Result<(), Bad> {
        if self.wanted == Wanted::Only {
            let way_out = "give it by itself, or its frames as files";
            return Err(Bad::NotRead { what: "an animation among single frames".to_owned(), way_out });
        }
        Ok(())
    }
}

/// What is wrong with a picture.
#[derive(Debug, thiserror::Error)]
pub(in crate::media::video) enum Bad {
    /// The decoder's words.
    #[error("{0}; expected an intact image of at most {MAX_SIDE} pixels a side")]
    Broken(String),
    /// Right, and not read.
    #[error("{what} is not read; {way_out}")]
    NotRead {
        /// With its article.
        what: String,
        /// What to do about it.
        way_out: &'static str,
    },
    /// Too large, or no memory for it.
    #[error(transparent)]
    Video(#[from] VideoError),
}

impl Bad {
    /// As an error of the file.
    pub(in crate::media::video) fn of(self, path: &Path) -> VideoError {
        match self {
            Self::Video(error) => error,
            other => VideoError::Image { path: path.to_owned(), message: other.to_string() },
        }
    }
}

impl From<ImageError> for Bad {
    fn from(error: ImageError) -> Self {
        Self::Broken(error.to_string().trim_end_matches('.').to_owned())
    }
}

/// The limits of the decoders.
pub(super) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits
}
