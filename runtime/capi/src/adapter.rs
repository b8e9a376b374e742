//! Adapters: loaded against an engine's slots or predicted, looked at, saved.

use std::ffi::{CStr, CString, c_char};
use std::sync::Arc;

use ndarray::Array2;
use v2l_runtime::lora::adapter::{
    self as files, Adapter, AdapterFormat, Coverage, Experts, LowRank, Outcome, Placed, ReadOptions, Targets, Update,
    write_adapter,
};
use v2l_runtime::predict::Prediction;

pub use crate::applied::{v2l_adapter_report, v2l_weighted_adapter};
use crate::engine::{unknown, v2l_engine};
use crate::failure::{Failure, guard};
use crate::growing::{self, growing};
use crate::handles::{Handle, Kind, free, optional, required};
use crate::log::{V2L_LOG_INFO, V2L_LOG_WARNING, log};
use crate::pointers::{Out, path};
use crate::predictor::v2l_predictor;
use crate::status::{V2L_ERROR_INTERNAL, v2l_status};
use crate::tensor::{V2L_F32, out_of_range, v2l_tensor};
use crate::texts::c_name;

/// How an adapter's file spells its keys.
pub type v2l_adapter_format = i32;
/// PEFT: a folder with adapter_config.json, or a file if the path ends in ".safetensors".
pub const V2L_FORMAT_PEFT: v2l_adapter_format = 1;
/// diffusers.
pub const V2L_FORMAT_DIFFUSERS: v2l_adapter_format = 2;
/// kohya.
pub const V2L_FORMAT_KOHYA: v2l_adapter_format = 3;
/// VideoX-Fun.
pub const V2L_FORMAT_VIDEOX_FUN: v2l_adapter_format = 4;
/// ComfyUI.
pub const V2L_FORMAT_COMFY: v2l_adapter_format = 5;
/// The slots' own names.
pub const V2L_FORMAT_BARE: v2l_adapter_format = 6;
/// A predictor's tokens, a few kilobytes that only this predictor expands. For predicted adapters.
pub const V2L_FORMAT_LIGHT: v2l_adapter_format = 7;
/// Tokens with what expands them. For predicted adapters.
pub const V2L_FORMAT_LIGHT_FULL: v2l_adapter_format = 8;

const FORMATS: [(v2l_adapter_format, AdapterFormat); 8] = [
    (V2L_FORMAT_PEFT, AdapterFormat::Peft),
    (V2L_FORMAT_DIFFUSERS, AdapterFormat::Diffusers),
    (V2L_FORMAT_KOHYA, AdapterFormat::Kohya),
    (V2L_FORMAT_VIDEOX_FUN, AdapterFormat::VideoxFun),
    (V2L_FORMAT_COMFY, AdapterFormat::Comfy),
    (V2L_FORMAT_BARE, AdapterFormat::Bare),
    (V2L_FORMAT_LIGHT, AdapterFormat::Light),
    (V2L_FORMAT_LIGHT_FULL, AdapterFormat::LightFull),
];

/// What became of a key of an adapter's file.
pub type v2l_key_outcome = i32;
/// It changes a slot.
pub const V2L_KEY_APPLIED: v2l_key_outcome = 1;
/// It changes nothing, and need not, or was allowed not to.
pub const V2L_KEY_IGNORED: v2l_key_outcome = 2;

/// Low-rank updates of some slots.
pub struct v2l_adapter(pub(crate) Arc<AdapterObject>);

impl Handle for v2l_adapter {
    const KIND: Kind = Kind::Adapter;
}

/// An adapter, where it came from, and what C sees of it.
pub(crate) struct AdapterObject {
    source: Source,
    layers: Vec<Layer>,
    keys: Vec<Key>,
    coverage: v2l_coverage,
}

/// Where an adapter came from.
pub(crate) enum Source {
    Read(Adapter),
    Predicted(Box<Prediction>),
}

struct Layer {
    slot: CString,
    /// Of `down` and `up`, or of the difference.
    matrices: Vec<Extents>,
}

/// Extents of a matrix of the adapter, and its strides in bytes.
struct Extents([i64; 2], [i64; 2]);

impl Extents {
    fn new(matrix: &Array2<f32>) -> Self {
        let stride = |axis: usize| matrix.strides()[axis] as i64 * size_of::<f32>() as i64;
        Self([matrix.nrows() as i64, matrix.ncols() as i64], [stride(0), stride(1)])
    }

    /// The matrix itself, which these must be the extents of.
    fn tensor(&self, name: &'static CStr, matrix: &Array2<f32>) -> v2l_tensor {
        let (shape, strides) = (self.0.as_ptr(), self.1.as_ptr());
        v2l_tensor { name: name.as_ptr(), data: matrix.as_ptr().cast(), dtype: V2L_F32, rank: 2, shape, strides }
    }
}

struct Key {
    key: CString,
    outcome: v2l_key_outcome,
    detail: CString,
}

impl AdapterObject {
    fn new(source: Source, coverage: v2l_coverage, keys: Vec<Key>) -> Self {
        let layer = |(slot, update): (&String, &Arc<Update>)| {
            let matrices: Vec<Extents> = update.matrices().map(Extents::new).collect();
            Layer { slot: c_name(slot), matrices }
        };
        let mut loaded = Self { source, layers: Vec::new(), keys, coverage };
        loaded.layers = loaded.adapter().layers.iter().map(layer).collect();
        loaded
    }

    /// The adapter.
    pub(crate) fn adapter(&self) -> &Adapter {
        match &self.source {
            Source::Read(adapter) => adapter,
            Source::Predicted(prediction) => &prediction.adapter,
        }
    }

    fn read(adapter: Adapter, coverage: &Coverage) -> Self {
        let key = |key: &files::KeyOutcome| {
            let (outcome, detail) = match &key.outcome {
                Outcome::Applied { slot } => (V2L_KEY_APPLIED, slot),
                Outcome::Ignored { reason } | Outcome::Error { reason } => (V2L_KEY_IGNORED, reason),
            };
            Key { key: c_name(&key.key), outcome, detail: c_name(detail) }
        };
        let (applied, ignored, errors) = coverage.counts();
        let format = FORMATS.into_iter().find(|(_, format)| *format == coverage.format).map_or(0, |(number, _)| number);
        let summary = v2l_coverage {
            size: size_of::<v2l_coverage>(),
            keys: coverage.keys.len() as u64,
            applied: applied as u64,
            ignored: (ignored + errors) as u64,
            slots_covered: coverage.slots_covered as u64,
            slots_total: coverage.slots_total as u64,
            format,
            reserved: 0,
            parameters_covered: coverage.parameters_covered as u64,
        };
        Self::new(Source::Read(adapter), summary, coverage.keys.iter().map(key).collect())
    }

    /// An adapter that was predicted, for a model of `slots_total` slots.
    pub(crate) fn predicted(prediction: Prediction, slots_total: usize) -> Self {
        let coverage = v2l_coverage {
            slots_covered: prediction.adapter.layers.len() as u64,
            slots_total: slots_total as u64,
            format: if prediction.tokens.is_some() { V2L_FORMAT_LIGHT } else { 0 },
            ..growing::Growing::initial()
        };
        Self::new(Source::Predicted(Box::new(prediction)), coverage, Vec::new())
    }
}

/// How an adapter is loaded. All zero: the defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_adapter_options {
    /// sizeof(v2l_adapter_options).
    pub size: usize,
    /// Expands a file of the form V2L_FORMAT_LIGHT; the predictor that made it. NULL: such a file is refused.
    pub predictor: *const v2l_predictor,
    /// For a model with two transformers: the engine of "transformer_2", where `engine` is that of "transformer". The adapter is
    /// then for a pipeline's, and layers of the second are called `transformer_2.<slot>`. NULL: the adapter is for `engine` alone.
    pub second: *const v2l_engine,
    /// Not 0: apply the rest of a file some keys of which match no slot.
    pub allow_partial: i32,
    /// Which of the two the file is for: V2L_EXPERTS_…; 0 without `second`.
    pub experts: v2l_experts,
}

growing!(
    v2l_adapter_options,
    Self {
        size: size_of::<Self>(),
        predictor: std::ptr::null(),
        second: std::ptr::null(),
        allow_partial: 0,
        experts: V2L_EXPERTS_AUTO,
    }
);

/// Which transformers an adapter is for, of a model with two.
pub type v2l_experts = i32;
/// Those that the file's keys or its name say; both if they say nothing.
pub const V2L_EXPERTS_AUTO: v2l_experts = 0;
/// "transformer", which makes the first steps, of high noise.
pub const V2L_EXPERTS_HIGH: v2l_experts = 1;
/// "transformer_2", which makes the last steps, of low noise.
pub const V2L_EXPERTS_LOW: v2l_experts = 2;
/// Both.
pub const V2L_EXPERTS_BOTH: v2l_experts = 3;

fn experts_of(value: v2l_experts) -> Result<Option<Experts>, Failure> {
    Ok(match value {
        V2L_EXPERTS_AUTO => None,
        V2L_EXPERTS_HIGH => Some(Experts::High),
        V2L_EXPERTS_LOW => Some(Experts::Low),
        V2L_EXPERTS_BOTH => Some(Experts::Both),
        other => return Err(unknown("experts", other, "V2L_EXPERTS_…")),
    })
}

/// Fills in the defaults; `size` is sizeof(v2l_adapter_options).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_options_init(options: *mut v2l_adapter_options, size: usize) -> v2l_status {
    // SAFETY: the header's promise.
    guard(|| unsafe { growing::init(options, size) })
}

/// Loads an adapter for the slots of `engine`: a safetensors file in any V2L_FORMAT_…, or PEFT's folder. Every key is applied, ignored
/// for a reason, or refused (V2L_ERROR_BAD_ADAPTER, unless `allow_partial`). `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_new(
    engine: *const v2l_engine,
    file: *const c_char,
    options: *const v2l_adapter_options,
    adapter: *mut *mut v2l_adapter,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        let (out, engine, file, options) = unsafe {
            (
                Out::handle(adapter, "adapter")?,
                required(engine, "engine")?,
                path(file, "file")?,
                growing::read(options)?,
            )
        };
        // SAFETY: as above, for both.
        let (predictor, second) =
            unsafe { (optional(options.predictor, "predictor")?, optional(options.second, "second")?) };
        let experts = experts_of(options.experts)?;
        if second.is_none() && experts.is_some() {
            let message = "`experts` is set without `second`; a model with one transformer has no experts";
            return Err(Failure::argument(message.to_owned()));
        }
        let first = &*engine.0.engine;
        let targets = Targets::of(first, second.map(|second| &*second.0.engine));
        let loaded = match predictor {
            Some(predictor) if files::detect(file)? == AdapterFormat::Light => {
                let slots = targets.slots();
                AdapterObject::predicted(predictor.state.lock()?.expand(&files::read_light(file)?, slots)?, slots.len())
            }
            _ => {
                let options = ReadOptions { allow_partial: options.allow_partial != 0, experts };
                let loaded = files::read_adapter(file, targets, &options)?;
                tell(&loaded.coverage);
                AdapterObject::read(loaded.adapter, &loaded.coverage)
            }
        };
        out.give(v2l_adapter(Arc::new(loaded)));
        Ok(())
    })
}

fn tell(coverage: &Coverage) {
    let (applied, ignored, _) = coverage.counts();
    let file = coverage.file.display();
    log(V2L_LOG_INFO, &format!("{file}: {applied} keys applied, {ignored} ignored"));
    let example = coverage.keys.iter().find_map(|key| match &key.outcome {
        Outcome::Ignored { reason } => Some(format!("{}: {reason}", key.key)),
        _ => None,
    });
    if let Some(example) = example {
        log(V2L_LOG_WARNING, &format!("{file}: {ignored} keys change nothing, for example {example}"));
    }
    for note in &coverage.notes {
        log(V2L_LOG_WARNING, &format!("{file}: {note}"));
    }
    if let Some(Placed { experts, reason }) = &coverage.placed {
        log(V2L_LOG_INFO, &format!("{file}: for {}: {reason}", experts.describe()));
    }
}

/// Frees the handle; sessions and pipelines keep what they apply. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_free(adapter: *mut v2l_adapter) {
    // SAFETY: the header's promise.
    unsafe { free(adapter) }
}

/// What became of an adapter's file.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_coverage {
    /// sizeof(v2l_coverage); set it before the call.
    pub size: usize,
    /// Keys of the file; 0 for an adapter that was predicted.
    pub keys: u64,
    /// Keys that change a slot.
    pub applied: u64,
    /// Keys that change nothing.
    pub ignored: u64,
    /// Slots that the adapter changes.
    pub slots_covered: u64,
    /// Slots of the engine.
    pub slots_total: u64,
    /// How the file spells its keys: V2L_FORMAT_…; V2L_FORMAT_LIGHT for an adapter that was predicted as tokens, 0 for other predictions.
    pub format: v2l_adapter_format,
    /// 0.
    pub reserved: i32,
    /// Parameters besides slots that the adapter changes: biases, norms, tables, convolutions.
    pub parameters_covered: u64,
}

growing!(
    v2l_coverage,
    Self {
        size: size_of::<Self>(),
        keys: 0,
        applied: 0,
        ignored: 0,
        slots_covered: 0,
        slots_total: 0,
        format: 0,
        reserved: 0,
        parameters_covered: 0,
    }
);

/// What became of the adapter's file; `coverage->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_coverage(adapter: *const v2l_adapter, coverage: *mut v2l_coverage) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        unsafe { growing::write(coverage, required(adapter, "adapter")?.0.coverage) }
    })
}

/// A key of an adapter's file; lives as long as the adapter.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_adapter_key {
    /// sizeof(v2l_adapter_key); set it before the call.
    pub size: usize,
    /// The key.
    pub key: *const c_char,
    /// The slot that it changes, or why it changes none.
    pub detail: *const c_char,
    /// V2L_KEY_…
    pub outcome: v2l_key_outcome,
    /// 0.
    pub reserved: i32,
}

growing!(
    v2l_adapter_key,
    Self { size: size_of::<Self>(), key: std::ptr::null(), detail: std::ptr::null(), outcome: 0, reserved: 0 }
);

/// The key at `index`, from 0, in the file's order; `key->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_key_at(
    adapter: *const v2l_adapter,
    index: usize,
    key: *mut v2l_adapter_key,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise.
        let keys = &unsafe { required(adapter, "adapter") }?.0.keys;
        let found = keys.get(index).ok_or_else(|| out_of_range("key", index, keys.len()))?;
        let found = v2l_adapter_key {
            size: size_of::<v2l_adapter_key>(),
            key: found.key.as_ptr(),
            detail: found.detail.as_ptr(),
            outcome: found.outcome,
            reserved: 0,
        };
        // SAFETY: as above.
        unsafe { growing::write(key, found) }
    })
}

/// One slot's update: ΔW = strength · (alpha / rank) · up · down; lives as long as the adapter. Of a full difference `down.data` is NULL
/// and ΔW = strength · up.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_adapter_layer {
    /// sizeof(v2l_adapter_layer); set it before the call.
    pub size: usize,
    /// The slot.
    pub slot: *const c_char,
    /// f32 [rank, in].
    pub down: v2l_tensor,
    /// f32 [out, rank].
    pub up: v2l_tensor,
    /// Numerator of the scale.
    pub alpha: f32,
    /// 0.
    pub reserved: i32,
}

const NO_TENSOR: v2l_tensor = v2l_tensor {
    name: std::ptr::null(),
    data: std::ptr::null(),
    dtype: 0,
    rank: 0,
    shape: std::ptr::null(),
    strides: std::ptr::null(),
};

growing!(
    v2l_adapter_layer,
    Self { size: size_of::<Self>(), slot: std::ptr::null(), down: NO_TENSOR, up: NO_TENSOR, alpha: 0.0, reserved: 0 }
);

/// The number of slots that the adapter changes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_layer_count(adapter: *const v2l_adapter, count: *mut usize) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (adapter, out) = unsafe { (required(adapter, "adapter")?, Out::new(count, "count")?) };
        out.set(adapter.0.layers.len());
        Ok(())
    })
}

/// The update at `index`, from 0; `layer->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_layer_at(
    adapter: *const v2l_adapter,
    index: usize,
    layer: *mut v2l_adapter_layer,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise.
        let loaded = &unsafe { required(adapter, "adapter") }?.0;
        let found = loaded.layers.get(index).zip(loaded.adapter().layers.get_index(index));
        let (found, (_, update)) = found.ok_or_else(|| out_of_range("layer", index, loaded.layers.len()))?;
        let (down, up, alpha) = match (&**update, &found.matrices[..]) {
            (Update::LowRank(LowRank { down, up, alpha }), [of_down, of_up]) => {
                (of_down.tensor(c"down", down), of_up.tensor(c"up", up), *alpha)
            }
            (Update::Full(difference), [extents]) => (NO_TENSOR, extents.tensor(c"up", difference), 1.0),
            _ => return Err(Failure::new(V2L_ERROR_INTERNAL, "a layer has other matrices than its update")),
        };
        let size = size_of::<v2l_adapter_layer>();
        let found = v2l_adapter_layer { size, slot: found.slot.as_ptr(), down, up, alpha, reserved: 0 };
        // SAFETY: as above.
        unsafe { growing::write(layer, found) }
    })
}

/// Writes the adapter to `file` as V2L_FORMAT_…, whole or not at all; what is there is replaced. The two light forms are for adapters
/// that were predicted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_adapter_save(
    adapter: *const v2l_adapter,
    file: *const c_char,
    format: v2l_adapter_format,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (loaded, file) = unsafe { (&required(adapter, "adapter")?.0, path(file, "file")?) };
        let known = FORMATS.into_iter().find(|(number, _)| *number == format);
        let (_, format) = known.ok_or_else(|| unknown("format", format, "V2L_FORMAT_…"))?;
        match &loaded.source {
            Source::Predicted(prediction) => prediction.save(file, format)?,
            Source::Read(_) if matches!(format, AdapterFormat::Light | AdapterFormat::LightFull) => {
                return Err(Failure::argument(
                    "the adapter was not predicted and has no tokens; expected one of the other formats",
                ));
            }
            Source::Read(adapter) => write_adapter(file, adapter, format)?,
        }
        Ok(())
    })
}
