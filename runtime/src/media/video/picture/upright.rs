//! How a picture is to be turned, from its metadata.

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};

use super::asked::Bad;

/// Tag of the orientation in EXIF.
const ORIENTATION: u16 = 0x112;

/// How a picture with this metadata is turned to stand upright, as Pillow's `exif_transpose` reads it: EXIF says it, or else XMP.
/// What says nothing known turns nothing.
pub(super) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let said = exif.and_then(of_exif).or_else(|| xmp.and_then(of_xmp));
    said.and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?)).unwrap_or(Orientation::NoTransforms)
}

/// Turns pixels `[height, width, 3]`; gives (width, height) as they then are, and the pixels.
pub(super) fn turn(
    (width, height): (usize, usize),
    pixels: Vec<u8>,
    orientation: Orientation,
) -> Result<((usize, usize), Vec<u8>), Bad> {
    if orientation == Orientation::NoTransforms {
        return Ok(((width, height), pixels));
    }
    let picture = RgbImage::from_raw(width as u32, height as u32, pixels);
    let picture = picture.ok_or_else(|| Bad::Broken("its size does not fit its pixels".to_owned()))?;
    let mut picture = DynamicImage::ImageRgb8(picture);
    picture.apply_orientation(orientation);
    Ok(((picture.width() as usize, picture.height() as usize), picture.into_rgb8().into_raw()))
}

/// (width, height) after turning.
pub(super) fn turned_size((width, height): (usize, usize), orientation: Orientation) -> (usize, usize) {
    match orientation {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (height, width)
        }
        _ => (width, height),
    }
}

/// The value in the first directory of EXIF data, which may have JPEG's name before it.
fn of_exif(mut exif: &[u8]) -> Option<u32> {
    for _ in 0..2 {
        exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    }
    let little = match exif.get(..4)? {
        [b'I', b'I', 42, 0] => true,
        [b'M', b'M', 0, 42] => false,
        _ => return None,
    };
    let read = |at: usize, length: usize| -> Option<u32> {
        let bytes = exif.get(at..at.checked_add(length)?)?;
        let join = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, join) } else { bytes.iter().fold(0, join) })
    };
    let directory = read(4, 4)? as usize;
    let entries = read(directory, 2)? as usize;
    // The last of several counts.
    (0..entries)
        .map_while(|entry| {
            let at = directory.checked_add(2 + 12 * entry)?;
            let (tag, kind, count) = (read(at, 2)?, read(at + 2, 2)?, read(at + 4, 4)?);
            // Whole numbers of one, two and four bytes.
            let length = match kind {
                1 | 6 => 1,
                3 | 8 => 2,
                4 | 9 => 4,
                _ => 0,
            };
            let value = read(at + 8, length)?;
            Some((tag == u32::from(ORIENTATION) && count == 1 && length > 0).then_some(value))
        })
        .flatten()
        .last()
}

/// The digit that XMP gives, as an attribute or an element.
fn of_xmp(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    let digit = |rest: &[u8]| match rest {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => Some(u32::from(digit - b'0')),
        _ => None,
    };
    xmp.windows(NAME.len())
        .enumerate()
        .filter(|(_, name)| *name == NAME)
        .find_map(|(at, _)| digit(&xmp[at + NAME.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXIF data with these entries: tag, type, count, the four bytes of the value.
    fn exif(big: bool, entries: &[(u16, u16, u32, [u8; 4])]) -> Vec<u8> {
        let two = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let four = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut bytes = if big { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        bytes.extend(four(8));
        bytes.extend(two(entries.len() as u16));
        for (tag, kind, count, value) in entries {
            bytes.extend(two(*tag));
            bytes.extend(two(*kind));
            bytes.extend(four(*count));
            bytes.extend(value);
        }
        bytes
    }

    #[test]
    fn exif_of_both_byte_orders_and_every_whole_type_says_the_orientation() {
        let six = Orientation::Rotate90;
        for (big, kind, value) in [
            (false, 3, [6, 0, 0, 0]),
            (true, 3, [0, 6, 0, 0]),
            (false, 4, [6, 0, 0, 0]),
            (true, 4, [0, 0, 0, 6]),
            (true, 1, [6, 0, 0, 0]),
        ] {
            let data = exif(big, &[(0x10f, 2, 4, *b"abc\0"), (ORIENTATION, kind, 1, value)]);
            assert_eq!(orientation(Some(&data), None), six, "{big} {kind}");
            let named = [&b"Exif\0\0"[..], &data].concat();
            assert_eq!(orientation(Some(&named), None), six, "{big} {kind}, named");
        }
    }

    #[test]
    fn metadata_that_say_nothing_known_turn_nothing() {
        let with = |value: u8, kind: u16, count: u32| exif(false, &[(ORIENTATION, kind, count, [value, 0, 0, 0])]);
        for data in [with(0, 3, 1), with(9, 3, 1), with(255, 3, 1), with(6, 3, 2), with(6, 7, 1), with(6, 65535, 1)] {
            assert_eq!(orientation(Some(&data), None), Orientation::NoTransforms, "{data:?}");
        }
        let whole = with(6, 3, 1);
        for end in 0..whole.len() - 3 {
            assert_eq!(orientation(Some(&whole[..end]), None), Orientation::NoTransforms, "{end}");
        }
        let far = [&whole[..4], &[0xff; 40]].concat();
        assert_eq!(orientation(Some(&far), None), Orientation::NoTransforms);
    }

    #[test]
    fn xmp_counts_where_exif_says_nothing() {
        let (attribute, element) = (b"<a tiff:Orientation=\"3\"/>", b"<tiff:Orientation>8</tiff:Orientation>");
        assert_eq!(orientation(None, Some(attribute)), Orientation::Rotate180);
        assert_eq!(orientation(None, Some(element)), Orientation::Rotate270);
        let silent = exif(true, &[(0x10f, 2, 4, *b"abc\0")]);
        assert_eq!(orientation(Some(&silent), Some(attribute)), Orientation::Rotate180);
        let said = exif(true, &[(ORIENTATION, 3, 1, [0, 1, 0, 0])]);
        assert_eq!(orientation(Some(&said), Some(attribute)), Orientation::NoTransforms);
        assert_eq!(orientation(None, Some(b"tiff:Orientation")), Orientation::NoTransforms);
    }
}
