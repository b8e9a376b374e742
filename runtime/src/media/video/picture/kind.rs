//! What a file is, by its first bytes.

use super::asked::Bad;
use super::containers::{jpeg_components, number};

/// A format that is decoded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::media::video) enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
}

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::media::video) enum Kind {
    /// A picture or animation that is decoded here.
    Picture(Format),
    /// An AVIF picture or animation: ffmpeg's.
    Avif,
    /// A picture that nothing here reads rightly, with its article.
    NotRead(&'static str),
    /// Anything else: ffmpeg's.
    Other,
}

const SAVE: &str = "save the picture as PNG, JPEG or WebP";

/// The kind of a file that begins so.
pub(in crate::media::video) fn kind(start: &[u8]) -> Kind {
    match start {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Kind::Picture(Format::Png),
        [0xff, 0xd8, 0xff, ..] => Kind::Picture(Format::Jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Kind::Picture(Format::WebP),
        [b'G', b'I', b'F', b'8', ..] => Kind::Picture(Format::Gif),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => brand(start),
        // Cameras' raw files begin as TIFF files do. ffmpeg passes by how they are turned.
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Kind::NotRead("a TIFF or raw picture"),
        _ => Kind::Other,
    }
}

/// The kind of a file of boxes, by the brands of its first.
fn brand(start: &[u8]) -> Kind {
    let length = number(start, 0).unwrap_or(0).min(start.len());
    let brands = || start.get(8..length).unwrap_or_default().chunks_exact(4);
    let any = |wanted: &[&[u8; 4]]| brands().any(|brand| wanted.iter().any(|wanted| brand == *wanted));
    if any(&[b"avif", b"avis"]) {
        Kind::Avif
    } else if any(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"]) {
        Kind::NotRead("a HEIC picture")
    } else if matches!(brands().next(), Some(b"mif1" | b"msf1" | b"mif2")) {
        Kind::NotRead("a HEIF picture")
    } else {
        Kind::Other
    }
}

impl Kind {
    /// Refuses what is not read.
    pub(in crate::media::video) fn check(self) -> Result<Self, Bad> {
        match self {
            Self::NotRead(what) => Err(Bad::NotRead { what: what.to_owned(), way_out: SAVE }),
            other => Ok(other),
        }
    }
}

/// Refuses a JPEG of four colours: which ones they are is a matter of markers that decoders take differently.
pub(super) fn check_jpeg(bytes: &[u8]) -> Result<(), Bad> {
    match jpeg_components(bytes) {
        Some(4) => Err(Bad::NotRead { what: "a JPEG picture of four colours (CMYK)".to_owned(), way_out: SAVE }),
        _ => Ok(()),
    }
}
