//! What survives of an adapter in an engine's storage type.

use std::path::Path;

use serde_json::{Value as Json, json};
use v2l_cli::Output;
use v2l_cli::heat_map::HeatMap;
use v2l_runtime::lora::fuse::{SlotReport, survival};
use v2l_runtime::media::video::check_png;

use super::picture::legend;
use super::{Args, Given, adapter, count};

/// A table of the changed slots, all together last; with `--heat-map`, the picture.
pub(crate) fn show(given: &Given, engine: &Path, args: &Args, output: &mut Output) -> anyhow::Result<()> {
    args.heat_map.as_deref().map_or(Ok(()), check_png)?;
    let (engine, adapter) = adapter::load(given, engine, args, output)?;
    let strength = &given.strength;
    let found = survival(&engine, &[(&adapter, *strength)])?;
    let (overall, storage) = (found.report.overall(), engine.manifest().storage);
    let slots = || found.report.slots.iter().zip(&found.weight_norms);
    let width = slots().map(|(slot, _)| slot.slot.len()).chain([overall.slot.len()]).max().unwrap_or(0);
    let changed = found.report.slots.len();
    let header = json!({ "slots": changed, "strength": strength, "storage": storage });
    output.result("survival", header, || {
        let columns = ["slot", "rank", "|ΔW|", "|ΔW|/|W|", "survived", "error", "unchanged"];
        let changed = count(changed, "slot");
        format!(
            "  survival of {changed} at strength {strength}, fused in the storage type, {storage}\n{}",
            line(width, &columns)
        )
    });
    for (slot, &norm) in slots() {
        output.result("survival_slot", fields(slot, norm), || row(slot, norm, width));
    }
    let norm = found.overall_norm();
    output.result("survival_overall", fields(&overall, norm), || row(&overall, norm, width));
    if let Some(warning) = found.report.warning() {
        output.warning(&warning);
    }
    args.heat_map.as_deref().map_or(Ok(()), |path| {
        let survived = found.report.slots.iter().map(|slot| (&slot.slot[..], slot.rounding.survived())).collect();
        let map = HeatMap::new(&engine.manifest().slots, &survived);
        map.write(path)?;
        legend(path, &map, "survived", output);
        Ok(())
    })
}

/// `‖ΔW‖ / ‖W‖`, if there is a weight other than 0.
fn relative(slot: &SlotReport, weight_norm: f64) -> Option<f64> {
    (weight_norm > 0.0).then(|| slot.rounding.delta_norm() / weight_norm)
}

fn fields(slot: &SlotReport, weight_norm: f64) -> Json {
    let mut fields = json!(slot);
    fields["weight_norm"] = weight_norm.into();
    fields["relative_norm"] = json!(relative(slot, weight_norm));
    fields
}

fn row(slot: &SlotReport, weight_norm: f64, width: usize) -> String {
    let percent = |part: f64| format!("{:.2} %", 100.0 * part);
    let columns = [
        slot.slot.clone(),
        slot.rank.to_string(),
        format!("{:.3e}", slot.rounding.delta_norm()),
        relative(slot, weight_norm).map_or("-".to_owned(), percent),
        if slot.rounding.norm > 0.0 { percent(slot.rounding.survived()) } else { "-".to_owned() },
        percent(slot.rounding.relative_error()),
        percent(slot.unchanged()),
    ];
    line(width, &columns.each_ref().map(String::as_str))
}

/// A line of the table; `width` is that of the first column.
fn line(width: usize, [slot, rank, delta, relative, survived, error, unchanged]: &[&str; 7]) -> String {
    format!("    {slot:<width$}  {rank:>4}  {delta:>9}  {relative:>9}  {survived:>9}  {error:>9}  {unchanged:>9}")
}
