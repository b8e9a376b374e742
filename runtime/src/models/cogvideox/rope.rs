//! Rotary position tables of CogVideoX transformers, as their pipelines compute them.
//!
//! Sources: diffusers `pipelines/cogvideo/pipeline_cogvideox*.py` and `models/embeddings.py` (0.42), CogVideoX-Fun's
//! inpaint pipeline. Of a head's channels the first quarter turns with the frame, three eighths with the row and three
//! eighths with the column; each frequency fills two neighbouring channels.

use ndarray::Array2;

use crate::error::{Classified, ErrorClass};

/// Where the rows and columns of a CogVideoX 1.0 model lie within the region cut from its base grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotaryGrid {
    /// `start + i · (stop - start) / n`: CogVideoX-Fun and Video2LoRA (`numpy.linspace(…, endpoint=False)`).
    Fun,
    /// n points evenly over `[start, stop · (n - 1) / n]`: diffusers ≥ 0.32. Equal to `Fun` where `start` is 0.
    Diffusers,
}

/// What of a transformer's configuration shapes the tables; sizes are in latent pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotaryConfig {
    /// Channels per head, a multiple of 8.
    pub attention_head_dim: usize,
    /// Patch side in latent pixels.
    pub patch_size: usize,
    /// Patch length in latent frames; `None` for CogVideoX 1.0.
    pub patch_size_t: Option<usize>,
    /// Latent width of the training resolution.
    pub sample_width: usize,
    /// Latent height of the training resolution.
    pub sample_height: usize,
    /// Placement of the grid; irrelevant with `patch_size_t`.
    pub grid: RotaryGrid,
}

/// `cos` and `sin`, each `[frames · rows · columns, attention_head_dim]`, frames outermost.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTables {
    /// Cosines.
    pub cos: Array2<f32>,
    /// Sines.
    pub sin: Array2<f32>,
}

/// Why no table can be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotaryError {
    /// A value of the configuration is impossible.
    #[error("transformer configuration: `{key}` is {found}, expected {expected}")]
    Config {
        /// The key.
        key: &'static str,
        /// Its value.
        found: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// The latent is empty or too large.
    #[error("a latent of {frames} frames of {height}x{width} gives no token grid of 1 to {MAX_TOKENS} tokens")]
    Grid {
        /// Latent frames.
        frames: usize,
        /// Latent height.
        height: usize,
        /// Latent width.
        width: usize,
    },
    /// A 1.5 model was asked for a grid beyond its base grid.
    #[error("the token grid is {rows}x{columns}, the model's largest {max_rows}x{max_columns}; choose a smaller size")]
    BeyondBase {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        columns: usize,
        /// Rows of the base grid.
        max_rows: usize,
        /// Columns of the base grid.
        max_columns: usize,
    },
}

impl Classified for RotaryError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Usage
    }
}

const MAX_TOKENS: usize = 1 << 24;
const THETA: f64 = 10_000.0;

/// Tables for a latent of `frames` × `height` × `width` (latent pixels, `patch_size_t` padding included).
///
/// # Errors
/// [`RotaryError`] for an impossible configuration, an empty or huge grid, or, with `patch_size_t`, a grid beyond the
/// base grid.
pub fn rotary_tables(
    config: &RotaryConfig,
    frames: usize,
    height: usize,
    width: usize,
) -> Result<RotaryTables, RotaryError> {
    let head = config.attention_head_dim;
    if head == 0 || !head.is_multiple_of(8) || head > 4096 {
        return Err(RotaryError::Config { key: "attention_head_dim", found: head, expected: "a multiple of 8" });
    }
    for (key, found) in [
        ("patch_size", config.patch_size),
        ("patch_size_t", config.patch_size_t.unwrap_or(1)),
        ("sample_width", config.sample_width),
        ("sample_height", config.sample_height),
    ] {
        if found == 0 || found > MAX_TOKENS {
            return Err(RotaryError::Config { key, found, expected: "a positive number" });
        }
    }
    let (rows, columns) = (height / config.patch_size, width / config.patch_size);
    let base = (config.sample_height / config.patch_size, config.sample_width / config.patch_size);
    let times = frames.div_ceil(config.patch_size_t.unwrap_or(1));
    let tokens = times.checked_mul(rows).and_then(|n| n.checked_mul(columns));
    if !tokens.is_some_and(|n| (1..=MAX_TOKENS).contains(&n)) || base.0 == 0 || base.1 == 0 {
        return Err(RotaryError::Grid { frames, height, width });
    }
    let (row_positions, column_positions) = if config.patch_size_t.is_some() {
        if rows > base.0 || columns > base.1 {
            return Err(RotaryError::BeyondBase { rows, columns, max_rows: base.0, max_columns: base.1 });
        }
        (integers(rows), integers(columns))
    } else {
        let ((top, left), (bottom, right)) = crop_region((rows, columns), base);
        (positions(config.grid, top, bottom, rows), positions(config.grid, left, right, columns))
    };
    let axes = [
        Axis::new(&integers(times), head / 4),
        Axis::new(&row_positions, head / 8 * 3),
        Axis::new(&column_positions, head / 8 * 3),
    ];
    let table = |part: fn(&Axis) -> &Array2<f32>| {
        let mut data = Vec::with_capacity(times * rows * columns * head);
        for t in 0..times {
            for y in 0..rows {
                for x in 0..columns {
                    for (axis, position) in axes.iter().zip([t, y, x]) {
                        data.extend(part(axis).row(position));
                    }
                }
            }
        }
        Array2::from_shape_vec((times * rows * columns, head), data).map_err(|_| RotaryError::Grid {
            frames,
            height,
            width,
        })
    };
    Ok(RotaryTables { cos: table(|a| &a.cos)?, sin: table(|a| &a.sin)? })
}

/// cos and sin `[positions, channels]` of one axis.
struct Axis {
    cos: Array2<f32>,
    sin: Array2<f32>,
}

impl Axis {
    fn new(positions: &[f32], channels: usize) -> Self {
        let frequency = |channel: usize| {
            let exponent = (channel / 2 * 2) as f32 / channels as f32;
            1.0 / THETA.powf(f64::from(exponent)) as f32
        };
        // The angle is an f32 product, as in PyTorch; its cosine is exact before rounding.
        let angle = |(p, c): (usize, usize)| f64::from(positions[p] * frequency(c));
        let shape = (positions.len(), channels);
        Self {
            cos: Array2::from_shape_fn(shape, |i| angle(i).cos() as f32),
            sin: Array2::from_shape_fn(shape, |i| angle(i).sin() as f32),
        }
    }
}

fn integers(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

fn positions(grid: RotaryGrid, start: i64, stop: i64, n: usize) -> Vec<f32> {
    let (start, stop, count) = (start as f64, stop as f64, n as f64);
    match grid {
        RotaryGrid::Fun => {
            let step = (stop - start) / count;
            (0..n).map(|i| (i as f64 * step + start) as f32).collect()
        }
        // torch.linspace in f32: counted from the nearer end, with fused multiply-add.
        RotaryGrid::Diffusers => {
            let (first, last) = (start as f32, (stop * (count - 1.0) / count) as f32);
            if n == 1 {
                return vec![first];
            }
            let step = (last - first) / (n - 1) as f32;
            (0..n)
                .map(
                    |i| {
                        if i < n / 2 {
                            step.mul_add(i as f32, first)
                        } else {
                            (-step).mul_add((n - 1 - i) as f32, last)
                        }
                    },
                )
                .collect()
        }
    }
}

/// The part of the base grid that `grid` is stretched over: ((top, left), (bottom, right)). Sizes are (rows, columns).
fn crop_region(grid: (usize, usize), base: (usize, usize)) -> ((i64, i64), (i64, i64)) {
    let (rows, columns) = (grid.0 as f64, grid.1 as f64);
    let (base_rows, base_columns) = (base.0 as f64, base.1 as f64);
    let (height, width) = if rows / columns > base_rows / base_columns {
        (base_rows, (base_rows / rows * columns).round_ties_even())
    } else {
        ((base_columns / columns * rows).round_ties_even(), base_columns)
    };
    let top = ((base_rows - height) / 2.0).round_ties_even() as i64;
    let left = ((base_columns - width) / 2.0).round_ties_even() as i64;
    ((top, left), (top + height as i64, left + width as i64))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    const BASE_5B: RotaryConfig = RotaryConfig {
        attention_head_dim: 64,
        patch_size: 2,
        patch_size_t: None,
        sample_width: 90,
        sample_height: 60,
        grid: RotaryGrid::Fun,
    };

    fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
        file.tensor(name).unwrap().data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn integer(file: &SafeTensors<'_>, name: &str) -> Vec<usize> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }

    /// Largest difference between the golden rows called `prefix…` and ours.
    fn difference(path: &Path, grid: RotaryGrid, prefix: &str) -> Option<f32> {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let value = |key: &str| metadata[key].parse::<usize>();
        let config = RotaryConfig {
            attention_head_dim: value("attention_head_dim").unwrap(),
            patch_size: value("patch_size").unwrap(),
            patch_size_t: value("patch_size_t").ok(),
            sample_width: value("sample_width").unwrap(),
            sample_height: value("sample_height").unwrap(),
            grid,
        };
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let cos_name = format!("output.{prefix}image_rotary_emb_cos");
        file.tensor(&cos_name).ok()?;
        let size = |name: &str| integer(&file, name)[0];
        let (frames, height, width) = (size("input.num_frames"), size("input.height") / 8, size("input.width") / 8);
        let tables = rotary_tables(&config, frames, height, width).unwrap();
        assert_eq!(tables.cos.nrows(), value("tokens").unwrap());
        let mut largest = 0.0f32;
        for (table, name) in [(&tables.cos, cos_name.clone()), (&tables.sin, cos_name.replace("_cos", "_sin"))] {
            let golden = floats(&file, &name);
            for (row, golden) in integer(&file, "input.rows").into_iter().zip(golden.chunks_exact(table.ncols())) {
                for (found, expected) in table.row(row).iter().zip(golden) {
                    largest = largest.max((found - expected).abs());
                }
            }
        }
        Some(largest)
    }

    #[test]
    fn tables_agree_with_every_golden_file() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/rope");
        let mut compared = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            for (grid, prefix) in [(RotaryGrid::Diffusers, ""), (RotaryGrid::Fun, "fun_")] {
                if let Some(difference) = difference(&path, grid, prefix) {
                    assert!(difference <= 1e-6, "{}: {grid:?} {difference:e}", path.display());
                    compared += 1;
                }
            }
        }
        assert!(compared >= 12);
    }

    #[test]
    fn crop_region_rounds_halves_to_even() {
        assert_eq!(crop_region((30, 45), (30, 45)), ((0, 0), (30, 45)));
        assert_eq!(crop_region((24, 42), (30, 45)), ((2, 0), (28, 45)));
        assert_eq!(crop_region((45, 80), (30, 45)), ((2, 0), (27, 45)));
        assert_eq!(crop_region((32, 32), (30, 45)), ((0, 8), (30, 38)));
        assert_eq!(crop_region((45, 30), (30, 45)), ((0, 12), (30, 32)));
    }

    #[test]
    fn impossible_grids_are_refused() {
        assert!(matches!(rotary_tables(&BASE_5B, 0, 60, 90), Err(RotaryError::Grid { .. })));
        assert!(matches!(rotary_tables(&BASE_5B, usize::MAX, 60, 90), Err(RotaryError::Grid { .. })));
        let odd = RotaryConfig { attention_head_dim: 20, ..BASE_5B };
        assert!(matches!(rotary_tables(&odd, 1, 60, 90), Err(RotaryError::Config { .. })));
        let v15 = RotaryConfig { patch_size_t: Some(2), ..BASE_5B };
        assert!(matches!(rotary_tables(&v15, 2, 62, 90), Err(RotaryError::BeyondBase { .. })));
    }
}
