//! Where the parts of PNG's and WebP's animations become whole frames.

use super::asked::Bad;

/// Bytes of a pixel: red, green, blue, alpha.
pub(super) type Rgba = [u8; 4];

/// Where a part lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Place {
    fn contains(&self, x: usize, y: usize) -> bool {
        (self.left..self.left + self.width).contains(&x) && (self.top..self.top + self.height).contains(&y)
    }

    fn covers(&self, (width, height): (usize, usize)) -> bool {
        self.left == 0 && self.top == 0 && self.width >= width && self.height >= height
    }
}

/// What becomes of a part's place before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposal {
    Keep,
    /// Transparent black.
    Clear,
    /// As before the part.
    Restore,
}

/// What a frame changes.
pub(super) struct Part {
    pub(super) place: Place,
    /// `[height, width, 4]` of the place.
    pub(super) pixels: Vec<u8>,
    /// It is laid over what is there; otherwise it replaces it.
    pub(super) over: bool,
    pub(super) disposal: Disposal,
}

/// How pixels are laid over others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// By PNG's formula, rounded. The first part replaces what is not there yet.
    Png,
    /// In libwebp's arithmetic. A part replaces what was just cleared, whatever it says.
    WebP,
}

impl Rule {
    fn lay(self, over: Rgba, under: Rgba) -> Rgba {
        let (a, b) = (u32::from(over[3]), u32::from(under[3]));
        let mut laid = [0; 4];
        match (self, a, b) {
            (_, 255, _) => return over,
            (_, 0, _) => return under,
            (Self::Png, _, 0) => return over,
            (Self::Png, ..) => {
                // In units of 1 / 255².
                let (top, rest) = (a * 255, b * (255 - a));
                let all = top + rest;
                for (laid, (over, under)) in laid.iter_mut().zip(over.iter().zip(&under)) {
                    *laid = ((u32::from(*over) * top + u32::from(*under) * rest + all / 2) / all) as u8;
                }
                laid[3] = ((all + 127) / 255) as u8;
            }
            (Self::WebP, ..) => {
                let rest = (b * (256 - a)) >> 8;
                let all = a + rest;
                let scale = (1 << 24) / all;
                for (laid, (over, under)) in laid.iter_mut().zip(over.iter().zip(&under)) {
                    *laid = (((u32::from(*over) * a + u32::from(*under) * rest) * scale) >> 24) as u8;
                }
                laid[3] = all as u8;
            }
        }
        laid
    }
}

/// What is shown, at first transparent black.
pub(super) struct Canvas {
    rule: Rule,
    size: (usize, usize),
    /// `[height, width, 4]`.
    pixels: Vec<u8>,
    /// The part drawn last: its place, what becomes of it, and what was there before if that comes back.
    last: Option<(Place, Disposal, Vec<u8>)>,
    /// The last part owes nothing to those before it: outside of it nothing was ever drawn, or it covers all.
    key: bool,
}

impl Canvas {
    pub(super) fn new(size: (usize, usize), rule: Rule) -> Self {
        Self { rule, size, pixels: vec![0; size.0 * size.1 * 4], last: None, key: false }
    }

    /// `[height, width, 4]`.
    pub(super) fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Sees to the part before, and draws this one.
    ///
    /// # Errors
    /// [`Bad::Broken`] for a part that does not lie in the canvas, or whose pixels do not fit it.
    pub(super) fn draw(&mut self, part: &Part) -> Result<(), Bad> {
        let (place, (width, height)) = (part.place, self.size);
        let inside = place.left + place.width <= width && place.top + place.height <= height;
        if !inside || part.pixels.len() != place.width * place.height * 4 {
            return Err(Bad::Broken("a frame does not lie in its picture".to_owned()));
        }
        let cleared = self.dispose();
        let first = self.last.is_none();
        let fresh = first || cleared.is_some_and(|cleared| self.key || cleared.covers(self.size));
        let opaque = part.pixels.as_chunks::<4>().0.iter().all(|pixel| pixel[3] == 255);
        self.key = fresh || (place.covers(self.size) && (!part.over || opaque));
        let mut before = Vec::new();
        for (y, row) in part.pixels.chunks_exact((place.width * 4).max(1)).enumerate() {
            let begin = ((place.top + y) * width + place.left) * 4;
            let target = &mut self.pixels[begin..begin + place.width * 4];
            if part.disposal == Disposal::Restore {
                before.extend_from_slice(target);
            }
            for (x, (under, over)) in target.as_chunks_mut::<4>().0.iter_mut().zip(row.as_chunks::<4>().0).enumerate() {
                let bare = || fresh || cleared.is_some_and(|cleared| cleared.contains(place.left + x, place.top + y));
                let replaces = first || (self.rule == Rule::WebP && bare());
                *under = if part.over && !replaces { self.rule.lay(*over, *under) } else { *over };
            }
        }
        self.last = Some((place, part.disposal, before));
        Ok(())
    }

    /// Clears or restores the place of the last part; where, if it was cleared.
    fn dispose(&mut self) -> Option<Place> {
        let (place, disposal, before) = self.last.as_ref()?;
        for y in 0..place.height {
            let begin = ((place.top + y) * self.size.0 + place.left) * 4;
            let target = &mut self.pixels[begin..begin + place.width * 4];
            match disposal {
                Disposal::Keep => {}
                Disposal::Clear => target.fill(0),
                Disposal::Restore => target.copy_from_slice(&before[y * target.len()..(y + 1) * target.len()]),
            }
        }
        (*disposal == Disposal::Clear).then_some(*place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: Rgba = [200, 0, 0, 255];
    const BLUE: Rgba = [0, 0, 200, 255];
    const HALF: Rgba = [0, 100, 0, 128];
    const NOTHING: Rgba = [0; 4];

    fn part(left: usize, width: usize, color: Rgba, over: bool, disposal: Disposal) -> Part {
        Part { place: Place { left, top: 0, width, height: 1 }, pixels: color.repeat(width), over, disposal }
    }

    fn shown(canvas: &Canvas) -> Vec<Rgba> {
        canvas.pixels().as_chunks::<4>().0.to_vec()
    }

    #[test]
    fn place_is_restored_as_it_was_cleared_before() {
        let mut canvas = Canvas::new((3, 1), Rule::Png);
        canvas.draw(&part(0, 3, RED, false, Disposal::Keep)).unwrap();
        canvas.draw(&part(0, 1, BLUE, false, Disposal::Clear)).unwrap();
        canvas.draw(&part(0, 2, BLUE, false, Disposal::Restore)).unwrap();
        assert_eq!(shown(&canvas), [BLUE, BLUE, RED]);
        canvas.draw(&part(2, 1, BLUE, false, Disposal::Keep)).unwrap();
        assert_eq!(shown(&canvas), [NOTHING, RED, BLUE]);
    }

    #[test]
    fn pixels_are_laid_over_others_by_their_alpha() {
        assert_eq!(Rule::Png.lay(HALF, RED), [100, 50, 0, 255]);
        assert_eq!(Rule::WebP.lay(HALF, RED), [99, 50, 0, 255]);
        for rule in [Rule::Png, Rule::WebP] {
            assert_eq!((rule.lay(RED, BLUE), rule.lay(NOTHING, BLUE)), (RED, BLUE));
        }
        assert_eq!(Rule::Png.lay(HALF, NOTHING), HALF);
    }

    #[test]
    fn part_outside_its_canvas_is_refused() {
        let mut canvas = Canvas::new((3, 1), Rule::WebP);
        for wrong in [part(1, 3, RED, false, Disposal::Keep), part(4, 0, RED, false, Disposal::Keep)] {
            assert!(canvas.draw(&wrong).is_err());
        }
        let mut short = part(0, 2, RED, false, Disposal::Keep);
        short.pixels.pop();
        assert!(canvas.draw(&short).is_err());
    }
}
