//! Contact sheets: several videos one below the other in a single picture.

use std::path::Path;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::frames::{Frames, VideoError};
use super::write_png;

/// Frames shown of one video, at most.
const COLUMNS: usize = 9;
/// Longest side of a frame in the sheet, in pixels; longer ones are reduced.
const LARGEST: u32 = 256;
/// Shorter ones are enlarged by a whole factor until they reach this.
const SMALLEST: u32 = 96;
const GAP: u32 = 4;
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const EMPTY: Rgb<u8> = Rgb([0, 0, 0]);

/// Writes a PNG with one row for each video, time from left to right: at most 9 frames, evenly spaced, the first and the
/// last among them.
///
/// All rows have the frame size of the last video, reduced to 256 pixels or enlarged by a whole factor to 96; frames of
/// another aspect ratio are centred on black. The file appears whole or not at all.
///
/// # Errors
/// [`VideoError::NotPng`] if `path` does not end in `.png`, [`VideoError::NoFrames`] without a row,
/// [`VideoError::Io`].
pub fn write_contact_sheet(path: &Path, rows: &[&Frames]) -> Result<(), VideoError> {
    let sheet = draw(rows).ok_or_else(|| VideoError::NoFrames { path: path.to_owned() })?;
    write_png(path, &sheet)
}

/// The picture, or `None` without a row.
fn draw(rows: &[&Frames]) -> Option<RgbImage> {
    let last = rows.last()?;
    let cell = cell_size(last.width() as u32, last.height() as u32);
    let columns = rows.iter().map(|row| row.count().min(COLUMNS)).max()?;
    let extent = |count: usize, side: u32| count as u32 * (side + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(extent(columns, cell.0), extent(rows.len(), cell.1), PAPER);
    for (y, row) in rows.iter().enumerate() {
        let frames: Vec<&[u8]> = row.iter().collect();
        let shown = frames.len().min(COLUMNS);
        for x in 0..shown {
            // Evenly spaced, both ends included.
            let index = if shown == 1 { 0 } else { (x * (frames.len() - 1) + (shown - 1) / 2) / (shown - 1) };
            let frame = RgbImage::from_raw(row.width() as u32, row.height() as u32, frames[index].to_vec())?;
            let place = |n: usize, side: u32| i64::from(extent(n, side));
            imageops::replace(&mut sheet, &fit(&frame, cell), place(x, cell.0), place(y, cell.1));
        }
    }
    Some(sheet)
}

fn cell_size(width: u32, height: u32) -> (u32, u32) {
    let longest = width.max(height);
    if longest > LARGEST {
        let reduce = |side: u32| (side * LARGEST / longest).max(1);
        (reduce(width), reduce(height))
    } else {
        let factor = SMALLEST.div_ceil(longest);
        (width * factor, height * factor)
    }
}

/// `frame` as large as `cell` allows, centred; whole factors keep the pixels sharp.
fn fit(frame: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    let (w, h) = frame.dimensions();
    let scale = (f64::from(width) / f64::from(w)).min(f64::from(height) / f64::from(h));
    let side = |n: u32, most: u32| ((f64::from(n) * scale).round() as u32).clamp(1, most);
    let (w, h) = (side(w, width), side(h, height));
    let filter = if scale.fract() == 0.0 { FilterType::Nearest } else { FilterType::Triangle };
    let mut cell = RgbImage::from_pixel(width, height, EMPTY);
    let (x, y) = ((width - w) / 2, (height - h) / 2);
    imageops::replace(&mut cell, &imageops::resize(frame, w, h, filter), i64::from(x), i64::from(y));
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(width: usize, height: usize, levels: &[u8]) -> Frames {
        let data = levels.iter().flat_map(|&level| vec![level; width * height * 3]).collect();
        Frames::new(width, height, data, None).unwrap()
    }

    #[test]
    fn contact_sheet_shows_first_and_last_frames_enlarged() {
        let many: Vec<u8> = (0..17).map(|i| i * 10).collect();
        let sheet = draw(&[&frames(96, 96, &[7]), &frames(48, 48, &many)]).unwrap();
        assert_eq!(sheet.dimensions(), (9 * 100 + 4, 2 * 100 + 4));
        let level = |column: u32, row: u32| sheet.get_pixel(4 + column * 100 + 50, 4 + row * 100 + 50)[0];
        assert_eq!(level(0, 0), 7);
        assert_eq!(level(1, 0), 255, "a row with one frame leaves the rest of the paper white");
        let second_row: Vec<u8> = (0..9).map(|column| level(column, 1)).collect();
        assert_eq!(second_row, [0, 20, 40, 60, 80, 100, 120, 140, 160]);
    }

    #[test]
    fn contact_sheet_centres_another_aspect_ratio_on_black() {
        let sheet = draw(&[&frames(400, 200, &[200]), &frames(512, 512, &[100])]).unwrap();
        assert_eq!(sheet.dimensions(), (264, 2 * 260 + 4));
        let column: Vec<u8> = [4, 100, 200].map(|y| sheet.get_pixel(130, y)[0]).to_vec();
        assert_eq!(column, [0, 200, 0]);
    }

    #[test]
    fn contact_sheet_needs_a_row_and_a_png() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheet.png");
        assert!(matches!(write_contact_sheet(&path, &[]), Err(VideoError::NoFrames { .. })));
        let video = frames(16, 16, &[1, 2]);
        let jpeg = dir.path().join("sheet.jpg");
        assert!(matches!(write_contact_sheet(&jpeg, &[&video]), Err(VideoError::NotPng { .. })));
        write_contact_sheet(&path, &[&video]).unwrap();
        assert_eq!(image::open(&path).unwrap().into_rgb8(), draw(&[&video]).unwrap());
    }
}
