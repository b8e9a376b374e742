//! The shim's C interface; `shim/shim.h` says what each declaration means.

#[cfg(feature = "build")]
mod build;
#[cfg(feature = "run")]
mod run;

#[cfg(feature = "build")]
pub(crate) use self::build::*;
#[cfg(feature = "run")]
pub(crate) use self::run::*;

pub(crate) type LibraryVersion = unsafe extern "C" fn() -> i32;

#[allow(unsafe_code, reason = "TensorRT through its shim")]
// SAFETY: the declarations are those of shim/shim.h, whose functions take nothing and return a table that lives forever.
unsafe extern "C" {
    #[cfg(feature = "build")]
    pub(crate) safe fn v2l_api_rtx() -> &'static Api;
    #[cfg(feature = "build")]
    pub(crate) safe fn v2l_api_tensorrt() -> &'static Api;
    #[cfg(feature = "run")]
    pub(crate) safe fn v2l_run_api_rtx() -> &'static RunApi;
    #[cfg(feature = "run")]
    pub(crate) safe fn v2l_run_api_tensorrt() -> &'static RunApi;
}
