//! A picture of one number per name: horizontal bars with labels.

use std::path::Path;

use image::{Rgb, RgbImage};
use v2l_runtime::media::video::{MAX_SIDE, VideoError, write_png};

/// Pixels of a glyph's element.
const DOT: usize = 2;
/// Columns of a glyph and the one behind it.
const ADVANCE: usize = 4 * DOT;
const ROW: usize = 16;
const MARGIN: usize = 8;
const BAR: usize = 400;
/// Labels are cut to their last characters.
const LABEL: usize = 48;

const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
const TEXT: Rgb<u8> = Rgb([32, 32, 32]);
/// Colour of bars.
pub const PLAIN: [u8; 3] = [44, 114, 142];
/// Colour of bars that are set apart.
pub const MARKED: [u8; 3] = [211, 84, 0];

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What stands before it.
    pub label: String,
    /// Its length; negative ones and those that are no number count as 0, infinite ones as the longest.
    pub value: f64,
    /// What stands behind it.
    pub text: String,
    /// True for [`MARKED`].
    pub marked: bool,
}

/// Writes bars, from top to bottom on a scale from 0 to the largest finite value, as a PNG, whole or not at all.
///
/// # Errors
/// [`VideoError::NotPng`] if `path` does not end in `.png`, [`VideoError::Size`] without a bar or with too many,
/// [`VideoError::Io`].
pub fn write_bar_chart(path: &Path, bars: &[Bar]) -> Result<(), VideoError> {
    write_png(path, &draw(bars)?)
}

fn draw(bars: &[Bar]) -> Result<RgbImage, VideoError> {
    let longest = |text: fn(&Bar) -> &str| bars.iter().map(|bar| shown(text(bar)).len()).max().unwrap_or(0);
    let labels = longest(|bar| &bar.label) * ADVANCE;
    let texts = longest(|bar| &bar.text) * ADVANCE;
    let (width, height) = (labels + BAR + texts + 4 * MARGIN, bars.len() * ROW + 2 * MARGIN);
    if bars.is_empty() || width > MAX_SIDE || height > MAX_SIDE {
        return Err(VideoError::Size { width, height, frames: 1 });
    }
    let mut picture = RgbImage::from_pixel(width as u32, height as u32, BACKGROUND);
    let largest = bars.iter().map(|bar| bar.value).filter(|v| v.is_finite()).fold(0.0, f64::max);
    for (index, bar) in bars.iter().enumerate() {
        let top = MARGIN + index * ROW;
        let part = if bar.value == f64::INFINITY { 1.0 } else { (bar.value / largest).clamp(0.0, 1.0) };
        // A NaN casts to 0.
        let length = (part * BAR as f64).round() as usize;
        let colour = Rgb(if bar.marked { MARKED } else { PLAIN });
        let left = labels + 2 * MARGIN;
        fill(&mut picture, (left, top + 2), (length, ROW - 4), colour);
        let label = shown(&bar.label);
        write(&mut picture, (MARGIN + labels - label.len() * ADVANCE, top + 3), &label);
        write(&mut picture, (left + length + MARGIN, top + 3), &shown(&bar.text));
    }
    Ok(picture)
}

fn shown(text: &str) -> String {
    let plain: Vec<char> = text.chars().map(|c| if c.is_ascii() { c.to_ascii_uppercase() } else { '?' }).collect();
    plain[plain.len().saturating_sub(LABEL)..].iter().collect()
}

fn fill(picture: &mut RgbImage, (left, top): (usize, usize), (width, height): (usize, usize), colour: Rgb<u8>) {
    for y in top..top + height {
        for x in left..left + width {
            picture.put_pixel(x as u32, y as u32, colour);
        }
    }
}

fn write(picture: &mut RgbImage, (left, top): (usize, usize), text: &str) {
    for (index, c) in text.bytes().enumerate() {
        let rows = glyph(c);
        for (y, row) in rows.iter().enumerate() {
            for x in (0..3).filter(|x| row >> (2 - x) & 1 == 1) {
                fill(picture, (left + index * ADVANCE + x * DOT, top + y * DOT), (DOT, DOT), TEXT);
            }
        }
    }
}

/// Five rows of three elements, the left one in the highest bit.
const fn glyph(c: u8) -> [u8; 5] {
    match c {
        b'0' => [7, 5, 5, 5, 7],
        b'1' => [2, 6, 2, 2, 7],
        b'2' => [7, 1, 7, 4, 7],
        b'3' => [7, 1, 3, 1, 7],
        b'4' => [5, 5, 7, 1, 1],
        b'5' => [7, 4, 7, 1, 7],
        b'6' => [7, 4, 7, 5, 7],
        b'7' => [7, 1, 2, 2, 2],
        b'8' => [7, 5, 7, 5, 7],
        b'9' => [7, 5, 7, 1, 7],
        b'A' => [2, 5, 7, 5, 5],
        b'B' => [6, 5, 6, 5, 6],
        b'C' => [3, 4, 4, 4, 3],
        b'D' => [6, 5, 5, 5, 6],
        b'E' => [7, 4, 6, 4, 7],
        b'F' => [7, 4, 6, 4, 4],
        b'G' => [3, 4, 5, 5, 3],
        b'H' => [5, 5, 7, 5, 5],
        b'I' => [7, 2, 2, 2, 7],
        b'J' => [1, 1, 1, 5, 2],
        b'K' => [5, 5, 6, 5, 5],
        b'L' => [4, 4, 4, 4, 7],
        b'M' => [5, 7, 7, 5, 5],
        b'N' => [6, 5, 5, 5, 5],
        b'O' => [2, 5, 5, 5, 2],
        b'P' => [6, 5, 6, 4, 4],
        b'Q' => [2, 5, 5, 6, 3],
        b'R' => [6, 5, 6, 5, 5],
        b'S' => [3, 4, 2, 1, 6],
        b'T' => [7, 2, 2, 2, 2],
        b'U' => [5, 5, 5, 5, 7],
        b'V' => [5, 5, 5, 5, 2],
        b'W' => [5, 5, 7, 7, 5],
        b'X' => [5, 5, 2, 5, 5],
        b'Y' => [5, 5, 2, 2, 2],
        b'Z' => [7, 1, 2, 4, 7],
        b' ' => [0; 5],
        b'.' => [0, 0, 0, 0, 2],
        b'-' => [0, 0, 7, 0, 0],
        b'_' => [0, 0, 0, 0, 7],
        b'/' => [1, 1, 2, 4, 4],
        b':' => [0, 2, 0, 2, 0],
        _ => [7, 1, 2, 0, 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64, marked: bool) -> Bar {
        Bar { label: label.into(), value, text: format!("{value:.0e}"), marked }
    }

    #[test]
    fn bar_chart_draws_bars_to_scale_in_their_colours() {
        let bars = [
            bar("blocks.0", 1.0, false),
            bar("b", 4.0, true),
            bar("c", f64::INFINITY, false),
            bar("d", f64::NAN, true),
        ];
        let picture = draw(&bars).unwrap();
        let length = |index: usize, colour: [u8; 3]| {
            let y = (MARGIN + index * ROW + ROW / 2) as u32;
            (0..picture.width()).filter(|&x| picture.get_pixel(x, y).0 == colour).count()
        };
        let lengths = [length(0, PLAIN), length(1, MARKED), length(2, PLAIN), length(3, MARKED)];
        assert_eq!(lengths, [BAR / 4, BAR, BAR, 0]);
        let ink = picture.pixels().filter(|pixel| **pixel == TEXT).count();
        assert!(ink > 500, "{ink}");
    }

    #[test]
    fn bar_chart_without_bars_or_with_too_many_is_refused() {
        assert!(matches!(draw(&[]), Err(VideoError::Size { .. })));
        let many = vec![bar("x", 1.0, false); MAX_SIDE / ROW + 1];
        assert!(matches!(draw(&many), Err(VideoError::Size { .. })));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(write_bar_chart(&dir.path().join("a.jpg"), &many[..1]), Err(VideoError::NotPng { .. })));
    }
}
