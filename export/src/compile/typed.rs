//! The third stage: in which type each node computes, and which matrices are stored in 8 bits.

use v2l_graphs::{DataType, Model};
use v2l_runtime::components::HYPERNETWORK;

use super::int8::Int8;
use super::options::CompileOptions;
use super::slotted::Slotted;
use super::targets::target::GraphCompiler;
use super::weights::source_type;
use crate::precision::{Int8Report, Planned, PrecisionOptions, PrecisionReport, plan_component};
use crate::types::from_runtime;
use crate::{ExportError, Progress};

/// A component whose nodes have types.
pub(crate) struct Typed {
    pub(crate) slotted: Slotted,
    pub(crate) int8: Int8,
    pub(crate) int8_report: Option<Int8Report>,
    /// The precision plan; `None`: all in f32.
    pub(crate) planned: Option<Planned>,
}

impl Typed {
    /// Measures and plans, as far as anything is asked for; `target` says what is planned where nothing is.
    pub(crate) fn of(
        slotted: Slotted,
        options: &CompileOptions,
        target: &dyn GraphCompiler,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ExportError> {
        let (component, models) = (&slotted.prepared.component, &slotted.prepared.models);
        // A predictor's tensors are read by name, and what it predicts is what 8 bits would be corrected with.
        let int8_block = options.int8.filter(|_| component != HYPERNETWORK);
        let asked = options.precision.request.is_some() || options.precision.plan.is_some();
        let measures = if int8_block.is_some() { options.precision.accuracy_target.is_some() } else { asked };
        if measures {
            progress(Progress::Calibrating { name: component });
        }
        let precision = precision_options(models, options, target);
        let mut int8 = int8_block.map_or_else(Int8::default, |block| {
            Int8::new(block, &slotted.slots, models.iter().chain(&slotted.branches))
        });
        let int8_report = match int8.is_used() {
            true => Some(int8.fit(component, models, &precision)?),
            false => None,
        };
        let planned = match int8_block {
            Some(_) => None,
            None => plan_component(component, models, slotted.layers(), &precision, options.check.as_ref())?,
        };
        Ok(Self { slotted, int8, int8_report, planned })
    }

    /// The calibration files that no graph of the component uses, if it was calibrated.
    pub(crate) fn unused(&self) -> Option<&crate::check::inputs::Unused> {
        unused(self.planned.as_ref().map(|planned| &planned.report), self.int8_report.as_ref())
    }
}

/// The calibration files that no graph of a component uses, if it was calibrated.
pub(super) fn unused<'a>(
    precision: Option<&'a PrecisionReport>,
    int8: Option<&'a Int8Report>,
) -> Option<&'a crate::check::inputs::Unused> {
    precision.map(|report| &report.unused).or(int8.map(|report| &report.unused))
}

/// How to decide types: as is asked for, else as the target computes over weights in the type that they are stored in.
fn precision_options(
    models: &[(String, Model)],
    options: &CompileOptions,
    target: &dyn GraphCompiler,
) -> PrecisionOptions {
    let mut precision = options.precision.clone();
    if precision.request.is_none() && precision.plan.is_none() {
        let stored: DataType = options.storage.map_or_else(|| source_type(models), from_runtime);
        precision.request = target.native_types(stored);
    }
    precision
}

#[cfg(test)]
mod tests {
    use v2l_calibration::Request;

    use super::*;
    use crate::compile::testing::{Recorder, Small};

    fn options(request: Option<Request>) -> CompileOptions {
        let precision = PrecisionOptions { request, rules_only: true, ..PrecisionOptions::default() };
        CompileOptions { precision, ..CompileOptions::default() }
    }

    #[test]
    fn typed_plans_what_is_asked_for_before_what_the_target_computes_in() {
        let small = Small::new();
        for (asked, native, expected) in [
            (None, None, None),
            (None, Some(Request::Bf16), Some(DataType::Bfloat16)),
            (Some(Request::Fp16), Some(Request::Bf16), Some(DataType::Float16)),
        ] {
            let typed = small.typed(&options(asked), &Recorder { native, ..Recorder::default() });
            let found = typed.planned.map(|planned| planned.types["g"].clone());
            assert_eq!(found, expected.map(|ty| vec![ty; 2]), "{asked:?} {native:?}");
        }
    }

    #[test]
    fn typed_plans_no_types_over_matrices_in_8_bits() {
        let small = Small::new();
        let eight = CompileOptions { int8: Some(32), ..options(None) };
        let typed = small.typed(&eight, &Recorder::default());
        // Four inputs are fewer than a block.
        assert!(!typed.int8.is_used() && typed.planned.is_none() && typed.int8_report.is_none());
    }
}
