//! Where what would be compiled leaves its source.

use std::collections::HashSet;
use std::path::Path;

use v2l_calibration::{Limits, Trace};
use v2l_graphs::passes::lower_for_ort;
use v2l_runtime::options::OpenOptions;

use crate::check::Unchecked;
use crate::check::inputs::{named_files, read_inputs};
use crate::check::locate::locate;
use crate::check::made::made_run;
use crate::check::reference::Reference;
use crate::compile::prepared::{PreparedGraph, prepare};
use crate::compile::slots::slots;
use crate::compile::weights::plan_weights;
use crate::types::from_runtime;
use crate::{CompileOptions, ExportError};

/// Compares a source graph with what would be compiled from it, block by block, then node by node in the worst block.
/// Compiled for OpenVINO, it runs there. Gives what it ran on, too.
///
/// # Errors
/// [`ExportError`] if either cannot be read or run.
pub fn debug(path: &Path, options: &CompileOptions, block_nodes: usize) -> Result<(String, Trace), ExportError> {
    let check = options.check.clone().unwrap_or_default();
    let graph = path.display().to_string();
    let PreparedGraph { read, model: mut prepared, .. } = prepare(&graph, path, None, options)?;
    let (reference, paired) = (Reference::new(path, read), HashSet::new());
    lower_for_ort(&mut prepared, &options.passes);
    let set = match &named_files(&check.inputs)?[..] {
        [(file, _)] => read_inputs(file, &reference.model.graph)?,
        [] => {
            let ort = OpenOptions { limits: Some(check.run_limits()), ..check.ort.clone() };
            let run = reference
                .session(&ort)
                .map_err(|e| e.to_string())
                .and_then(|mut session| made_run(&reference, &mut session, &check.extents, &paired, check.seed));
            run.map_err(|reason| ExportError::NotChecked(Unchecked::on_inputs(&graph, reason)))?.0
        }
        [_, (second, _), ..] => {
            let reason = "expected one file of inputs to look into, found another one".to_owned();
            return Err(ExportError::Calibration { path: second.clone(), reason });
        }
    };
    let mut models = [(graph, prepared)];
    // Marks what counts as a weight.
    slots(&mut models, None)?;
    let weights = plan_weights(models.iter().map(|(name, model)| (name, model)), options.storage, &Default::default())?;
    let stored = |name: &str| from_runtime(weights[name].dtype);
    let limits = Limits { nodes: block_nodes, ..Limits::default() };
    let trace =
        locate(&reference, &models[0].1, &stored, &set, (&check.ort, options.target.backend() == "openvino"), limits)?;
    Ok((set.label, trace))
}
