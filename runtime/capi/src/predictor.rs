//! The predictor of an engine directory.

use std::ffi::c_char;
use std::path::PathBuf;

use v2l_runtime::components::{HYPERNETWORK, VAE_ENCODER};
use v2l_runtime::generator::Generator;

use crate::engine::{Opening, v2l_open_options};
use crate::failure::{free, guard};
use crate::pointers::{Out, path};
use crate::serial::Serial;
use crate::status::v2l_status;

/// The autoencoder and the hypernetwork of an engine directory.
pub struct v2l_predictor {
    pub(crate) state: Serial<Generator>,
    pub(crate) ffmpeg: Option<PathBuf>,
}

/// Opens the predictor of an engine directory. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_new(
    directory: *const c_char,
    options: *const v2l_open_options,
    predictor: *mut *mut v2l_predictor,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, folder, opening) =
            unsafe { (Out::handle(predictor, "predictor")?, path(directory, "directory")?, Opening::new(options)?) };
        let mut generator = Generator::without_text(folder, &opening.options)?;
        if opening.verify_hashes {
            generator.verify_hashes(Some(&[VAE_ENCODER, HYPERNETWORK]))?;
        }
        generator.open_predictor()?;
        out.give(v2l_predictor { state: Serial::new(generator), ffmpeg: opening.options.ffmpeg });
        Ok(())
    })
}

/// Frees the predictor; adapters stay. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_free(predictor: *mut v2l_predictor) {
    // SAFETY: the header's promise.
    unsafe { free(predictor) }
}
