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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::options::CompileOptions;
    use crate::compile::testing::{Recorder, Small};

    #[test]
    fn written_puts_the_engine_into_its_place_and_says_what_it_holds() {
        let small = Small::new();
        let lowered = small.lowered(&CompileOptions::default(), &Recorder::default());
        let staged = Staged::of(lowered, &small.output(), &mut |_| {}).unwrap();
        let report = written(staged, Checks::default(), &small.output()).unwrap();
        assert_eq!((&report.component[..], report.slots, &report.graphs[..]), ("small", 2, &["g".to_owned()][..]));
        assert_eq!(report.bytes, small.output().metadata().unwrap().len());
        assert!(report.named.is_none() && report.plans.is_empty());
    }
}
