//! Where pictures end in their files: what is cut off is refused, and so are further pictures behind the first.

use super::asked::{Bad, Wanted};
use super::containers::number;
use super::kind::{Format, Kind, kind};

/// Name of the list of pictures in a file that phones write, in a segment of type APP2.
const PICTURES: &[u8] = b"MPF\0";
/// The same in XMP.
const CONTAINER: &[u8] = b"http://ns.google.com/photos/1.0/container/";

/// Refuses a file that ends too early; and one of several pictures, unless its first is enough.
pub(super) fn check(format: Format, bytes: &[u8], wanted: Wanted) -> Result<(), Bad> {
    if !is_whole(format, bytes) {
        return Err(Bad::Broken("the file is cut off".to_owned()));
    }
    if wanted != Wanted::First && several(format, bytes) {
        let way_out = "give one picture, or make a video of them with ffmpeg";
        return Err(Bad::NotRead { what: "a file of several pictures".to_owned(), way_out });
    }
    Ok(())
}

/// True if another picture of the format begins where the first ends, as in Motion JPEG. A picture that lists what stands behind
/// it, as a phone's with a depth map, is one.
pub(in crate::media::video) fn several(format: Format, bytes: &[u8]) -> bool {
    let end = match format {
        Format::Jpeg => jpeg_end(bytes).filter(|(_, listed)| !listed).map(|(at, _)| at),
        Format::Png => png_end(bytes),
        Format::WebP | Format::Gif => None,
    };
    end.and_then(|at| bytes.get(at..)).is_some_and(|rest| kind(rest) == Kind::Picture(format))
}

fn is_whole(format: Format, bytes: &[u8]) -> bool {
    match format {
        Format::Jpeg => jpeg_end(bytes).is_some(),
        Format::Png => png_end(bytes).is_some(),
        Format::WebP => webp_is_whole(bytes),
        Format::Gif => gif_is_whole(bytes).unwrap_or(false),
    }
}

/// Where the first picture ends, and whether it lists what stands behind it.
fn jpeg_end(bytes: &[u8]) -> Option<(usize, bool)> {
    let (mut at, mut listed) = (2, false);
    loop {
        match (*bytes.get(at)?, *bytes.get(at + 1)?) {
            (0xff, 0xd9) => return Some((at + 2, listed)),
            // Markers without a length.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            // Any number of 0xff may stand before a marker. Decoders pass over what is none.
            (0xff, 0xff) | (0..=0xfe, _) => at += 1,
            (0xff, marker) => {
                let length = usize::from(*bytes.get(at + 2)?) << 8 | usize::from(*bytes.get(at + 3)?);
                let end = at + 2 + length.max(2);
                let content = bytes.get(at + 4..end)?;
                listed |= marker == 0xe2 && content.starts_with(PICTURES);
                listed |= marker == 0xe1 && content.windows(CONTAINER.len()).any(|name| name == CONTAINER);
                at = if marker == 0xda { end + scan(bytes.get(end..)?)? } else { end };
            }
        }
    }
}

/// Length of a scan's data, up to the next marker that is none of a restart.
fn scan(data: &[u8]) -> Option<usize> {
    data.windows(2).position(|pair| pair[0] == 0xff && matches!(pair[1], 0xc0..=0xcf | 0xd8..=0xfe))
}

/// Where the first picture ends.
fn png_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 8usize;
    loop {
        let length = number(bytes, at)?;
        let name = bytes.get(at + 4..at + 8)?;
        // A checksum stands behind the content.
        at = at.checked_add(length)?.checked_add(12)?;
        if name == b"IEND" {
            return (at <= bytes.len()).then_some(at);
        }
    }
}

/// True if the file is as long as it says.
fn webp_is_whole(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).map(|four| four.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)));
    length.is_some_and(|length| length + 8 <= bytes.len() as u64)
}

/// True if no block is cut off. The byte that says the end may lack, as Pillow and browsers have it.
fn gif_is_whole(bytes: &[u8]) -> Option<bool> {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 * (2usize << (flags & 7)) };
    let mut at = 13 + table(*bytes.get(10)?);
    while at < bytes.len() {
        match bytes[at] {
            // An extension and its label.
            0x21 => at += 2,
            // A frame: its place, its palette, the size of its codes.
            0x2c => at += 11 + table(*bytes.get(at + 9)?),
            // The end, or what the decoder judges.
            _ => return Some(true),
        }
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1 + length;
            if length == 0 {
                break;
            }
        }
    }
    Some(at == bytes.len())
}
