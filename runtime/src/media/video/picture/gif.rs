//! GIF files, composed as Pillow composes them.

use std::io::ErrorKind;
use std::num::NonZeroU64;

use gif::{DecodeOptions, Decoder, DecodingError, DisposalMethod, Frame, MemoryLimit};
use image::metadata::Orientation;

use super::super::frames::{Frames, MAX_SIDE};
use super::asked::{Asked, Bad, Wanted};
use super::collected::Collected;

impl From<DecodingError> for Bad {
    fn from(error: DecodingError) -> Self {
        Self::Broken(format!("Format error decoding Gif: {error}"))
    }
}

/// The frames of a GIF file.
pub(super) fn read(bytes: &[u8], asked: Asked) -> Result<Frames, Bad> {
    let mut options = DecodeOptions::new();
    let most = (MAX_SIDE * MAX_SIDE) as u64;
    options.set_memory_limit(NonZeroU64::new(most).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes));
    let mut decoder = options.read_info(bytes)?;
    let mut composed: Option<(Canvas, Collected)> = None;
    while let Some((frame, indices)) = next(&mut decoder, composed.is_some(), asked)? {
        if composed.is_some() {
            asked.check_moving()?;
        }
        let palette = frame.palette.as_deref().or(decoder.global_palette()).unwrap_or_default();
        let drawn = Drawn { frame: &frame, indices: &indices, palette, background: decoder.bg_color().unwrap_or(0) };
        if composed.is_none() {
            let screen = (usize::from(decoder.width()), usize::from(decoder.height()));
            let canvas = Canvas::new(screen, &drawn, asked)?;
            let collected = Collected::new(canvas.size, Orientation::NoTransforms, asked);
            composed = Some((canvas, collected));
        }
        let Some((canvas, collected)) = &mut composed else { break };
        canvas.draw(&drawn);
        collected.push(&canvas.pixels, 3, f64::from(frame.delay) * 10.0)?;
        if asked.wanted == Wanted::First {
            break;
        }
    }
    composed.ok_or_else(|| Bad::Broken("there is no frame".to_owned()))?.1.into_frames()
}

/// The next frame and the indices of its colours, `[height, width]`. A file may end without saying so, behind a frame.
fn next(decoder: &mut Decoder<&[u8]>, some: bool, asked: Asked) -> Result<Option<(Frame<'static>, Vec<u8>)>, Bad> {
    let ended = |error: &DecodingError| match error {
        DecodingError::UnexpectedEof => true,
        DecodingError::Io(error) => error.kind() == ErrorKind::UnexpectedEof,
        _ => false,
    };
    let frame = match decoder.next_frame_info() {
        Ok(Some(frame)) => frame.clone(),
        Err(error) if !(some && ended(&error)) => return Err(error.into()),
        _ => return Ok(None),
    };
    asked.check((frame.width.into(), frame.height.into()), 1)?;
    let mut indices = vec![0; usize::from(frame.width) * usize::from(frame.height)];
    decoder.read_into_buffer(&mut indices)?;
    Ok(Some((frame, indices)))
}

/// A frame with what it is drawn from.
struct Drawn<'a> {
    frame: &'a Frame<'static>,
    indices: &'a [u8],
    palette: &'a [u8],
    background: usize,
}

impl Drawn<'_> {
    /// The colour of an index; black beyond the palette.
    fn color(&self, index: usize) -> [u8; 3] {
        match self.palette.get(index * 3..index * 3 + 3) {
            Some(&[red, green, blue]) => [red, green, blue],
            _ => [0; 3],
        }
    }

    /// The colour of cleared places: that of transparency, or else of the background.
    fn cleared(&self) -> [u8; 3] {
        self.color(self.frame.transparent.map_or(self.background, usize::from))
    }

    /// The frame's rows as far as they lie in a canvas: where each begins there in pixels, and its indices.
    fn rows(&self, (width, height): (usize, usize)) -> impl Iterator<Item = (usize, &[u8])> {
        let (left, top) = (usize::from(self.frame.left), usize::from(self.frame.top));
        let shown = usize::from(self.frame.width).min(width.saturating_sub(left));
        let height = if shown == 0 { 0 } else { height };
        let rows = self.indices.chunks_exact(usize::from(self.frame.width).max(1)).enumerate();
        rows.take(height.saturating_sub(top)).map(move |(y, row)| ((top + y) * width + left, &row[..shown]))
    }
}

/// What becomes of a frame's place before the next.
enum Disposal {
    Keep,
    Fill([u8; 3]),
    Restore(Vec<u8>),
}

/// What is shown.
struct Canvas {
    size: (usize, usize),
    /// `[height, width, 3]`.
    pixels: Vec<u8>,
    /// No frame has been drawn.
    fresh: bool,
    /// What frames say that say nothing: what one before them said.
    method: DisposalMethod,
    /// What to do before the next frame, and where: the beginning and length of each row, in pixels.
    disposal: (Disposal, Vec<(usize, usize)>),
}

impl Canvas {
    /// The canvas before the first frame: the screen, or more if the frame needs it.
    fn new(screen: (usize, usize), first: &Drawn<'_>, asked: Asked) -> Result<Self, Bad> {
        let frame = first.frame;
        let width = screen.0.max(usize::from(frame.left) + usize::from(frame.width));
        let height = screen.1.max(usize::from(frame.top) + usize::from(frame.height));
        asked.check((width, height), 1)?;
        let pixels = first.color(frame.transparent.map_or(0, usize::from)).repeat(width * height);
        let disposal = (Disposal::Keep, Vec::new());
        Ok(Self { size: (width, height), pixels, fresh: true, method: DisposalMethod::Keep, disposal })
    }

    /// Clears what the frame before leaves, and draws this one.
    fn draw(&mut self, drawn: &Drawn<'_>) {
        self.dispose();
        if drawn.frame.dispose != DisposalMethod::Any {
            self.method = drawn.frame.dispose;
        }
        let places: Vec<(usize, usize)> = drawn.rows(self.size).map(|(at, row)| (at, row.len())).collect();
        let disposal = match self.method {
            DisposalMethod::Background => Disposal::Fill(drawn.cleared()),
            // Before the first frame there is nothing but transparency.
            DisposalMethod::Previous if self.fresh && drawn.frame.transparent.is_some() => {
                Disposal::Fill(drawn.cleared())
            }
            DisposalMethod::Previous if !self.fresh => Disposal::Restore(
                places.iter().flat_map(|&(at, length)| &self.pixels[at * 3..(at + length) * 3]).copied().collect(),
            ),
            _ => Disposal::Keep,
        };
        self.disposal = (disposal, places);
        for (at, row) in drawn.rows(self.size) {
            for (pixel, &index) in self.pixels[at * 3..].chunks_exact_mut(3).zip(row) {
                // A first frame shows the colour that stands for transparency.
                if self.fresh || drawn.frame.transparent != Some(index) {
                    pixel.copy_from_slice(&drawn.color(index.into()));
                }
            }
        }
        self.fresh = false;
    }

    fn dispose(&mut self) {
        let (disposal, places) = std::mem::replace(&mut self.disposal, (Disposal::Keep, Vec::new()));
        let mut kept = 0;
        for (at, length) in places {
            let place = &mut self.pixels[at * 3..(at + length) * 3];
            match &disposal {
                Disposal::Keep => {}
                Disposal::Fill(color) => place.as_chunks_mut::<3>().0.fill(*color),
                Disposal::Restore(before) => place.copy_from_slice(&before[kept..kept + place.len()]),
            }
            kept += length * 3;
        }
    }
}
