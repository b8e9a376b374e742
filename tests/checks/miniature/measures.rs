//! Which effect a clip shows, read from analytic measures by a linear classifier.
//!
//! The formulas are those that `tests/reference/miniature/measures.py` writes out; `classifier.json` holds every number
//! that was fitted (on rendered clips, by that script).

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use v2l_runtime::media::video::Frames;

const EPSILON: f64 = 1e-6;
/// Measures per frame: x, y, area, spread x, spread y, red, green, blue, ring, edges.
const CURVES: usize = 10;
/// Each curve at its end and on average, ends first.
pub(crate) const FEATURES: usize = 2 * CURVES;

type Rgb = [f64; 3];

/// One frame as values in [0, 1].
struct Picture<'a> {
    bytes: &'a [u8],
    width: usize,
    height: usize,
}

impl Picture<'_> {
    fn at(&self, x: usize, y: usize) -> Rgb {
        let start = (y * self.width + x) * 3;
        [0, 1, 2].map(|c| f64::from(self.bytes[start + c]) / 255.0)
    }

    /// (x, y, u, v) of every pixel, u and v in [0, 1].
    fn pixels(&self) -> impl Iterator<Item = (usize, usize, f64, f64)> + '_ {
        let (width, height) = (self.width, self.height);
        (0..height).flat_map(move |y| {
            let v = (y as f64 + 0.5) / height as f64;
            (0..width).map(move |x| (x, y, (x as f64 + 0.5) / width as f64, v))
        })
    }

    /// Pixels less than an eighth of the height from the edge.
    fn in_ring(&self, x: usize, y: usize) -> bool {
        let edge = self.height / 8;
        x < edge || y < edge || x >= self.width - edge || y >= self.height - edge
    }

    /// Median over the ring, per channel.
    fn border(&self) -> Rgb {
        [0, 1, 2].map(|c| {
            let ring = self.pixels().filter(|&(x, y, ..)| self.in_ring(x, y));
            let mut values: Vec<f64> = ring.map(|(x, y, ..)| self.at(x, y)[c]).collect();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            (values[middle] + values[(values.len() - 1) / 2]) / 2.0
        })
    }

    /// Per channel, the plane a0 + a1 u + a2 v that fits the ring best.
    fn plane(&self) -> [[f64; 3]; 3] {
        let (mut normal, mut sides) = ([[0.0; 3]; 3], [[0.0; 3]; 3]);
        for (x, y, u, v) in self.pixels().filter(|&(x, y, ..)| self.in_ring(x, y)) {
            let (basis, colour) = ([1.0, u, v], self.at(x, y));
            for i in 0..3 {
                for j in 0..3 {
                    normal[i][j] += basis[i] * basis[j];
                    sides[i][j] += basis[j] * colour[i];
                }
            }
        }
        sides.map(|side| solve(normal, side))
    }

    /// Mean absolute difference between neighbours, both directions.
    fn edges(&self) -> f64 {
        let (mut across, mut down) = (0.0, 0.0);
        let differ = |a: Rgb, b: Rgb| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>();
        for (x, y, ..) in self.pixels() {
            let here = self.at(x, y);
            if x + 1 < self.width {
                across += differ(self.at(x + 1, y), here);
            }
            if y + 1 < self.height {
                down += differ(self.at(x, y + 1), here);
            }
        }
        let (width, height) = (self.width as f64, self.height as f64);
        across / ((width - 1.0) * height * 3.0) + down / (width * (height - 1.0) * 3.0) + 0.002
    }
}

/// `matrix · x = side`, by Cramer's rule.
fn solve(matrix: [[f64; 3]; 3], side: Rgb) -> Rgb {
    let determinant = |m: [[f64; 3]; 3]| {
        let minor = |a: usize, b: usize| m[1][a] * m[2][b] - m[1][b] * m[2][a];
        m[0][0] * minor(1, 2) - m[0][1] * minor(0, 2) + m[0][2] * minor(0, 1)
    };
    let whole = determinant(matrix);
    [0, 1, 2].map(|column| {
        let mut replaced = matrix;
        for row in 0..3 {
            replaced[row][column] = side[row];
        }
        determinant(replaced) / whole
    })
}

/// A pixel, and how much of it is the object.
struct Point {
    weight: f64,
    u: f64,
    v: f64,
    colour: Rgb,
}

/// Where the object is in one frame, and how it looks.
struct Seen {
    total: f64,
    area: f64,
    x: f64,
    y: f64,
    spread_x: f64,
    spread_y: f64,
    coloured: Rgb,
    ring: f64,
    edges: f64,
}

impl Seen {
    fn new(picture: &Picture<'_>, plane: &[[f64; 3]; 3], first_border: Rgb) -> Self {
        let border = picture.border();
        let gain = [0, 1, 2].map(|c| border[c] / first_border[c].max(0.02));
        let points: Vec<Point> = picture
            .pixels()
            .map(|(x, y, u, v)| {
                let colour = picture.at(x, y);
                let ground = |c: usize| gain[c] * (plane[c][0] + plane[c][1] * u + plane[c][2] * v);
                let distance = (0..3).map(|c| (colour[c] - ground(c)).powi(2)).sum::<f64>().sqrt();
                Point { weight: ((distance - 0.14) / 0.16).clamp(0.0, 1.0), u, v, colour }
            })
            .collect();
        let sum = |value: &dyn Fn(&Point) -> f64| points.iter().map(|p| p.weight * value(p)).sum::<f64>();
        let total = sum(&|_| 1.0);
        let mean = |value: &dyn Fn(&Point) -> f64| sum(value) / (total + EPSILON);
        let (x, y) = (mean(&|p| p.u), mean(&|p| p.v));
        Self {
            total,
            area: total / (picture.width * picture.height) as f64,
            x,
            y,
            spread_x: mean(&|p| (p.u - x).powi(2)).sqrt() + 0.01,
            spread_y: mean(&|p| (p.v - y).powi(2)).sqrt() + 0.01,
            coloured: [0, 1, 2].map(|c| sum(&|p| p.colour[c])),
            ring: border.iter().sum::<f64>() / 3.0,
            edges: picture.edges(),
        }
    }

    /// Mean colour, drawn towards the first frame's where little is left of the object.
    fn colour(&self, first: &Self) -> Rgb {
        let weight = 0.1 * first.total;
        [0, 1, 2].map(|c| {
            let start = first.coloured[c] / (first.total + EPSILON);
            (self.coloured[c] + weight * start) / (self.total + weight + EPSILON)
        })
    }

    /// Every measure relative to the first frame.
    fn relative_to(&self, first: &Self) -> [f64; CURVES] {
        let gone = self.area < 0.1 * first.area;
        let place = if gone { first } else { self };
        let (colour, start) = (self.colour(first), first.colour(first));
        [
            place.x - first.x,
            place.y - first.y,
            ((self.area + 0.05 * first.area + EPSILON) / (1.05 * first.area + EPSILON)).ln(),
            (place.spread_x / first.spread_x).ln(),
            (place.spread_y / first.spread_y).ln(),
            colour[0] - start[0],
            colour[1] - start[1],
            colour[2] - start[2],
            self.ring - first.ring,
            (self.edges / first.edges).ln(),
        ]
    }
}

/// The measures of a clip of at least two frames, 16 pixels or more each side.
pub(crate) fn features(clip: &Frames) -> [f64; FEATURES] {
    let pictures: Vec<Picture<'_>> =
        clip.iter().map(|bytes| Picture { bytes, width: clip.width(), height: clip.height() }).collect();
    let (plane, border) = (pictures[0].plane(), pictures[0].border());
    let seen: Vec<Seen> = pictures.iter().map(|p| Seen::new(p, &plane, border)).collect();
    let curves: Vec<[f64; CURVES]> = seen.iter().map(|s| s.relative_to(&seen[0])).collect();
    let mean = |rows: &[[f64; CURVES]], i: usize| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64;
    let end = &curves[curves.len() - (curves.len() / 4).max(1)..];
    std::array::from_fn(|i| if i < CURVES { mean(end, i) } else { mean(&curves[1..], i - CURVES) })
}

/// A linear classifier of effects.
#[derive(Deserialize)]
pub(crate) struct Classifier {
    classes: Vec<String>,
    mean: Vec<f64>,
    deviation: Vec<f64>,
    weight: Vec<Vec<f64>>,
    bias: Vec<f64>,
    /// The mean of each class, normalised as features are; where sizes of effects are asked for.
    #[serde(default)]
    centres: Vec<Vec<f64>>,
}

impl Classifier {
    /// Reads `classifier.json`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let this: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let fits = this.mean.len() == FEATURES
            && this.deviation.len() == FEATURES
            && this.bias.len() == this.classes.len()
            && this.weight.len() == this.classes.len()
            && this.weight.iter().all(|row| row.len() == FEATURES)
            && (this.centres.is_empty() || this.centres.len() == this.classes.len())
            && this.centres.iter().all(|row| row.len() == FEATURES);
        ensure!(fits, "{}: expected {FEATURES} features and a row for each class", path.display());
        Ok(this)
    }

    /// The name of the effect that `clip` shows.
    pub(crate) fn classify(&self, clip: &Frames) -> &str {
        let z = self.normalised(clip);
        let scores = self.weight.iter().zip(&self.bias).map(|(row, bias)| {
            let sum: f64 = row.iter().zip(&z).map(|(w, z)| w * z).sum();
            sum + bias
        });
        let best = scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(class, _)| class);
        &self.classes[best]
    }

    fn normalised(&self, clip: &Frames) -> Vec<f64> {
        let found = features(clip);
        (0..FEATURES).map(|i| (found[i] - self.mean[i]) / self.deviation[i]).collect()
    }

    /// How far `clip` goes from the mean of the class `still`, 0, towards that of `effect`, 1, along the direction that tells the two apart.
    pub(crate) fn size(&self, clip: &Frames, effect: &str) -> Option<f64> {
        let class = |name: &str| self.classes.iter().position(|class| class == name);
        let (effect, still) = (class(effect)?, class("still")?);
        let (end, start) = (self.centres.get(effect)?, self.centres.get(still)?);
        let along = |point: &[f64]| -> f64 {
            (0..FEATURES).map(|i| (self.weight[effect][i] - self.weight[still][i]) * (point[i] - start[i])).sum()
        };
        Some(along(&self.normalised(clip)) / along(end))
    }
}
