//! A graph of an engine, ready to run, with adapters of its own.

use std::ffi::c_char;
use std::sync::Arc;

use v2l_runtime::backends::{OpenEngine, OpenReport};
use v2l_runtime::engine::session::Session;
use v2l_runtime::lora::branch;
use v2l_runtime::tensor::{NamedTensors, TensorView};

use crate::adapter::{v2l_adapter_report, v2l_weighted_adapter};
use crate::applied::{Applied, branch_report, fuse_report, replace};
use crate::callbacks::{Control, v2l_control};
use crate::engine::{Shared, v2l_engine};
use crate::failure::{Failure, guard};
use crate::growing::{self, growing};
use crate::handles::{Handle, Kind, free, required};
use crate::log::{V2L_LOG_INFO, log};
use crate::pointers::{Out, optional_text};
use crate::serial::Serial;
use crate::status::{V2L_ERROR_CANCELLED, v2l_status};
use crate::tensor::{named_inputs, v2l_tensor, v2l_tensors};

/// A graph of an engine with the adapters that are applied to it.
pub struct v2l_session {
    shared: Arc<Shared>,
    /// Name of the graph.
    graph: String,
    /// The graph takes adapters as inputs.
    branches: bool,
    state: Serial<State>,
}

impl Handle for v2l_session {
    const KIND: Kind = Kind::Session;
}

struct State {
    session: Box<dyn Session>,
    /// What the session runs on, if it shares that with no other.
    own: Option<OpenEngine>,
    applied: Applied,
    /// The inputs that stand for the adapters.
    factors: NamedTensors,
}

impl v2l_session {
    /// Replaces the adapters; on an error all is as before.
    fn apply(&self, state: &mut State, applied: Applied, control: &Control) -> Result<v2l_adapter_report, Failure> {
        if control.is_cancelled() {
            return Err(Failure::new(V2L_ERROR_CANCELLED, "cancelled"));
        }
        if self.branches {
            let graph = self.shared.engine.graph(&self.graph)?;
            state.factors = branch::inputs(&self.shared.engine, graph, &applied.borrowed())?;
            state.applied = applied;
            return Ok(branch_report(state.applied.slots()));
        }
        if let State { own: Some(own), session, .. } = state {
            own.set_adapters(
                &applied.shared(),
                std::iter::once((&self.graph, session)),
                Some(&|| control.is_cancelled()),
            )?;
            let report = fuse_report(&own.report().fused);
            state.applied = applied;
            return Ok(report);
        }
        let (session, report) = self.shared.with_backend(|backend| {
            let before = backend.set_adapters(&applied.shared(), Some(&|| control.is_cancelled()))?;
            let opened = backend.session(&self.graph);
            let report = backend.report().fused.clone();
            backend.restore(before);
            Ok((opened?, report))
        })?;
        state.session = Box::new(session);
        state.applied = applied;
        Ok(fuse_report(&report))
    }

    fn run(&self, state: &mut State, inputs: &[(&str, TensorView<'_>)]) -> Result<NamedTensors, Failure> {
        let factor = |name: &str| name.ends_with(".lora_down") || name.ends_with(".lora_up");
        let State { session, factors, .. } = state;
        if !self.branches || inputs.iter().any(|(name, _)| factor(name)) {
            return Ok(session.run_views(inputs)?);
        }
        let factors = factors.iter().filter_map(|(name, tensor)| Some((&name[..], tensor.view()?)));
        let inputs: Vec<(&str, TensorView<'_>)> = inputs.iter().copied().chain(factors).collect();
        Ok(session.run_views(&inputs)?)
    }
}

/// Opens a graph of an engine; NULL is the engine's only graph. On ONNX Runtime it costs reading the weights, and a private copy of those
/// that are held in f32, which the engine's sessions share. On OpenVINO it costs compiling the graph.
///
/// A graph whose name ends in ".side" takes adapters as inputs `<slot>.lora_down` and `<slot>.lora_up`: v2l_session_set_adapters makes
/// them, and a run adds them unless it is given some.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_session_new(
    engine: *const v2l_engine,
    graph: *const c_char,
    session: *mut *mut v2l_session,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, engine, graph) =
            unsafe { (Out::handle(session, "session")?, required(engine, "engine")?, optional_text(graph, "graph")?) };
        let shared = Arc::clone(&engine.0);
        let graph = shared.graph(graph)?.clone();
        let factors = match graph.lora_rank {
            Some(_) => branch::inputs(&shared.engine, &graph, &[])?,
            None => NamedTensors::new(),
        };
        let told = |report: &OpenReport| {
            log(V2L_LOG_INFO, &format!("graph `{}`: weights {}: {}", graph.name, report.mode, report.reason));
        };
        let mut own = shared.own_backend()?;
        let session = match &mut own {
            Some(own) => {
                told(own.report());
                own.session(&graph.name)?
            }
            None => shared.with_backend(|backend| {
                told(backend.report());
                Ok(Box::new(backend.session(&graph.name)?) as Box<dyn Session>)
            })?,
        };
        let state = State { session, own, applied: Applied::default(), factors };
        let branches = graph.lora_rank.is_some();
        out.give(v2l_session { shared, graph: graph.name, branches, state: Serial::new(state) });
        Ok(())
    })
}

/// Frees the session. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_session_free(session: *mut v2l_session) {
    // SAFETY: the header's promise.
    unsafe { free(session) }
}

/// Replaces the session's adapters by `count` others, each with its strength; none is the base model. A transaction: on any failure the
/// session is as it was. The base comes back bit for bit.
///
/// Costs a fuse and opening the graph again, or, for a graph that ends in ".side", a copy of the factors. `control` may be NULL; so may
/// `report`, else `report->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_session_set_adapters(
    session: *const v2l_session,
    adapters: *const v2l_weighted_adapter,
    count: usize,
    control: *const v2l_control,
    report: *mut v2l_adapter_report,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        unsafe {
            let session = required(session, "session")?;
            replace(adapters, count, control, report, |applied, control| {
                session.apply(&mut *session.state.lock()?, applied, control)
            })
        }
    })
}

/// How a graph is run. All zero: the defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_run_options {
    /// sizeof(v2l_run_options).
    pub size: usize,
    /// The adapters to run with, `adapter_count` of them: as v2l_session_set_adapters, before the run and in one with it, so that no other
    /// thread's call comes between. Costs nothing if they are the session's already. NULL: those of the session.
    pub adapters: *const v2l_weighted_adapter,
    /// Number of adapters; 0 and `adapters` not NULL is the base model.
    pub adapter_count: usize,
    /// For the change of adapters; may be NULL.
    pub control: *const v2l_control,
}

growing!(
    v2l_run_options,
    Self { size: size_of::<Self>(), adapters: std::ptr::null(), adapter_count: 0, control: std::ptr::null() }
);

/// Fills in the defaults; `size` is sizeof(v2l_run_options).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_run_options_init(options: *mut v2l_run_options, size: usize) -> v2l_status {
    // SAFETY: the header's promise.
    guard(|| unsafe { growing::init(options, size) })
}

/// Runs the graph once on `count` inputs, by name, in any order; all of the graph's must be there. `options` may be NULL. `outputs` are
/// the library's: free them with v2l_tensors_free. The session stays usable after a failure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_session_run(
    session: *const v2l_session,
    inputs: *const v2l_tensor,
    count: usize,
    options: *const v2l_run_options,
    outputs: *mut *mut v2l_tensors,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        let (out, session, inputs, options) = unsafe {
            (
                Out::handle(outputs, "outputs")?,
                required(session, "session")?,
                named_inputs(inputs, count)?,
                growing::read(options)?,
            )
        };
        // SAFETY: as above.
        let (applied, control) =
            unsafe { (Applied::given(options.adapters, options.adapter_count)?, Control::new(options.control)?) };
        let views: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(name, input)| (*name, input.view())).collect();
        let mut state = session.state.lock()?;
        if let Some(applied) = applied.filter(|applied| *applied != state.applied) {
            session.apply(&mut state, applied, &control)?;
        }
        let results = session.run(&mut state, &views)?;
        drop(state);
        out.give(v2l_tensors::from(results));
        Ok(())
    })
}
