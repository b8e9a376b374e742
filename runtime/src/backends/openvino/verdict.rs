//! Whether this machine is worth OpenVINO where nobody asks for it.

use std::sync::{Mutex, PoisonError};

use v2l_openvino::Core;

use super::precision::has_bf16;
use super::probe::Machine;
use crate::options::OpenOptions;

/// OpenVINO is taken if it needs at most so much of ONNX Runtime's time.
const WORTH: f64 = 0.9;

/// What was found, and why, in words.
#[derive(Clone)]
pub(super) struct Verdict {
    pub(super) takes: bool,
    pub(super) why: String,
}

/// Found once for the process, which has one library of each; asked again after a failure, as the next caller may name a
/// library.
pub(super) fn verdict(options: &OpenOptions) -> Verdict {
    static FOUND: Mutex<Option<Verdict>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(verdict) = &*found {
        return verdict.clone();
    }
    match judge(options) {
        Ok(verdict) => found.insert(verdict).clone(),
        Err(why) => Verdict { takes: false, why },
    }
}

fn judge(options: &OpenOptions) -> Result<Verdict, String> {
    let core = Core::open(options.openvino.library.as_deref()).map_err(|error| error.to_string())?;
    let cpu = core.device_name().map_err(|error| error.to_string())?;
    let what = format!("OpenVINO {} on {}", core.version(), cpu.trim());
    if !has_bf16(&core).map_err(|error| error.to_string())? {
        return Ok(Verdict { takes: false, why: format!("{what}, which has no instructions for bfloat16") });
    }
    let ratio = Machine { what: what.clone() }.ratio(&core, options)?;
    let why = format!("{what}: a block in bfloat16 takes {ratio:.2} of ONNX Runtime's time in float32");
    Ok(Verdict { takes: ratio <= WORTH, why })
}
