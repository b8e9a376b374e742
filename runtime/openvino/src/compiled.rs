//! Compiled graphs.

use std::ffi::{CStr, CString};
use std::num::NonZero;
use std::sync::Arc;

use openvino_sys::{ov_compiled_model_t, ov_output_const_port_t, ov_property_t};

use crate::core::DEVICE;
use crate::error::{Failure, check};
use crate::handle::{Handle, text};
use crate::{Borrowed, Core, Model, OpenVinoError, Request};

/// What floating-point arithmetic is lowered to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Nothing is lowered: every node computes in the type that the graph gives it.
    #[default]
    F32,
    /// Nearly every node computes in bfloat16, those that the graph has in f32 too.
    BF16,
}

/// How a graph is compiled. OpenVINO's own defaults lose precision without a word, so that everything that touches it is always set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileOptions {
    /// What arithmetic is lowered to.
    pub precision: Precision,
    /// Quantise what is multiplied with weights of 8 or 4 bits to 8 bits, in groups of so many; `None` does not.
    pub dynamic_quantization: Option<NonZero<u32>>,
    /// How many threads a run takes; OpenVINO's choice if not given.
    pub threads: Option<NonZero<usize>>,
    /// Take the time of every node, for [`Request::profile`].
    pub profile: bool,
}

impl CompileOptions {
    /// Every property that is set, and its value.
    fn properties(&self) -> Vec<(&'static CStr, CString)> {
        let text = |value: String| CString::new(value).unwrap_or_default();
        let yes = |yes: bool| text(if yes { "YES" } else { "NO" }.to_owned());
        let precision = match self.precision {
            Precision::F32 => c"f32",
            Precision::BF16 => c"bf16",
        };
        let group = self.dynamic_quantization.map_or(0, NonZero::get);
        let mut all = vec![
            (c"INFERENCE_PRECISION_HINT", precision.to_owned()),
            (c"DYNAMIC_QUANTIZATION_GROUP_SIZE", text(group.to_string())),
            (c"PERFORMANCE_HINT", c"LATENCY".to_owned()),
            (c"ENABLE_CPU_PINNING", yes(false)),
            (c"PERF_COUNT", yes(self.profile)),
        ];
        all.extend(self.threads.map(|threads| (c"INFERENCE_NUM_THREADS", text(threads.to_string()))));
        all
    }
}

/// A graph that a device can run. Cheap to clone; may be used by several threads at once. Its requests share its constants and run in turn.
#[derive(Clone)]
pub struct Compiled {
    inner: Arc<Inner>,
    inputs: Arc<[String]>,
}

struct Inner {
    handle: Handle<ov_compiled_model_t>,
    _constants: Arc<[Borrowed]>,
    _core: Core,
}

// SAFETY: `ov::CompiledModel` may be used on any thread, and by several at once; here it is only asked for ports, properties and requests.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe impl Send for Inner {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe impl Sync for Inner {}

impl Core {
    /// Compiles a graph for the CPU.
    ///
    /// # Errors
    /// [`OpenVinoError::Refused`] with OpenVINO's words, [`OpenVinoError::OutOfMemory`].
    pub fn compile(&self, model: &Model, options: &CompileOptions) -> Result<Compiled, OpenVinoError> {
        let values = options.properties();
        let properties: Vec<ov_property_t> = values
            .iter()
            .map(|(key, value)| ov_property_t { key: key.as_ptr(), value: value.as_ptr().cast() })
            .collect();
        // SAFETY: core, model and strings are there for the call, which copies what it needs; values of these properties are strings.
        // What it gives is freed by `ov_compiled_model_free`.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let handle = unsafe {
            Handle::new(
                |compiled| {
                    openvino_sys::ov_core_compile_model_props(
                        self.raw(),
                        model.raw(),
                        DEVICE.as_ptr(),
                        properties.len(),
                        properties.as_ptr(),
                        compiled,
                    )
                },
                |compiled| openvino_sys::ov_compiled_model_free(compiled),
            )
        };
        let handle = handle.map_err(|failure| failure.of_graph("compiles"))?;
        let inputs = inputs(&handle).map_err(|failure| failure.during("lists the graph's inputs"))?;
        let inner = Inner { handle, _constants: Arc::clone(model.constants()), _core: self.clone() };
        Ok(Compiled { inner: Arc::new(inner), inputs: inputs.into() })
    }
}

impl Compiled {
    /// A caller's inputs and outputs of this graph.
    ///
    /// # Errors
    /// [`OpenVinoError::OutOfMemory`].
    pub fn request(&self) -> Result<Request, OpenVinoError> {
        Request::new(self.clone())
    }

    /// The graph's inputs, in its order. Of an input that has several names, as one that a reshape without effect follows, it is
    /// any of them: see [`Self::with_input_names`].
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// The same graph, whose inputs are called by these names where they have them.
    #[must_use]
    pub fn with_input_names<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut inputs = self.inputs.to_vec();
        for name in names {
            let any = self.input(name).ok().and_then(|port| any_name(&port).ok());
            if let Some(found) = inputs.iter_mut().find(|input| any.as_ref() == Some(&**input)) {
                name.clone_into(found);
            }
        }
        self.inputs = inputs.into();
        self
    }

    /// What a property of OpenVINO's has become: `INFERENCE_PRECISION_HINT`, `INFERENCE_NUM_THREADS`.
    ///
    /// # Errors
    /// [`OpenVinoError::Failed`] if there is no such property.
    pub fn property(&self, name: &str) -> Result<String, OpenVinoError> {
        let action = "reads a property";
        let key = CString::new(name).map_err(|e| OpenVinoError::Failed { action, reason: e.to_string() })?;
        // SAFETY: model and string are there for the call; what it gives is to be given to `ov_free`.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let value =
            unsafe { text(|value| openvino_sys::ov_compiled_model_get_property(self.raw(), key.as_ptr(), value)) };
        value.map_err(|failure| failure.during(action))
    }

    /// The input of this name.
    pub(crate) fn input(&self, name: &str) -> Result<Port, OpenVinoError> {
        // SAFETY: model and string are there for the call, which gives a port.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let by_name = |name: &CStr, port: *mut *mut ov_output_const_port_t| unsafe {
            openvino_sys::ov_compiled_model_input_by_name(self.raw(), name.as_ptr(), port)
        };
        port("input", name, by_name)
    }

    /// The output of this name; it may have others.
    pub(crate) fn output(&self, name: &str) -> Result<Port, OpenVinoError> {
        // SAFETY: as above.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let by_name = |name: &CStr, port: *mut *mut ov_output_const_port_t| unsafe {
            openvino_sys::ov_compiled_model_output_by_name(self.raw(), name.as_ptr(), port)
        };
        port("output", name, by_name)
    }

    pub(crate) fn raw(&self) -> *mut ov_compiled_model_t {
        self.inner.handle.raw()
    }
}

/// An input or output of a compiled graph.
pub(crate) type Port = Handle<ov_output_const_port_t>;

fn port(
    port: &'static str,
    name: &str,
    make: impl FnOnce(&CStr, *mut *mut ov_output_const_port_t) -> openvino_sys::ov_status_e,
) -> Result<Port, OpenVinoError> {
    let wrong = |reason: String| OpenVinoError::Port { port, name: name.to_owned(), reason };
    let c_name = CString::new(name).map_err(|e| wrong(e.to_string()))?;
    one(|out| make(&c_name, out)).map_err(|failure| wrong(failure.reason))
}

/// The port that a function of the C API gives.
fn one(make: impl FnOnce(*mut *mut ov_output_const_port_t) -> openvino_sys::ov_status_e) -> Result<Port, Failure> {
    // SAFETY: every function that this is given gives a port of the caller's own, which `ov_output_const_port_free` frees.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    unsafe {
        Handle::new(make, |port| openvino_sys::ov_output_const_port_free(port))
    }
}

fn inputs(compiled: &Handle<ov_compiled_model_t>) -> Result<Vec<String>, Failure> {
    let mut count = 0;
    // SAFETY: the model is there for the call.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    check(unsafe { openvino_sys::ov_compiled_model_inputs_size(compiled.raw(), &mut count) })?;
    let name = |index| {
        // SAFETY: as above.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let port = one(|port| unsafe { openvino_sys::ov_compiled_model_input_by_index(compiled.raw(), index, port) })?;
        any_name(&port)
    };
    (0..count).map(name).collect()
}

/// One of the names of a port.
fn any_name(port: &Port) -> Result<String, Failure> {
    // SAFETY: the port is there for the call; what it gives is to be given to `ov_free`.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    unsafe {
        text(|name| openvino_sys::ov_port_get_any_name(port.raw(), name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &CompileOptions) -> Vec<String> {
        let all = options.properties();
        all.iter().map(|(key, value)| format!("{}={}", key.to_str().unwrap(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn properties_always_hold_what_openvino_would_choose_at_the_cost_of_precision() {
        let exact = of(&CompileOptions::default());
        assert_eq!(exact[..2], ["INFERENCE_PRECISION_HINT=f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE=0"]);
        let options = CompileOptions {
            precision: Precision::BF16,
            dynamic_quantization: NonZero::new(32),
            threads: NonZero::new(2),
            profile: true,
        };
        let expected = [
            "INFERENCE_PRECISION_HINT=bf16",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE=32",
            "PERFORMANCE_HINT=LATENCY",
            "ENABLE_CPU_PINNING=NO",
            "PERF_COUNT=YES",
            "INFERENCE_NUM_THREADS=2",
        ];
        assert_eq!(of(&options), expected);
    }
}
