//! Whether this machine is worth OpenVINO where nobody asks for it.

use std::sync::{Mutex, PoisonError};

use v2l_openvino::Core;

use super::precision::can;
use super::probe::{Block, Machine};
use crate::options::OpenOptions;

/// OpenVINO is taken if it needs at most so much of ONNX Runtime's time.
const WORTH: f64 = 0.9;

/// What was found.
#[derive(Clone)]
pub(super) struct Verdict {
    pub(super) takes: bool,
    /// The library, and the processor; or why there is none.
    pub(super) what: String,
    /// Why, in words; nothing more to say without a library.
    pub(super) why: Option<String>,
}

/// Found once for the process, which has one library of each; asked again after a failure, as the next caller may name a
/// library.
pub(super) fn verdict(block: Block, options: &OpenOptions) -> Verdict {
    static FOUND: Mutex<[Option<Verdict>; Block::ALL.len()]> = Mutex::new([const { None }; Block::ALL.len()]);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let found = &mut found[block as usize];
    if let Some(verdict) = found {
        return verdict.clone();
    }
    match judge(block, options) {
        Ok(verdict) => found.insert(verdict).clone(),
        Err(what) => Verdict { takes: false, what, why: None },
    }
}

fn judge(block: Block, options: &OpenOptions) -> Result<Verdict, String> {
    let core = Core::open(options.openvino.library.as_deref()).map_err(|error| error.to_string())?;
    let cpu = core.device_name().map_err(|error| error.to_string())?;
    let what = format!("OpenVINO {} on {}", core.version(), cpu.trim());
    if !can(&core, block.capability()).map_err(|error| error.to_string())? {
        let why = format!("the processor has no instructions for {}", block.what());
        return Ok(Verdict { takes: false, what, why: Some(why) });
    }
    let ratio = Machine { what: what.clone(), block }.ratio(options)?;
    let takes = ratio <= WORTH;
    let not = if takes { "" } else { ", too much" };
    let why = format!("a block in {} takes {ratio:.2} of ONNX Runtime's time{}{not}", block.what(), block.against());
    Ok(Verdict { takes, what, why: Some(why) })
}
