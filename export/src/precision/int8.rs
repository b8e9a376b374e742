//! Which matrices may be in 8 bits.

use v2l_graphs::Model;

use super::measure::{Bench, inputs_of};
use super::options::PrecisionOptions;
use super::report::Int8Report;
use super::search;
use crate::ExportError;

/// Takes matrices from `names` until the 8-bit forms of the others keep every output of every graph within the target,
/// if there is one.
pub(crate) fn fit_int8(
    component: &str,
    graphs: &[(String, Model)],
    names: &mut Vec<String>,
    block: usize,
    options: &PrecisionOptions,
) -> Result<Int8Report, ExportError> {
    let all = names.len();
    let mut report = Int8Report { block, matrices: all, left_out: 0, sensitivity: Vec::new(), unused: Vec::new() };
    let Some(target) = options.accuracy_target else { return Ok(report) };
    let (inputs, unused) = inputs_of(graphs, options)?;
    report.unused = unused;
    for ((graph, model), files) in graphs.iter().zip(inputs) {
        let name = format!("{component}/{graph}");
        let bench = Bench::new(&name, model, &[], &[], options);
        let runs = bench.reference(files, None)?;
        report.sensitivity.extend(search::fit_int8(&bench, &runs, names, block, target)?);
    }
    report.matrices = names.len();
    report.left_out = all - names.len();
    Ok(report)
}
