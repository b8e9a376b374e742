//! The last stage: the engine is in its place.

use std::path::Path;

use super::report::EngineReport;
use super::staged::Staged;
use crate::ExportError;
use crate::check::Checks;

/// Puts a staged engine into its place, `output`, and says what it holds.
pub(crate) fn written(staged: Staged, checks: Checks, output: &Path) -> Result<EngineReport, ExportError> {
    let Staged { engine, typed, storage, plans, passes, .. } = staged;
    let manifest = engine.commit()?;
    Ok(EngineReport {
        component: manifest.component,
        path: output.to_owned(),
        bytes: std::fs::metadata(output).map_err(ExportError::io(output))?.len(),
        storage,
        graphs: manifest.graphs.into_iter().map(|graph| graph.name).collect(),
        slots: manifest.slots.len(),
        precision: typed.planned.map(|planned| planned.report),
        int8: typed.int8_report,
        checks,
        passes,
        named: typed.slotted.named,
        plans,
    })
}
