//! Versions of the library and of its ABI.

use std::ffi::c_char;

/// Version of the ABI that this header describes, major part: programs run with libraries of the same number only.
pub const V2L_ABI_MAJOR: u32 = 1;
/// Its minor part: programs run with libraries of this number or a larger one.
pub const V2L_ABI_MINOR: u32 = 0;

/// Version of the library, such as "0.1.0"; static.
#[unsafe(no_mangle)]
pub extern "C" fn v2l_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Version of the library's ABI: V2L_ABI_MAJOR in the upper 16 bits, V2L_ABI_MINOR in the lower.
#[unsafe(no_mangle)]
pub extern "C" fn v2l_abi_version() -> u32 {
    V2L_ABI_MAJOR << 16 | V2L_ABI_MINOR
}
