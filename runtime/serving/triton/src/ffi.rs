//! The functions of Triton's backend interface that are needed, as `tritonbackend.h` and `tritonserver.h` declare them (API 1.19).

#![allow(non_snake_case, reason = "the server's own names")]

use std::ffi::{c_char, c_void};

/// The interface's major version that the declarations are of.
pub(crate) const API_MAJOR: u32 = 1;
/// The first minor version that has all of them.
pub(crate) const API_MINOR: u32 = 17;

macro_rules! opaque {
    ($visibility:vis $($name:ident)*) => {
        $(
            /// One of the server's objects.
            #[repr(C)]
            $visibility struct $name {
                _opaque: [u8; 0],
            }
        )*
    };
}

opaque!(pub Backend Error Instance Model Request);
opaque!(pub(crate) Factory Input Message Metric MetricFamily Output Parameter Response);

pub(crate) const ERROR_INTERNAL: u32 = 1;
pub(crate) const ERROR_INVALID_ARG: u32 = 3;
pub(crate) const ERROR_UNAVAILABLE: u32 = 4;
pub(crate) const ERROR_UNSUPPORTED: u32 = 5;
pub(crate) const ERROR_CANCELLED: u32 = 7;

pub(crate) const TYPE_BOOL: u32 = 1;
pub(crate) const TYPE_UINT8: u32 = 2;
pub(crate) const TYPE_UINT16: u32 = 3;
pub(crate) const TYPE_UINT32: u32 = 4;
pub(crate) const TYPE_UINT64: u32 = 5;
pub(crate) const TYPE_INT8: u32 = 6;
pub(crate) const TYPE_INT16: u32 = 7;
pub(crate) const TYPE_INT32: u32 = 8;
pub(crate) const TYPE_INT64: u32 = 9;
pub(crate) const TYPE_FP16: u32 = 10;
pub(crate) const TYPE_FP32: u32 = 11;
pub(crate) const TYPE_FP64: u32 = 12;
pub(crate) const TYPE_BYTES: u32 = 13;
pub(crate) const TYPE_BF16: u32 = 14;

pub(crate) const MEMORY_GPU: u32 = 2;

pub(crate) const PARAMETER_STRING: u32 = 0;
pub(crate) const PARAMETER_INT: u32 = 1;
pub(crate) const PARAMETER_BOOL: u32 = 2;
pub(crate) const PARAMETER_DOUBLE: u32 = 3;

/// Kind of a metric that only grows.
pub(crate) const COUNTER: u32 = 0;

/// Flag of the last response.
pub(crate) const FINAL: u32 = 1;
/// Flag of a release: the request is the server's again.
pub(crate) const RELEASE_ALL: u32 = 1;

unsafe extern "C" {
    pub(crate) fn TRITONSERVER_ErrorNew(code: u32, message: *const c_char) -> *mut Error;
    pub(crate) fn TRITONSERVER_ErrorMessage(error: *mut Error) -> *const c_char;
    pub(crate) fn TRITONSERVER_ErrorDelete(error: *mut Error);
    pub(crate) fn TRITONSERVER_LogMessage(
        level: u32,
        file: *const c_char,
        line: i32,
        message: *const c_char,
    ) -> *mut Error;
    pub(crate) fn TRITONSERVER_MessageSerializeToJson(
        message: *mut Message,
        base: *mut *const c_char,
        size: *mut usize,
    ) -> *mut Error;
    pub(crate) fn TRITONSERVER_MessageNewFromSerializedJson(
        message: *mut *mut Message,
        base: *const c_char,
        size: usize,
    ) -> *mut Error;
    pub(crate) fn TRITONSERVER_MessageDelete(message: *mut Message) -> *mut Error;

    pub(crate) fn TRITONSERVER_ParameterNew(name: *const c_char, kind: u32, value: *const c_void) -> *mut Parameter;
    pub(crate) fn TRITONSERVER_ParameterDelete(parameter: *mut Parameter);
    pub(crate) fn TRITONSERVER_MetricFamilyNew(
        family: *mut *mut MetricFamily,
        kind: u32,
        name: *const c_char,
        description: *const c_char,
    ) -> *mut Error;
    pub(crate) fn TRITONSERVER_MetricFamilyDelete(family: *mut MetricFamily) -> *mut Error;
    pub(crate) fn TRITONSERVER_MetricNew(
        metric: *mut *mut Metric,
        family: *mut MetricFamily,
        labels: *mut *const Parameter,
        count: u64,
    ) -> *mut Error;
    pub(crate) fn TRITONSERVER_MetricDelete(metric: *mut Metric) -> *mut Error;
    pub(crate) fn TRITONSERVER_MetricIncrement(metric: *mut Metric, value: f64) -> *mut Error;

    pub(crate) fn TRITONBACKEND_ApiVersion(major: *mut u32, minor: *mut u32) -> *mut Error;

    pub(crate) fn TRITONBACKEND_ModelRepository(
        model: *mut Model,
        kind: *mut u32,
        location: *mut *const c_char,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelName(model: *mut Model, name: *mut *const c_char) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelVersion(model: *mut Model, version: *mut u64) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelConfig(model: *mut Model, version: u32, config: *mut *mut Message) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelAutoCompleteConfig(model: *mut Model, wanted: *mut bool) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelSetConfig(model: *mut Model, version: u32, config: *mut Message) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelSetState(model: *mut Model, state: *mut c_void) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelState(model: *mut Model, state: *mut *mut c_void) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelInstanceModel(instance: *mut Instance, model: *mut *mut Model) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelInstanceSetState(instance: *mut Instance, state: *mut c_void) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelInstanceState(instance: *mut Instance, state: *mut *mut c_void) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ModelInstanceReportStatistics(
        instance: *mut Instance,
        request: *mut Request,
        success: bool,
        exec_start_ns: u64,
        compute_start_ns: u64,
        compute_end_ns: u64,
        exec_end_ns: u64,
    ) -> *mut Error;

    pub(crate) fn TRITONBACKEND_RequestInputCount(request: *mut Request, count: *mut u32) -> *mut Error;
    pub(crate) fn TRITONBACKEND_RequestInputByIndex(
        request: *mut Request,
        index: u32,
        input: *mut *mut Input,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_InputProperties(
        input: *mut Input,
        name: *mut *const c_char,
        kind: *mut u32,
        shape: *mut *const i64,
        dimensions: *mut u32,
        bytes: *mut u64,
        buffers: *mut u32,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_InputBuffer(
        input: *mut Input,
        index: u32,
        buffer: *mut *const c_void,
        bytes: *mut u64,
        memory: *mut u32,
        memory_id: *mut i64,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_RequestParameterCount(request: *mut Request, count: *mut u32) -> *mut Error;
    pub(crate) fn TRITONBACKEND_RequestParameter(
        request: *mut Request,
        index: u32,
        key: *mut *const c_char,
        kind: *mut u32,
        value: *mut *const c_void,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_RequestOutputCount(request: *mut Request, count: *mut u32) -> *mut Error;
    pub(crate) fn TRITONBACKEND_RequestOutputName(
        request: *mut Request,
        index: u32,
        name: *mut *const c_char,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_RequestIsCancelled(request: *mut Request, cancelled: *mut bool) -> *mut Error;
    pub(crate) fn TRITONBACKEND_RequestRelease(request: *mut Request, flags: u32) -> *mut Error;

    pub(crate) fn TRITONBACKEND_ResponseFactoryNew(factory: *mut *mut Factory, request: *mut Request) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ResponseFactoryDelete(factory: *mut Factory) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ResponseNewFromFactory(
        response: *mut *mut Response,
        factory: *mut Factory,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ResponseOutput(
        response: *mut Response,
        output: *mut *mut Output,
        name: *const c_char,
        kind: u32,
        shape: *const i64,
        dimensions: u32,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_OutputBuffer(
        output: *mut Output,
        buffer: *mut *mut c_void,
        bytes: u64,
        memory: *mut u32,
        memory_id: *mut i64,
    ) -> *mut Error;
    pub(crate) fn TRITONBACKEND_ResponseSend(response: *mut Response, flags: u32, error: *mut Error) -> *mut Error;
}
