//! The weights that an engine stores, held against those of the file.

use v2l_export::precision::Request;
use v2l_graphs::passes::{INT8_SUFFIX, SCALES_SUFFIX};
use v2l_graphs::{DataType, Initializer, Model, TensorData};
use v2l_runtime::engine::Engine;
use v2l_runtime::tensor::Dtype;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    AsGiven,
    /// Matrices in this type.
    As(Dtype),
    /// Matrices in the types of a precision plan by rules.
    Planned(Request),
    /// The matrices of linear layers in 8 bits, so many inputs to a scale.
    InBlocks(usize),
}

impl Stored {
    pub(crate) fn dtype(self) -> Option<Dtype> {
        if let Self::As(dtype) = self { Some(dtype) } else { None }
    }

    pub(crate) fn request(self) -> Option<Request> {
        if let Self::Planned(request) = self { Some(request) } else { None }
    }

    pub(crate) fn block(self) -> Option<usize> {
        if let Self::InBlocks(block) = self { Some(block) } else { None }
    }
}

/// The graph over the numbers that the engine's weights stand for.
///
/// The engine computes in float32 whatever the type, so that it gives what this graph gives, to the last roundings of
/// sums. Each number may differ from the file's by one rounding to its type: half a step of 2^-11 (float16), 2^-8
/// (bfloat16) of itself, or half of a block's scale, the block's largest magnitude over 127 (8 bits).
///
/// # Errors
/// A number that differs by more, or a weight in a type that was not asked for.
pub(crate) fn over_stored(model: &Model, engine: &Engine, stored: Stored) -> Result<Model, String> {
    let mut model = model.clone();
    for (name, value) in &mut model.graph.initializers {
        let &[rows, cols] = &value.shape[..] else { continue };
        let given = numbers(value.data.clone(), value.dtype);
        let Some(found) = weight(engine, name) else { continue };
        let as_asked = match stored {
            Stored::AsGiven => found.dtype == value.dtype,
            Stored::As(dtype) => found.dtype == graph_type(dtype),
            Stored::Planned(_) => found.dtype.size() <= DataType::Float.size(),
            // Matrices whose inputs make no block keep their type.
            Stored::InBlocks(_) => found.dtype == value.dtype || found.dtype == DataType::Uint8,
        };
        if !as_asked {
            return Err(format!("`{name}` {:?} is stored as {}, asked for {stored:?}", value.shape, found.dtype));
        }
        let values = found.in_file(&given, [rows, cols]).map_err(|e| format!("`{name}`{e}"))?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        *value = Initializer { dtype: DataType::Float, data: TensorData::raw(bytes), ..value.clone() };
    }
    Ok(model)
}

/// A matrix of an engine in float32, as it lies there.
struct Weight {
    /// The type that it is stored in.
    dtype: DataType,
    shape: [usize; 2],
    values: Vec<f32>,
    /// Inputs to a scale, of 8 bits.
    block: usize,
}

impl Weight {
    /// The numbers as they lie in the file, whose own are `given`. A square matrix may be turned in the engine.
    fn in_file(&self, given: &[f32], shape: [usize; 2]) -> Result<Vec<f32>, String> {
        let as_is = (self.shape == shape).then(|| (self.values.clone(), self.allowed(given)));
        let across = [shape[1], shape[0]];
        let turned_round = (self.shape == across).then(|| {
            let allowed = self.allowed(&turned(given, shape));
            (turned(&self.values, across), turned(&allowed, across))
        });
        let mut wrong = format!(" {shape:?} is stored as {:?}", self.shape);
        for (values, allowed) in as_is.into_iter().chain(turned_round) {
            match (0..given.len()).find(|&at| (given[at] - values[at]).abs() > allowed[at]) {
                None => return Ok(values),
                Some(at) => {
                    wrong =
                        format!("[{at}] is stored as {}, expected {} within {}", values[at], given[at], allowed[at]);
                }
            }
        }
        Err(wrong)
    }

    /// How far each number may be from that of `given`, which lies as this does.
    fn allowed(&self, given: &[f32]) -> Vec<f32> {
        match self.dtype {
            DataType::Float16 => given.iter().map(|v| v.abs() / 2048.0 + 2f32.powi(-25)).collect(),
            DataType::Bfloat16 => given.iter().map(|v| v.abs() / 256.0).collect(),
            DataType::Uint8 => {
                let half_step = |block: &[f32]| {
                    let largest = block.iter().fold(0f32, |most, v| most.max(v.abs()));
                    // The quotient and the product are rounded, too.
                    vec![largest / 127.0 * 0.500_1; block.len()]
                };
                given.chunks(self.shape[1]).flat_map(|row| row.chunks(self.block)).flat_map(half_step).collect()
            }
            _ => vec![0.0; given.len()],
        }
    }
}

/// A matrix of the engine under the name that the file has for it; `None` if the engine has no such weight.
fn weight(engine: &Engine, name: &str) -> Option<Weight> {
    if let Ok(view) = engine.weight(&format!("{name}{INT8_SUFFIX}")) {
        let &[out, blocks, block] = view.shape else { return None };
        let scales = engine.weight(&format!("{name}{SCALES_SUFFIX}")).ok()?;
        let scales = numbers(TensorData::raw(scales.data), DataType::Float);
        let values = view.data.chunks(block).zip(scales).flat_map(|(bytes, scale)| {
            bytes.iter().map(move |&byte| (f32::from(byte) - 128.0) * scale).collect::<Vec<f32>>()
        });
        return Some(Weight { dtype: DataType::Uint8, shape: [out, blocks * block], values: values.collect(), block });
    }
    let view = engine.weight(name).ok()?;
    let &[rows, cols] = view.shape else { return None };
    let dtype = graph_type(view.dtype);
    let values = numbers(TensorData::raw(view.data), dtype);
    Some(Weight { dtype, shape: [rows, cols], values, block: 0 })
}

/// The type of a weight, as a graph calls it.
fn graph_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F16 => DataType::Float16,
        Dtype::Bf16 => DataType::Bfloat16,
        _ => DataType::Float,
    }
}

fn numbers(data: TensorData, dtype: DataType) -> Vec<f32> {
    let bytes = data.converted(dtype, DataType::Float).to_bytes().expect("16 bits fit into 32");
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The transpose of a matrix `[rows, cols]`.
fn turned(values: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}
