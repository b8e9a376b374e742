//! The server's objects in safe Rust: a model's configuration, what a request holds, its responses.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;

use serde_json::Value as Json;

use crate::failure::{Failure, check};
use crate::ffi;

/// The most bytes of an input.
const MOST_BYTES: u64 = 1 << 30;

/// A string of the server's, copied.
///
/// # Safety
/// `text` is NULL or ends in NUL.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A model that the server loads.
///
/// Values of this and the next types live no longer than the call of the server that made them.
#[derive(Clone, Copy)]
pub(crate) struct Model(pub(crate) *mut ffi::Model);

impl Model {
    /// The folder of the version that is loaded.
    pub(crate) fn folder(self) -> Result<PathBuf, Failure> {
        let (mut kind, mut location, mut version) = (0, std::ptr::null(), 0);
        // SAFETY: the server's own model, and places for what it says.
        unsafe {
            check(ffi::TRITONBACKEND_ModelRepository(self.0, &raw mut kind, &raw mut location))?;
            check(ffi::TRITONBACKEND_ModelVersion(self.0, &raw mut version))?;
        }
        if kind != 0 {
            return Err(Failure::internal("the model lies in no folder of this machine"));
        }
        // SAFETY: the location lives as long as the model.
        Ok(PathBuf::from(unsafe { text(location) }).join(version.to_string()))
    }

    /// Name and version.
    pub(crate) fn name(self) -> Result<(String, u64), Failure> {
        let (mut name, mut version) = (std::ptr::null(), 0);
        // SAFETY: as above; the name lives as long as the model.
        unsafe {
            check(ffi::TRITONBACKEND_ModelName(self.0, &raw mut name))?;
            check(ffi::TRITONBACKEND_ModelVersion(self.0, &raw mut version))?;
            Ok((text(name), version))
        }
    }

    /// The configuration.
    pub(crate) fn config(self) -> Result<Json, Failure> {
        let (mut message, mut base, mut size) = (null_mut(), std::ptr::null(), 0);
        // SAFETY: as above; the text lives until the message is deleted.
        unsafe {
            check(ffi::TRITONBACKEND_ModelConfig(self.0, 1, &raw mut message))?;
            let read = check(ffi::TRITONSERVER_MessageSerializeToJson(message, &raw mut base, &raw mut size))
                .map(|()| std::slice::from_raw_parts(base.cast::<u8>(), size).to_vec());
            check(ffi::TRITONSERVER_MessageDelete(message))?;
            serde_json::from_slice(&read?).map_err(|error| Failure::internal(format!("the configuration: {error}")))
        }
    }

    /// True if the server wants the configuration filled in.
    pub(crate) fn wants_config(self) -> Result<bool, Failure> {
        let mut wanted = false;
        // SAFETY: as above.
        check(unsafe { ffi::TRITONBACKEND_ModelAutoCompleteConfig(self.0, &raw mut wanted) })?;
        Ok(wanted)
    }

    /// Replaces the configuration, while the model is initialized.
    pub(crate) fn set_config(self, config: &Json) -> Result<(), Failure> {
        let (config, mut message) = (config.to_string(), null_mut());
        // SAFETY: as above; the server copies the text, and the message.
        unsafe {
            check(ffi::TRITONSERVER_MessageNewFromSerializedJson(
                &raw mut message,
                config.as_ptr().cast(),
                config.len(),
            ))?;
            let set = check(ffi::TRITONBACKEND_ModelSetConfig(self.0, 1, message));
            check(ffi::TRITONSERVER_MessageDelete(message))?;
            set
        }
    }
}

/// An input of a request, in host memory.
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) kind: u32,
    pub(crate) shape: Vec<i64>,
    pub(crate) data: Vec<u8>,
}

/// A parameter of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Parameter {
    Text(String),
    Whole(i64),
    Truth(bool),
    Real(f64),
}

/// A request that the server gave.
#[derive(Clone, Copy)]
pub(crate) struct Request(pub(crate) *mut ffi::Request);

impl Request {
    /// Copies of the inputs.
    pub(crate) fn inputs(self) -> Result<Vec<Input>, Failure> {
        let mut count = 0;
        // SAFETY: the server's own request, and a place for what it says.
        check(unsafe { ffi::TRITONBACKEND_RequestInputCount(self.0, &raw mut count) })?;
        (0..count).map(|index| self.input(index)).collect()
    }

    fn input(self, index: u32) -> Result<Input, Failure> {
        let (mut input, mut name, mut kind) = (null_mut(), std::ptr::null(), 0);
        let (mut shape, mut dimensions, mut bytes, mut buffers) = (std::ptr::null(), 0, 0, 0);
        // SAFETY: as above; name and shape live as long as the request.
        let (name, shape) = unsafe {
            check(ffi::TRITONBACKEND_RequestInputByIndex(self.0, index, &raw mut input))?;
            check(ffi::TRITONBACKEND_InputProperties(
                input,
                &raw mut name,
                &raw mut kind,
                &raw mut shape,
                &raw mut dimensions,
                &raw mut bytes,
                &raw mut buffers,
            ))?;
            let shape = if dimensions == 0 { &[][..] } else { std::slice::from_raw_parts(shape, dimensions as usize) };
            (text(name), shape.to_vec())
        };
        if bytes > MOST_BYTES {
            return Err(Failure::argument(format!("{name} has {bytes} bytes; expected at most {MOST_BYTES}")));
        }
        let mut data = Vec::new();
        for index in 0..buffers {
            let (mut buffer, mut size, mut memory, mut memory_id) = (std::ptr::null(), 0, 0, 0);
            // SAFETY: as above.
            check(unsafe {
                ffi::TRITONBACKEND_InputBuffer(
                    input,
                    index,
                    &raw mut buffer,
                    &raw mut size,
                    &raw mut memory,
                    &raw mut memory_id,
                )
            })?;
            if memory == ffi::MEMORY_GPU {
                return Err(Failure::argument(format!("{name} lies in a GPU's memory; expected the host's")));
            }
            let size = usize::try_from(size).ok().filter(|size| *size as u64 <= MOST_BYTES - data.len() as u64);
            let Some(size) = size else {
                return Err(Failure::argument(format!("{name} has more bytes than it says")));
            };
            if size > 0 {
                // SAFETY: the server says that so many bytes lie there, in host memory, until the request is released.
                data.extend_from_slice(unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) });
            }
        }
        Ok(Input { name, kind, shape, data })
    }

    /// Copies of the parameters.
    pub(crate) fn parameters(self) -> Result<Vec<(String, Parameter)>, Failure> {
        let mut count = 0;
        // SAFETY: as above.
        check(unsafe { ffi::TRITONBACKEND_RequestParameterCount(self.0, &raw mut count) })?;
        let mut parameters = Vec::new();
        for index in 0..count {
            let (mut key, mut kind, mut value) = (std::ptr::null(), 0, std::ptr::null());
            // SAFETY: as above; key and value live as long as the request, and the value has the type that is said.
            let (key, value) = unsafe {
                check(ffi::TRITONBACKEND_RequestParameter(self.0, index, &raw mut key, &raw mut kind, &raw mut value))?;
                let key = text(key);
                let value = match kind {
                    ffi::PARAMETER_STRING => Parameter::Text(text(value.cast())),
                    ffi::PARAMETER_INT => Parameter::Whole(value.cast::<i64>().read_unaligned()),
                    ffi::PARAMETER_BOOL => Parameter::Truth(value.cast::<u8>().read() != 0),
                    ffi::PARAMETER_DOUBLE => Parameter::Real(value.cast::<f64>().read_unaligned()),
                    _ => return Err(Failure::argument(format!("parameter {key} has a type that is not taken"))),
                };
                (key, value)
            };
            parameters.push((key, value));
        }
        Ok(parameters)
    }

    /// Names of the outputs that are asked for; none stands for all.
    pub(crate) fn outputs(self) -> Result<Vec<String>, Failure> {
        let mut count = 0;
        // SAFETY: as above.
        check(unsafe { ffi::TRITONBACKEND_RequestOutputCount(self.0, &raw mut count) })?;
        let mut names = Vec::new();
        for index in 0..count {
            let mut name = std::ptr::null();
            // SAFETY: as above.
            names.push(unsafe {
                check(ffi::TRITONBACKEND_RequestOutputName(self.0, index, &raw mut name))?;
                text(name)
            });
        }
        Ok(names)
    }

    /// True once the client has cancelled the request.
    pub(crate) fn is_cancelled(self) -> bool {
        let mut cancelled = false;
        // SAFETY: as above.
        check(unsafe { ffi::TRITONBACKEND_RequestIsCancelled(self.0, &raw mut cancelled) }).is_ok() && cancelled
    }

    /// Gives the request back; it must not be used again.
    pub(crate) fn release(self) -> Result<(), Failure> {
        // SAFETY: the server's own request, which is released once, here.
        check(unsafe { ffi::TRITONBACKEND_RequestRelease(self.0, ffi::RELEASE_ALL) })
    }
}

/// What makes the responses of a request.
pub(crate) struct Responses(*mut ffi::Factory);

impl Drop for Responses {
    fn drop(&mut self) {
        // SAFETY: the factory is this value's own.
        let _ = check(unsafe { ffi::TRITONBACKEND_ResponseFactoryDelete(self.0) });
    }
}

/// An output that was made.
pub(crate) struct Made {
    pub(crate) name: CString,
    pub(crate) kind: u32,
    pub(crate) shape: Vec<i64>,
    pub(crate) data: Vec<u8>,
}

impl Responses {
    pub(crate) fn new(request: Request) -> Result<Self, Failure> {
        let mut factory = null_mut();
        // SAFETY: the server's own request.
        check(unsafe { ffi::TRITONBACKEND_ResponseFactoryNew(&raw mut factory, request.0) })?;
        Ok(Self(factory))
    }

    /// Sends a response: its outputs, or what went wrong. After the last one no other may follow.
    pub(crate) fn send(&self, outputs: Result<&[Made], Failure>, last: bool) -> Result<(), Failure> {
        let mut response = null_mut();
        // SAFETY: the factory lives.
        check(unsafe { ffi::TRITONBACKEND_ResponseNewFromFactory(&raw mut response, self.0) })?;
        let written = outputs.and_then(|outputs| outputs.iter().try_for_each(|output| write(response, output)));
        let error = written.map_or_else(Failure::into_error, |()| null_mut());
        // SAFETY: the response is sent, and so given away, once; so is the error.
        check(unsafe { ffi::TRITONBACKEND_ResponseSend(response, if last { ffi::FINAL } else { 0 }, error) })
    }
}

fn write(response: *mut ffi::Response, output: &Made) -> Result<(), Failure> {
    let (mut place, mut buffer, mut memory, mut memory_id) = (null_mut(), null_mut::<c_void>(), 0, 0);
    let (dimensions, bytes) = (u32::try_from(output.shape.len()), output.data.len());
    let Ok(dimensions) = dimensions else { return Err(Failure::internal("an output has too many axes")) };
    // SAFETY: a response that was not sent yet; the name and the shape live through the calls.
    unsafe {
        let (name, shape) = (output.name.as_ptr(), output.shape.as_ptr());
        check(ffi::TRITONBACKEND_ResponseOutput(response, &raw mut place, name, output.kind, shape, dimensions))?;
        let size = bytes as u64;
        check(ffi::TRITONBACKEND_OutputBuffer(place, &raw mut buffer, size, &raw mut memory, &raw mut memory_id))?;
    }
    if memory == ffi::MEMORY_GPU || (buffer.is_null() && bytes > 0) {
        return Err(Failure::internal("the server has no host memory for an output"));
    }
    if bytes > 0 {
        let bytes = bytes + usize::from(cfg!(feature = "planted-error"));
        // SAFETY: the server gave room for so many bytes of host memory, but for the planted error.
        unsafe { std::ptr::copy_nonoverlapping(output.data.as_ptr(), buffer.cast::<u8>(), bytes) };
    }
    Ok(())
}

/// Counters of one name, told apart by labels.
pub(crate) struct Family(*mut ffi::MetricFamily);

// SAFETY: the server guards its metrics by itself.
unsafe impl Send for Family {}

impl Family {
    pub(crate) fn new(name: &CStr, description: &CStr) -> Result<Self, Failure> {
        let mut family = null_mut();
        // SAFETY: strings that end in NUL, which the server copies, and a place for what it makes.
        check(unsafe {
            ffi::TRITONSERVER_MetricFamilyNew(&raw mut family, ffi::COUNTER, name.as_ptr(), description.as_ptr())
        })?;
        Ok(Self(family))
    }

    /// The counter of these labels, which must be gone before its family is.
    pub(crate) fn counter(&self, labels: &[(&CStr, &CStr)]) -> Result<Counter, Failure> {
        let mut metric = null_mut();
        let made: Vec<*mut ffi::Parameter> = labels
            .iter()
            // SAFETY: strings that end in NUL; the server copies them.
            .map(|(name, value)| unsafe {
                ffi::TRITONSERVER_ParameterNew(name.as_ptr(), ffi::PARAMETER_STRING, value.as_ptr().cast())
            })
            .collect();
        let mut given: Vec<*const ffi::Parameter> = made.iter().map(|label| label.cast_const()).collect();
        // SAFETY: the family lives, the labels live through the call, which copies them; each is deleted once.
        unsafe {
            let count = given.len() as u64;
            let counted = check(ffi::TRITONSERVER_MetricNew(&raw mut metric, self.0, given.as_mut_ptr(), count));
            made.into_iter().for_each(|label| ffi::TRITONSERVER_ParameterDelete(label));
            counted?;
        }
        Ok(Counter(metric))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // SAFETY: the family is this value's own, and its counters are gone.
        let _ = check(unsafe { ffi::TRITONSERVER_MetricFamilyDelete(self.0) });
    }
}

/// A number that grows.
pub(crate) struct Counter(*mut ffi::Metric);

// SAFETY: the server guards its metrics by itself.
unsafe impl Send for Counter {}
// SAFETY: as above.
unsafe impl Sync for Counter {}

impl Counter {
    /// Adds to it; a counter that the server refuses to count is nobody's to hear of.
    pub(crate) fn add(&self, value: f64) {
        // SAFETY: the counter lives.
        let _ = check(unsafe { ffi::TRITONSERVER_MetricIncrement(self.0, value) });
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: the counter is this value's own.
        let _ = check(unsafe { ffi::TRITONSERVER_MetricDelete(self.0) });
    }
}

/// The one element of a BYTES tensor.
pub(crate) fn element(input: &Input) -> Result<&[u8], Failure> {
    let wrong = || Failure::argument(format!("{} holds no single string of bytes", input.name));
    let (length, data) = input.data.split_first_chunk::<4>().ok_or_else(wrong)?;
    if u32::from_le_bytes(*length) as usize == data.len() { Ok(data) } else { Err(wrong()) }
}

/// A BYTES tensor of one element.
pub(crate) fn of_element(data: &[u8]) -> Result<Vec<u8>, Failure> {
    let length = u32::try_from(data.len()).map_err(|_| Failure::internal("an output has 4 GiB or more"))?;
    Ok([&length.to_le_bytes(), data].concat())
}
