//! Sets of adapters with strengths, and what fusing them did.

use std::sync::Arc;

use v2l_runtime::lora::Weighted;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::lora::fuse::FuseReport;

use crate::adapter::{AdapterObject, v2l_adapter};
use crate::callbacks::{Control, v2l_control};
use crate::failure::Failure;
use crate::growing::{self, growing};
use crate::handles::required;
use crate::log::{V2L_LOG_INFO, V2L_LOG_WARNING, log};
use crate::pointers::slice;

/// An adapter of a set, and how strongly it acts: ΔW = strength · (alpha / rank) · up · down.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_weighted_adapter {
    /// The adapter.
    pub adapter: *const v2l_adapter,
    /// 1 for the adapter as it was trained; any finite number will do.
    pub strength: f32,
}

/// What became of a set of adapters when it was applied.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_adapter_report {
    /// sizeof(v2l_adapter_report); set it before the call.
    pub size: usize,
    /// Slots that were changed.
    pub slots: u64,
    /// Part of the update that survives rounding to the type that the weights are held in; 1 for nothing lost.
    pub survived: f64,
    /// Norm of what rounding did to the update, over the norm of the update.
    pub relative_error: f64,
    /// Part of the changed slots' weights that came out as they were.
    pub unchanged: f64,
}

growing!(
    v2l_adapter_report,
    Self { size: size_of::<Self>(), slots: 0, survived: 1.0, relative_error: 0.0, unchanged: 0.0 }
);

/// Adapters that a session or pipeline applies; equal sets are those of the same handles and strengths.
#[derive(Clone, Default)]
pub(crate) struct Applied(Vec<(Arc<AdapterObject>, f32)>);

impl PartialEq for Applied {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.0.iter().zip(&other.0);
        self.0.len() == other.0.len() && pairs.all(|((a, s), (b, t))| Arc::ptr_eq(a, b) && s.to_bits() == t.to_bits())
    }
}

impl Applied {
    /// # Safety
    /// The header's promise.
    pub(crate) unsafe fn new(adapters: *const v2l_weighted_adapter, count: usize) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        let adapters = unsafe { slice(adapters, count, "adapters") }?;
        let read = |(at, given): (usize, &v2l_weighted_adapter)| {
            // SAFETY: the caller's promise.
            let adapter = unsafe { required(given.adapter, &format!("adapters[{at}].adapter")) }?;
            if !given.strength.is_finite() {
                let found = given.strength;
                return Err(Failure::argument(format!("adapters[{at}].strength is {found}; expected a finite number")));
            }
            Ok((Arc::clone(&adapter.0), given.strength))
        };
        Ok(Self(adapters.iter().enumerate().map(read).collect::<Result<_, _>>()?))
    }

    /// As the call's options have it: none given leaves the set as it is.
    ///
    /// # Safety
    /// The header's promise.
    pub(crate) unsafe fn given(adapters: *const v2l_weighted_adapter, count: usize) -> Result<Option<Self>, Failure> {
        match (adapters.is_null(), count) {
            (true, 0) => Ok(None),
            // SAFETY: the caller's promise.
            _ => unsafe { Self::new(adapters, count) }.map(Some),
        }
    }

    /// For the runtime to keep; the updates are shared.
    pub(crate) fn shared(&self) -> Vec<Weighted> {
        self.0.iter().map(|(loaded, strength)| (Arc::new(loaded.adapter().clone()), *strength)).collect()
    }

    pub(crate) fn borrowed(&self) -> Vec<(&Adapter, f32)> {
        self.0.iter().map(|(loaded, strength)| (loaded.adapter(), *strength)).collect()
    }

    /// Slots that the set changes.
    pub(crate) fn slots(&self) -> usize {
        let slots: std::collections::HashSet<&String> =
            self.0.iter().flat_map(|(loaded, _)| loaded.adapter().layers.keys()).collect();
        slots.len()
    }
}

/// What is said of adapters in low-rank branches, where nothing is rounded.
pub(crate) fn branch_report(slots: usize) -> v2l_adapter_report {
    v2l_adapter_report { slots: slots as u64, ..growing::Growing::initial() }
}

/// Replaces adapters by those of a call, as `apply` does it, and says in `report`, unless it is NULL, what became of them.
///
/// # Safety
/// The header's promise, for all four pointers.
pub(crate) unsafe fn replace(
    adapters: *const v2l_weighted_adapter,
    count: usize,
    control: *const v2l_control,
    report: *mut v2l_adapter_report,
    apply: impl FnOnce(Applied, &Control) -> Result<v2l_adapter_report, Failure>,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let (applied, control) = unsafe { (Applied::new(adapters, count)?, Control::new(control)?) };
    if !report.is_null() {
        // SAFETY: as above. A size that is wrong is found before anything changes.
        unsafe { growing::write(report, growing::Growing::initial()) }?;
    }
    let found = apply(applied, &control)?;
    if !report.is_null() {
        // SAFETY: as above.
        unsafe { growing::write(report, found) }?;
    }
    Ok(())
}

/// What is said of a fuse, to the caller and to the log.
pub(crate) fn fuse_report(report: &FuseReport) -> v2l_adapter_report {
    let overall = report.overall();
    let (slots, norm) = (report.slots.len() as u64, overall.rounding.norm);
    // Nothing survives of an update of zero.
    let survived = if slots > 0 && norm == 0.0 { 0.0 } else { overall.rounding.survived() };
    if slots > 0 && norm > 0.0 {
        log(V2L_LOG_INFO, &format!("fused {slots} slots: {:.1} % of the update survives rounding", 100.0 * survived));
    }
    let cache = [("is not used, but made again", &report.passed_over), ("cannot be kept", &report.not_kept)];
    for (what, reason) in cache {
        if let Some(reason) = reason {
            log(V2L_LOG_WARNING, &format!("an entry of the cache of fused weights {what}: {reason}"));
        }
    }
    if let Some(warning) = report.warning() {
        log(V2L_LOG_WARNING, &warning);
    }
    let (relative_error, unchanged) = (overall.rounding.relative_error(), overall.unchanged());
    v2l_adapter_report { size: size_of::<v2l_adapter_report>(), slots, survived, relative_error, unchanged }
}
