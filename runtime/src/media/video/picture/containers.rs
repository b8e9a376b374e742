//! What the containers of pictures say before anything is decoded. Every walk is bounded by the bytes there are.

use super::asked::Bad;

/// A number of four bytes, big end first.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(four.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

/// Number of colours in a JPEG picture.
pub(super) fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    let mut at = 2;
    loop {
        // Any number of 0xff may stand before a marker.
        while bytes.get(at)? == &0xff && bytes.get(at + 1)? == &0xff {
            at += 1;
        }
        let (&0xff, &marker) = (bytes.get(at)?, bytes.get(at + 1)?) else { return None };
        match marker {
            // Frame headers, but not the tables and reserved markers among them.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => return bytes.get(at + 9).copied(),
            0x01 | 0xd0..=0xd8 => at += 2,
            0xd9 | 0xda => return None,
            _ => {
                let length = usize::from(*bytes.get(at + 2)?) << 8 | usize::from(*bytes.get(at + 3)?);
                at += 2 + length.max(2);
            }
        }
    }
}

/// The boxes in `bytes`: names and contents.
fn boxes(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let (length, name) = (number(bytes, at)?, bytes.get(at + 4..at + 8)?);
        let (begin, end) = match length {
            // To the end.
            0 => (at + 8, bytes.len()),
            // A longer number follows; its upper half is 0 in any file that fits.
            1 if number(bytes, at + 8)? == 0 => (at + 16, at.checked_add(number(bytes, at + 12)?)?),
            length => (at + 8, at.checked_add(length)?),
        };
        let content = bytes.get(begin..end)?;
        at = end;
        Some((name, content))
    })
}

/// The content of the box `name` in `bytes`.
fn inside<'a>(bytes: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes).find(|(found, _)| found == name).map(|(_, content)| content)
}

/// Refuses an AVIF picture that ffmpeg does not show as it is meant: turned, mirrored, of tiles; and an animation, unless its
/// first frame is enough. What ffmpeg makes of them depends on its version.
pub(in crate::media::video) fn check_avif(bytes: &[u8], all: bool) -> Result<(), Bad> {
    const WAY_OUT: &str = "save it as PNG, JPEG or WebP, or an animation as a video";
    let not_read = |what: &str| Err(Bad::NotRead { what: what.to_owned(), way_out: WAY_OUT });
    let sequence = inside(bytes, b"ftyp").is_some_and(|brands| brands.chunks_exact(4).any(|brand| brand == b"avis"));
    if all && sequence {
        return not_read("an animated AVIF picture");
    }
    // Four bytes of version and flags stand before the boxes in it.
    let meta = inside(bytes, b"meta").and_then(|meta| meta.get(4..)).unwrap_or_default();
    let properties = inside(meta, b"iprp").and_then(|properties| inside(properties, b"ipco")).unwrap_or_default();
    if boxes(properties).any(|(name, content)| name == b"imir" || (name == b"irot" && content != [0])) {
        return not_read("an AVIF picture that is stored turned or mirrored");
    }
    // Version and flags, then the number of items in two or four bytes.
    let items = inside(meta, b"iinf").unwrap_or_default();
    let items = items.get(if items.first() == Some(&0) { 6 } else { 8 }..).unwrap_or_default();
    let tiles = |item: &[u8]| [8, 10].iter().any(|&at| item.get(at..at + 4).is_some_and(|kind| kind == b"grid"));
    if boxes(items).any(|(name, item)| name == b"infe" && tiles(item)) {
        return not_read("an AVIF picture of tiles");
    }
    // The coded pictures.
    if inside(bytes, b"mdat").or_else(|| inside(meta, b"idat")).is_none() {
        return Err(Bad::Broken("the file is cut off".to_owned()));
    }
    Ok(())
}
