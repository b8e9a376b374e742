//! PNG files, with animations and what stands behind the picture.

use std::io::Cursor;

use image::metadata::Orientation;
use png::{BlendOp, ColorType, Decoder, DecodingError, DisposeOp, Info, Limits, Reader, Transformations};

use super::super::frames::{Frames, MAX_SIDE};
use super::asked::{Asked, Bad, Wanted};
use super::canvas::{Canvas, Disposal, Part, Place, Rule};
use super::collected::Collected;
use super::upright::{orientation, turn};

/// Memory of the decoder besides frames: compressed text, profiles, rows.
const MEMORY: usize = 64 << 20;
/// Longest text, unpacked.
const TEXT: usize = 4 << 20;
/// EXIF as ImageMagick wrote it before PNG had a chunk for it.
const RAW_PROFILE: &str = "Raw profile type exif";
const XMP: &str = "XML:com.adobe.xmp";

type File<'a> = Reader<Cursor<&'a [u8]>>;

impl From<DecodingError> for Bad {
    fn from(error: DecodingError) -> Self {
        Self::Broken(format!("Format error decoding Png: {}", error.to_string().trim_end_matches('.')))
    }
}

/// The frames of a PNG file.
pub(super) fn read(bytes: &[u8], asked: Asked) -> Result<Frames, Bad> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: MEMORY });
    decoder.set_transformations(Transformations::normalize_to_color8());
    decoder.set_ignore_iccp_chunk(true);
    let (width, height) = decoder.read_header_info()?.size();
    let size = (width as usize, height as usize);
    asked.check(size, 1)?;
    let mut reader = decoder.read_info()?;
    let length = reader.output_buffer_size().ok_or_else(|| Bad::Broken(format!("a side is above {MAX_SIDE}")))?;
    let mut buffer = vec![0; length];
    match reader.info().animation_control() {
        Some(control) if asked.wanted != Wanted::First => {
            let count = control.num_frames;
            let turned = turned_animation(bytes).unwrap_or(Orientation::NoTransforms);
            animation(&mut reader, (size, count, turned), &mut buffer, asked)
        }
        _ => {
            let color = reader.next_frame(&mut buffer)?.color_type;
            // Metadata may stand behind the picture. If they cannot be read they say nothing.
            let _ = reader.finish();
            let pixels = channels(color);
            let rgb = match pixels {
                1 | 2 => buffer.chunks_exact(pixels).flat_map(|pixel| [pixel[0]; 3]).collect(),
                3 => buffer,
                _ => buffer.chunks_exact(pixels).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
            };
            let ((width, height), rgb) = turn(size, rgb, turned(reader.info()))?;
            Ok(Frames::new(width, height, rgb, None)?)
        }
    }
}

/// How an animation is to be turned. Its metadata may stand behind the frames, which are passed over here.
fn turned_animation(bytes: &[u8]) -> Result<Orientation, DecodingError> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: MEMORY });
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info()?;
    // What cannot be read says nothing.
    let _ = reader.finish();
    Ok(turned(reader.info()))
}

/// All frames of an animation. A picture beside it, which only programs without animations show, is left out.
fn animation(
    reader: &mut File<'_>,
    (size, count, turned): ((usize, usize), u32, Orientation),
    buffer: &mut [u8],
    asked: Asked,
) -> Result<Frames, Bad> {
    if count > 1 {
        asked.check_moving()?;
    }
    if reader.info().frame_control().is_none() {
        reader.next_frame(buffer)?;
    }
    let mut collected = Collected::new(size, turned, asked);
    let mut canvas = Canvas::new(size, Rule::Png);
    for index in 0..count {
        let (part, milliseconds) = part(reader, buffer, index == 0)?;
        canvas.draw(&part)?;
        collected.push(canvas.pixels(), 4, milliseconds)?;
    }
    collected.into_frames()
}

/// The part that the next frame changes, and how long it is shown.
fn part(reader: &mut File<'_>, buffer: &mut [u8], first: bool) -> Result<(Part, f64), Bad> {
    let frame = reader.next_frame(buffer)?;
    let (width, height) = (frame.width as usize, frame.height as usize);
    let info = reader.info();
    let control = *info.frame_control().ok_or_else(|| Bad::Broken("a frame does not say where it lies".to_owned()))?;
    let pixels = channels(frame.color_type);
    // An interlaced frame lies in rows of the whole picture's length.
    let stride = if info.interlaced { info.width as usize * pixels } else { width * pixels };
    let rows =
        buffer.chunks_exact(stride.max(1)).take(height).flat_map(|row| row[..width * pixels].chunks_exact(pixels));
    let rgba = |pixel: &[u8]| match *pixel {
        [grey] => [grey, grey, grey, 255],
        [grey, alpha] => [grey, grey, grey, alpha],
        [red, green, blue] => [red, green, blue, 255],
        [red, green, blue, alpha, ..] => [red, green, blue, alpha],
        [] => [0; 4],
    };
    let disposal = match control.dispose_op {
        DisposeOp::None => Disposal::Keep,
        // There is nothing before the first.
        DisposeOp::Previous if !first => Disposal::Restore,
        DisposeOp::Background | DisposeOp::Previous => Disposal::Clear,
    };
    let place = Place { left: control.x_offset as usize, top: control.y_offset as usize, width, height };
    let over = control.blend_op == BlendOp::Over;
    let part = Part { place, pixels: rows.flat_map(rgba).collect(), over, disposal };
    // A denominator of 0 stands for hundredths.
    let denominator = if control.delay_den == 0 { 100 } else { control.delay_den };
    Ok((part, f64::from(control.delay_num) * 1000.0 / f64::from(denominator)))
}

fn channels(color: ColorType) -> usize {
    match color {
        ColorType::Grayscale => 1,
        ColorType::GrayscaleAlpha => 2,
        // Palettes have become colours.
        ColorType::Rgb | ColorType::Indexed => 3,
        ColorType::Rgba => 4,
    }
}

/// How the picture is to be turned.
fn turned(info: &Info<'_>) -> Orientation {
    let profile = || {
        let plain = info.uncompressed_latin1_text.iter().find(|text| text.keyword == RAW_PROFILE);
        let packed = || {
            let mut packed = info.compressed_latin1_text.iter().find(|text| text.keyword == RAW_PROFILE)?.clone();
            packed.decompress_text_with_limit(TEXT).ok()?;
            packed.get_text().ok()
        };
        Some(unhex(&plain.map(|text| text.text.clone()).or_else(packed)?))
    };
    let exif = info.exif_metadata.as_ref().map(|exif| exif.to_vec()).or_else(profile);
    let xmp = || {
        let mut xmp = info.utf8_text.iter().find(|text| text.keyword == XMP)?.clone();
        xmp.decompress_text_with_limit(TEXT).ok()?;
        xmp.get_text().ok()
    };
    orientation(exif.as_deref(), xmp().as_deref().map(str::as_bytes))
}

/// The bytes of a raw profile: an empty line, its name, its length, then hexadecimal digits.
fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.split('\n').skip(3).flat_map(str::chars).filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}
