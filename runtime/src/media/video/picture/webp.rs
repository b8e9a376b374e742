//! WebP files. The parts of an animation are decoded as the still pictures that they are, and composed as libwebp does it.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder};

use super::super::frames::Frames;
use super::asked::{Asked, Bad, Wanted, limits};
use super::canvas::{Canvas, Disposal, Part, Place, Rule};
use super::collected::Collected;
use super::still;
use super::upright::orientation;

/// The frames of a WebP file.
pub(super) fn read(bytes: &[u8], asked: Asked) -> Result<Frames, Bad> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes))?;
    let body = bytes.get(12..).unwrap_or_default();
    // The decoder would make room for what a chunk says its length is.
    let metadata = |wanted: &[u8]| chunks(body).find(|(name, _)| *name == wanted).map(|(_, content)| content);
    let turned = orientation(metadata(b"EXIF"), metadata(b"XMP "));
    if !decoder.has_animation() {
        check_lossy(body, decoder.dimensions())?;
        return still::read(decoder, turned, asked);
    }
    let frames = || chunks(body).filter(|(name, _)| *name == b"ANMF");
    if frames().nth(1).is_some() {
        asked.check_moving()?;
    }
    decoder.set_limits(limits())?;
    let (width, height) = decoder.dimensions();
    let size = (width as usize, height as usize);
    asked.check(size, 1)?;
    let mut collected = Collected::new(size, turned, asked);
    let mut canvas = Canvas::new(size, Rule::WebP);
    for (_, frame) in frames() {
        let (part, milliseconds) = part(frame, asked)?;
        canvas.draw(&part)?;
        collected.push(canvas.pixels(), 4, milliseconds)?;
        if asked.wanted == Wanted::First {
            break;
        }
    }
    collected.into_frames()
}

fn broken() -> Bad {
    Bad::Broken("Format error decoding WebP: a frame is damaged".to_owned())
}

/// Refuses a lossy picture of another size than its container says, before it is decoded.
fn check_lossy(body: &[u8], (width, height): (u32, u32)) -> Result<(), Bad> {
    for (_, content) in chunks(body).filter(|(name, _)| *name == b"VP8 ") {
        // Behind a tag of three bytes and a mark of three: two numbers of 14 bits.
        let side = |at: usize| Some(u32::from(*content.get(at)?) | u32::from(*content.get(at + 1)? & 0x3f) << 8);
        if (side(6), side(8)) != (Some(width), Some(height)) {
            return Err(broken());
        }
    }
    Ok(())
}

/// The chunks in `bytes`: names and contents.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let (name, length) = (bytes.get(at..at + 4)?, bytes.get(at + 4..at + 8)?);
        let length = length.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
        let content = bytes.get(at + 8..at.checked_add(8)?.checked_add(length)?)?;
        // A byte fills up odd lengths.
        at += 8 + length + length % 2;
        Some((name, content))
    })
}

/// A number of three bytes, little end first.
fn three(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + 3].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// The part that a frame's chunk holds, and how long it is shown.
fn part(frame: &[u8], asked: Asked) -> Result<(Part, f64), Bad> {
    let (head, body) = frame.split_at_checked(16).ok_or_else(broken)?;
    let place = Place {
        left: three(head, 0) * 2,
        top: three(head, 3) * 2,
        width: three(head, 6) + 1,
        height: three(head, 9) + 1,
    };
    asked.check((place.width, place.height), 1)?;
    check_lossy(body, (place.width as u32, place.height as u32))?;
    let decoder = WebPDecoder::new(Cursor::new(alone(head, body)))?;
    if decoder.has_animation() || decoder.dimensions() != (place.width as u32, place.height as u32) {
        return Err(broken());
    }
    let color = decoder.color_type();
    let mut pixels = vec![0; place.width * place.height * usize::from(color.bytes_per_pixel())];
    decoder.read_image(&mut pixels)?;
    if color == ColorType::Rgb8 {
        pixels = pixels.as_chunks::<3>().0.iter().flat_map(|&[red, green, blue]| [red, green, blue, 255]).collect();
    }
    let disposal = if head[15] & 1 == 0 { Disposal::Keep } else { Disposal::Clear };
    Ok((Part { place, pixels, over: head[15] & 2 == 0, disposal }, three(head, 12) as f64))
}

/// A frame's chunks as a file of their own.
fn alone(head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut inside = b"WEBP".to_vec();
    let mut add = |name: &[u8], content: &[u8]| {
        inside.extend_from_slice(name);
        inside.extend_from_slice(&(content.len() as u32).to_le_bytes());
        inside.extend_from_slice(content);
        inside.extend_from_slice(&[0][..content.len() % 2]);
    };
    if chunks(body).any(|(name, _)| name == b"ALPH") {
        // That there is alpha, and the size.
        let extended = [&[0x10, 0, 0, 0][..], &head[6..12]].concat();
        add(b"VP8X", &extended);
    }
    for (name, content) in chunks(body).filter(|(name, _)| [&b"ALPH"[..], b"VP8 ", b"VP8L"].contains(name)) {
        add(name, content);
    }
    [&b"RIFF"[..], &(inside.len() as u32).to_le_bytes()[..], &inside].concat()
}
