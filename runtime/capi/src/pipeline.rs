//! An engine directory: from a prompt, an image and adapters to a video.

use std::ffi::{CString, c_char};
use std::sync::{Arc, OnceLock};

use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::generator::{Generator, Options};
use v2l_runtime::lora::AdapterSet;

use crate::adapter::{v2l_adapter_report, v2l_weighted_adapter};
use crate::applied::{Applied, branch_report, fuse_report, replace};
use crate::callbacks::{Control, v2l_control};
use crate::engine::{Opening, Shared, v2l_engine, v2l_open_options};
use crate::failure::{Failure, guard};
use crate::handles::{Handle, Kind, free, required};
use crate::log::{V2L_LOG_INFO, V2L_LOG_WARNING, log};
use crate::pointers::{Out, path, text};
use crate::serial::Serial;
use crate::status::{V2L_ERROR_CANCELLED, v2l_status};
use crate::texts::c_json;

/// The engines of a directory, and everything between them.
pub struct v2l_pipeline(pub(crate) Arc<PipelineObject>);

/// What a pipeline and its jobs hold together.
pub(crate) struct PipelineObject {
    pub(crate) state: Serial<State>,
    pub(crate) options: Options,
    schema: OnceLock<CString>,
}

impl Handle for v2l_pipeline {
    const KIND: Kind = Kind::Pipeline;
}

pub(crate) struct State {
    pub(crate) generator: Generator,
    pub(crate) applied: Applied,
}

impl State {
    /// Replaces the adapters; on an error all is as before.
    pub(crate) fn apply(&mut self, applied: Applied, control: &Control) -> Result<v2l_adapter_report, Failure> {
        if control.is_cancelled() {
            return Err(Failure::new(V2L_ERROR_CANCELLED, "cancelled"));
        }
        let cancelled = || control.is_cancelled();
        let set = applied.shared().into_iter().collect();
        let done = self.generator.set_adapters(&set, Some(&cancelled))?;
        self.applied = applied;
        if done.fell_back {
            log(V2L_LOG_INFO, &format!("adapters are applied in low-rank branches: {}", done.reason));
        }
        if let Some(warning) = &done.warning {
            log(V2L_LOG_WARNING, warning);
        }
        Ok(match &done.fused {
            Some(fused) => fuse_report(fused),
            None => branch_report(done.slots),
        })
    }
}

/// Opens an engine directory. Reads its pipeline.json and tokenizer; engines are opened when they are needed. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_new(
    directory: *const c_char,
    options: *const v2l_open_options,
    pipeline: *mut *mut v2l_pipeline,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, folder, opening) =
            unsafe { (Out::handle(pipeline, "pipeline")?, path(directory, "directory")?, Opening::new(options)?) };
        let mut generator = Generator::open(folder, &opening.options)?;
        if opening.verify_hashes {
            generator.verify_hashes(None)?;
        }
        if generator.directory().has(TRANSFORMER) {
            // What the engine was not compiled for is refused now.
            generator.set_adapters(&AdapterSet::default(), None)?;
        }
        let state = Serial::new(State { generator, applied: Applied::default() });
        let object = PipelineObject { state, options: opening.options, schema: OnceLock::new() };
        out.give(v2l_pipeline(Arc::new(object)));
        Ok(())
    })
}

/// Frees the pipeline. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_free(pipeline: *mut v2l_pipeline) {
    // SAFETY: the header's promise.
    unsafe { free(pipeline) }
}

/// The engine of a component ("transformer", "vae_decoder", …), to load adapters for its slots or to run its graphs; free it with
/// v2l_engine_free. Adapters of the pipeline do not change it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_engine(
    pipeline: *const v2l_pipeline,
    component: *const c_char,
    engine: *mut *mut v2l_engine,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, pipeline, component) = unsafe {
            (Out::handle(engine, "engine")?, &required(pipeline, "pipeline")?.0, text(component, "component")?)
        };
        let engine = pipeline.state.lock()?.generator.directory().engine(component)?;
        out.give(v2l_engine(Arc::new(Shared::new(engine, pipeline.options.engines.clone()))));
        Ok(())
    })
}

/// Replaces the pipeline's adapters by `count` others, each with its strength; none is the base model. A transaction: on any failure the
/// pipeline is as it was. `control` may be NULL; so may `report`, else `report->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_set_adapters(
    pipeline: *const v2l_pipeline,
    adapters: *const v2l_weighted_adapter,
    count: usize,
    control: *const v2l_control,
    report: *mut v2l_adapter_report,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        unsafe {
            let pipeline = &required(pipeline, "pipeline")?.0;
            replace(adapters, count, control, report, |applied, control| pipeline.state.lock()?.apply(applied, control))
        }
    })
}

/// What requests to this engine directory may say: a JSON schema, which lives as long as the pipeline. Its `properties` are the names that
/// the model has, with its defaults; `inputs` describes the pictures and tensors that stand beside the JSON.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_schema(pipeline: *const v2l_pipeline, json: *mut *const c_char) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (out, pipeline) = unsafe { (Out::new(json, "json")?, &required(pipeline, "pipeline")?.0) };
        let schema = match pipeline.schema.get() {
            Some(schema) => schema,
            None => {
                let schema = pipeline.state.lock()?.generator.schema()?;
                pipeline.schema.get_or_init(|| c_json(schema.to_string()))
            }
        };
        out.set(schema.as_ptr());
        Ok(())
    })
}
