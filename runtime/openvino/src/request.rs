//! Runs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::slice;
use std::time::Duration;

use openvino_sys::{
    ov_infer_request_t, ov_profiling_info_list_t, ov_profiling_info_t, ov_profiling_info_t_Status, ov_shape_t,
    ov_status_e, ov_tensor_t,
};

use crate::error::{Failure, check};
use crate::handle::Handle;
use crate::{Borrowed, Compiled, Element, Lent, OpenVinoError};

/// How often a run asks whether it is still wanted, in milliseconds.
const ASK_EVERY: i64 = 5;

/// One caller's inputs and outputs of a compiled graph. Inputs stay set from run to run.
pub struct Request {
    // Fields drop in order: the request goes before what its tensors borrow.
    handle: Handle<ov_infer_request_t>,
    compiled: Compiled,
    inputs: BTreeMap<String, Borrowed>,
    has_run: bool,
    /// Its first run, after which OpenVINO has let go of the room that it had for every input, is over.
    is_settled: bool,
}

// SAFETY: `ov::InferRequest` may be used on any thread, by one at a time.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe impl Send for Request {}

impl Request {
    pub(crate) fn new(compiled: Compiled) -> Result<Self, OpenVinoError> {
        // SAFETY: the model is there for the call; what it gives is freed by `ov_infer_request_free`.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let handle = unsafe {
            Handle::new(
                |request| openvino_sys::ov_compiled_model_create_infer_request(compiled.raw(), request),
                |request| openvino_sys::ov_infer_request_free(request),
            )
        };
        let handle = handle.map_err(|failure| failure.during("prepares a run"))?;
        Ok(Self { handle, compiled, inputs: BTreeMap::new(), has_run: false, is_settled: false })
    }

    /// The graph that this runs.
    pub const fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// Gives an input, for the next run and those after it, in place of what it was given before. Nothing is copied: the request holds the
    /// tensor until it is given another, or ends.
    ///
    /// # Errors
    /// [`OpenVinoError::Port`] if the graph has no such input, or not of this type and shape; what it had before stays.
    pub fn set_input(&mut self, name: &str, tensor: Borrowed) -> Result<(), OpenVinoError> {
        // SAFETY: the tensor's owner is held by `inputs` below, beyond the request's own end.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        unsafe {
            self.set(name, tensor.element(), tensor.shape(), tensor.data())?;
        }
        self.inputs.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// True if an input has been given by [`Self::set_input`], and not been lent to a run since.
    pub fn is_set(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }

    /// Runs the graph on inputs that are lent to this run alone, in place of what was set, and on those that are set. A lent input must be set, or lent
    /// again, before the next run. For the rest, as [`Self::run`].
    ///
    /// # Errors
    /// As [`Self::set_input`] and [`Self::run`].
    pub fn run_on<'a>(
        &'a mut self,
        lent: &'a [(&str, Lent<'a>)],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Ran<'a>, OpenVinoError> {
        self.has_run = false;
        for (name, tensor) in lent {
            self.inputs.remove(*name);
            // SAFETY: no run begins without `name` being in `inputs`, or in `lent` and so borrowed until the run has ended; its outputs are, too,
            // for as long as anybody reads them.
            #[allow(unsafe_code, reason = "OpenVINO's C API")]
            unsafe {
                self.set(name, tensor.element, &tensor.shape, tensor.bytes.as_ptr())?;
            }
        }
        let is_given = |name: &String| self.inputs.contains_key(name) || lent.iter().any(|(lent, _)| lent == name);
        self.run_if(is_given, cancelled)?;
        self.settle();
        Ok(Ran { request: self })
    }

    /// # Safety
    /// `data` leads to the bytes of a tensor of this type and shape, which stay and do not change until the request is given another
    /// tensor for this input, has ended, or does not run any more.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    unsafe fn set(&self, name: &str, element: Element, shape: &[i64], data: *const u8) -> Result<(), OpenVinoError> {
        // A port may have further names; that each has one here is what `run_on` rests on.
        if !self.compiled.inputs().iter().any(|input| input == name) {
            let reason = format!("the graph's inputs are {}", self.compiled.inputs().join(", "));
            return Err(OpenVinoError::Port { port: "input", name: name.to_owned(), reason });
        }
        let port = self.compiled.input(name)?;
        let wrong =
            |failure: Failure| OpenVinoError::Port { port: "input", name: name.to_owned(), reason: failure.reason };
        let mut extents = shape.to_vec();
        let shape = ov_shape_t { rank: extents.len() as i64, dims: extents.as_mut_ptr() };
        // SAFETY: `data` leads to the bytes of that type and shape (the caller's promise), which are only read: it is the tensor of an input, and
        // OpenVINO writes to none. The shape is copied. What the call gives is freed by `ov_tensor_free`; the request keeps a share of its own.
        let made = unsafe {
            Handle::new(
                |out| {
                    let data = data.cast_mut().cast::<c_void>();
                    openvino_sys::ov_tensor_create_from_host_ptr(element.raw(), shape, data, out)
                },
                |raw| openvino_sys::ov_tensor_free(raw),
            )
        };
        let made = made.map_err(wrong)?;
        // SAFETY: all three are there for the call; no run is under way, since runs borrow `self` mutably.
        let status = unsafe {
            openvino_sys::ov_infer_request_set_tensor_by_const_port(self.handle.raw(), port.raw(), made.raw())
        };
        check(status).map_err(wrong)
    }

    /// Runs the graph. `cancelled` is asked every few milliseconds, on this thread; once it says so, the run ends at its next node. The request can be
    /// run again after that, and after an error.
    ///
    /// # Errors
    /// [`OpenVinoError::Cancelled`], [`OpenVinoError::Port`] if an input has not been set, [`OpenVinoError::OutOfMemory`], or
    /// [`OpenVinoError::Failed`] with OpenVINO's words. There are no outputs then.
    pub fn run(&mut self, cancelled: &dyn Fn() -> bool) -> Result<(), OpenVinoError> {
        self.has_run = false;
        self.run_if(|name| self.inputs.contains_key(name), cancelled)?;
        self.settle();
        self.has_run = true;
        Ok(())
    }

    /// After the first run: gives the system back what the allocator still keeps of the room for inputs, which is as large as all weights.
    fn settle(&mut self) {
        if !std::mem::replace(&mut self.is_settled, true) {
            give_back();
        }
    }

    fn run_if(&self, is_given: impl Fn(&String) -> bool, cancelled: &dyn Fn() -> bool) -> Result<(), OpenVinoError> {
        if let Some(name) = self.compiled.inputs().iter().find(|name| !is_given(name)) {
            let reason = "it has not been set".to_owned();
            return Err(OpenVinoError::Port { port: "input", name: name.clone(), reason });
        }
        if cancelled() {
            return Err(OpenVinoError::Cancelled);
        }
        let run = Running::start(&self.handle).map_err(|failure| failure.during("runs"))?;
        let asked = Cell::new(0_u32);
        let is_cancelled = || {
            asked.set(asked.get().saturating_add(1));
            // OpenVINO frees the room for inputs somewhere in the first run: what lies in the page cache takes its place meanwhile.
            if !self.is_settled && asked.get().is_power_of_two() {
                give_back();
            }
            cancelled()
        };
        run.finish(&is_cancelled).map_err(|failure| failure.during("runs"))
    }

    /// An output of the last run, by any of its names.
    ///
    /// # Errors
    /// [`OpenVinoError::NotRun`] if there is none, [`OpenVinoError::Port`] if the graph has no such output, [`OpenVinoError::Tensor`] if it is of a
    /// type that [`Element`] lacks.
    pub fn output(&self, name: &str) -> Result<Output<'_>, OpenVinoError> {
        if !self.has_run {
            return Err(OpenVinoError::NotRun { name: name.to_owned() });
        }
        self.read_output(name)
    }

    /// The caller knows that the last run has ended well.
    fn read_output(&self, name: &str) -> Result<Output<'_>, OpenVinoError> {
        let port = self.compiled.output(name)?;
        // SAFETY: both are there for the call, and no run is under way; what it gives is a share that `ov_tensor_free` gives back.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let tensor = unsafe {
            Handle::new(
                |out| openvino_sys::ov_infer_request_get_tensor_by_const_port(self.handle.raw(), port.raw(), out),
                |raw| openvino_sys::ov_tensor_free(raw),
            )
        };
        let read = tensor.and_then(|tensor| read(&tensor).map(|parts| (tensor, parts)));
        let (tensor, (number, shape, bytes)) = read.map_err(|failure| failure.during("gives an output"))?;
        let element = Element::of(number).ok_or_else(|| OpenVinoError::Tensor {
            reason: format!("`{name}` has elements of OpenVINO's type {number}"),
        })?;
        Ok(Output { element, shape, bytes, _tensor: tensor, _request: PhantomData })
    }

    /// How long each node took in the last run, if the graph was compiled with [`CompileOptions::profile`](crate::CompileOptions::profile).
    ///
    /// # Errors
    /// [`OpenVinoError::Failed`] if it was not.
    pub fn profile(&self) -> Result<Vec<NodeTime>, OpenVinoError> {
        let mut list = ov_profiling_info_list_t { profiling_infos: std::ptr::null_mut(), size: 0 };
        // SAFETY: the request is there for the call, and no run is under way.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let status = unsafe { openvino_sys::ov_infer_request_get_profiling_info(self.handle.raw(), &mut list) };
        check(status).map_err(|failure| failure.during("lists the times of nodes"))?;
        if list.profiling_infos.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: the call has filled the list with so many entries of C strings, which live until the list is freed, below.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        unsafe {
            let entries = slice::from_raw_parts(list.profiling_infos, list.size);
            let times = entries.iter().map(|entry| node_time(entry)).collect();
            openvino_sys::ov_profiling_info_list_free(&mut list);
            Ok(times)
        }
    }
}

/// Gives the system back what the allocator has free, where there is a way to say so. Takes milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    // SAFETY: glibc's function, of this type; it may be called at any time, on any thread.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    unsafe {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

/// A run that has ended, on inputs that were lent to it: what it gave.
pub struct Ran<'a> {
    request: &'a Request,
}

impl Ran<'_> {
    /// As [`Request::output`].
    ///
    /// # Errors
    /// As [`Request::output`].
    pub fn output(&self, name: &str) -> Result<Output<'_>, OpenVinoError> {
        self.request.read_output(name)
    }
}

/// A run under way. Nothing of the request may be touched until it ends.
struct Running<'a> {
    request: &'a Handle<ov_infer_request_t>,
    ended: bool,
}

impl<'a> Running<'a> {
    fn start(request: &'a Handle<ov_infer_request_t>) -> Result<Self, Failure> {
        // SAFETY: the request is there, and no run of it is under way. Its inputs' memory stays until the run has ended: `finish` or `drop`
        // waits for that, and the request's owner is borrowed until then.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        check(unsafe { openvino_sys::ov_infer_request_start_async(request.raw()) })?;
        Ok(Self { request, ended: false })
    }

    fn finish(mut self, cancelled: &dyn Fn() -> bool) -> Result<(), Failure> {
        loop {
            // SAFETY: the request is there for the call.
            #[allow(unsafe_code, reason = "OpenVINO's C API")]
            let status = unsafe { openvino_sys::ov_infer_request_wait_for(self.request.raw(), ASK_EVERY) };
            if status != ov_status_e::RESULT_NOT_READY {
                self.ended = true;
                return check(status);
            }
            if cancelled() {
                return self.end();
            }
        }
    }

    /// Ends the run at its next node, and waits for that.
    fn end(&mut self) -> Result<(), Failure> {
        self.ended = true;
        // SAFETY: the request is there for the calls; a run may be cancelled at any time.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        unsafe {
            let asked = openvino_sys::ov_infer_request_cancel(self.request.raw());
            let waited = openvino_sys::ov_infer_request_wait(self.request.raw());
            check(waited)?;
            check(asked)
        }
    }
}

impl Drop for Running<'_> {
    /// After a panic of `cancelled`.
    fn drop(&mut self) {
        if !self.ended {
            // There is nobody to tell.
            let _ = self.end();
        }
    }
}

/// An output of the last run; it is gone before the next one.
pub struct Output<'a> {
    element: Element,
    shape: Vec<usize>,
    bytes: &'a [u8],
    /// Where the bytes are.
    _tensor: Handle<ov_tensor_t>,
    _request: PhantomData<&'a Request>,
}

impl Output<'_> {
    /// The type of the elements.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// The extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row by row.
    pub const fn bytes(&self) -> &[u8] {
        self.bytes
    }
}

/// Element type, shape and bytes of a tensor. The bytes stay while the tensor does and nothing runs.
fn read<'a>(tensor: &Handle<ov_tensor_t>) -> Result<(u32, Vec<usize>, &'a [u8]), Failure> {
    let (mut number, mut length, mut data) = (0_u32, 0, std::ptr::null_mut());
    let mut shape = ov_shape_t { rank: 0, dims: std::ptr::null_mut() };
    // SAFETY: the tensor is there for the calls. The type is read as a number, which an enum of this crate's version need not know; the shape is
    // copied before it is freed; data and length are those of one allocation that the tensor shares, which the run that has ended has filled.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    unsafe {
        check(openvino_sys::ov_tensor_get_element_type(tensor.raw(), (&raw mut number).cast()))?;
        check(openvino_sys::ov_tensor_get_byte_size(tensor.raw(), &mut length))?;
        check(openvino_sys::ov_tensor_data(tensor.raw(), &mut data))?;
        let status = openvino_sys::ov_tensor_get_shape(tensor.raw(), &mut shape);
        // It refuses to give a shape without extents.
        let is_scalar = Element::of(number).is_some_and(|element| element.size() == length);
        if !(is_scalar && status == ov_status_e::INVALID_C_PARAM) {
            check(status)?;
        }
        let rank = usize::try_from(shape.rank).unwrap_or_default();
        let extents = if rank == 0 || shape.dims.is_null() { &[][..] } else { slice::from_raw_parts(shape.dims, rank) };
        let extents = extents.iter().map(|extent| usize::try_from(*extent).unwrap_or_default()).collect();
        check(openvino_sys::ov_shape_free(&mut shape))?;
        let empty = length == 0 || data.is_null();
        let bytes = if empty { &[][..] } else { slice::from_raw_parts(data.cast::<u8>(), length) };
        Ok((number, extents, bytes))
    }
}

/// How long a node took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTime {
    /// The node's name.
    pub name: String,
    /// What it computes: `FullyConnected`, `RoPE`, `Subgraph`.
    pub operator: String,
    /// What computes it, and in which type: `brgemm_avx512_bf16`.
    pub kernel: String,
    /// On the clock.
    pub time: Duration,
    /// False for one that was optimised away, or did not run.
    pub executed: bool,
}

/// # Safety
/// The entry's strings are C strings, or null.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe fn node_time(entry: &ov_profiling_info_t) -> NodeTime {
    let text = |text: *const c_char| {
        // SAFETY: the caller's promise.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
        text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    };
    NodeTime {
        name: text(entry.node_name),
        operator: text(entry.node_type),
        kernel: text(entry.exec_type),
        time: Duration::from_micros(u64::try_from(entry.real_time).unwrap_or_default()),
        executed: entry.status == ov_profiling_info_t_Status::EXECUTED,
    }
}
