//! What survives of an adapter in an engine's storage type.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use v2l_cli::heat_map::{HeatMap, NO_SLOT, NOT_CHANGED, colour};
use v2l_cli::{Output, open_transformer, shown};
use v2l_runtime::components::{HYPERNETWORK, TRANSFORMER};
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::Engine;
use v2l_runtime::lora::adapter::{Adapter, AdapterError, AdapterFormat, detect, read_light};
use v2l_runtime::lora::fuse::{SlotReport, survival};
use v2l_runtime::media::video::check_png;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::predict;

use super::{adapter, count};

/// A table of the changed slots, all together last; with `heat_map`, the picture.
pub(crate) fn show(
    (path, strength): (&Path, f32),
    engine: &Path,
    allow_partial: bool,
    heat_map: Option<&Path>,
    output: &mut Output,
) -> anyhow::Result<()> {
    heat_map.map_or(Ok(()), check_png)?;
    let (engine, adapter) = if detect(path)? == AdapterFormat::Light {
        expand(path, engine)?
    } else {
        let engine = open_transformer(engine)?;
        let adapter = adapter::read(path, &engine, allow_partial, output)?;
        (engine, adapter)
    };
    let found = survival(&engine, &[(&adapter, strength)])?;
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
    heat_map.map_or(Ok(()), |path| {
        let map = HeatMap::new(&engine.manifest().slots, &found.report);
        map.write(path)?;
        legend(path, &map, output);
        Ok(())
    })
}

/// The transformer, and the adapter that LightLoRA tokens stand for.
fn expand(path: &Path, engine: &Path) -> anyhow::Result<(Arc<Engine>, Adapter)> {
    let light = read_light(path)?;
    let needs_predictor = || AdapterError::NeedsPredictor { path: path.to_owned() };
    if !engine.is_dir() {
        return Err(needs_predictor().into());
    }
    let options = OpenOptions::default();
    let mut directory = EngineDirectory::open(engine, options.clone())?;
    if !directory.has(HYPERNETWORK) {
        return Err(needs_predictor().into());
    }
    let mut predictor = predict::open(directory.engine(HYPERNETWORK)?, &options)?;
    let adapter = predictor.tokens().ok_or_else(needs_predictor)?.expand(&light)?;
    Ok((directory.engine(TRANSFORMER)?, adapter))
}

/// `‖ΔW‖ / ‖W‖`, if there is a weight other than 0.
fn relative(slot: &SlotReport, weight_norm: f64) -> Option<f64> {
    (weight_norm > 0.0).then(|| slot.survey.delta_norm() / weight_norm)
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
        format!("{:.3e}", slot.survey.delta_norm()),
        relative(slot, weight_norm).map_or("-".to_owned(), percent),
        percent(slot.survey.survived()),
        percent(slot.survey.relative_error()),
        percent(slot.unchanged()),
    ];
    line(width, &columns.each_ref().map(String::as_str))
}

/// A line of the table; `width` is that of the first column.
fn line(width: usize, [slot, rank, delta, relative, survived, error, unchanged]: &[&str; 7]) -> String {
    format!("    {slot:<width$}  {rank:>4}  {delta:>9}  {relative:>9}  {survived:>9}  {error:>9}  {unchanged:>9}")
}

/// What the rows, columns and colours of the picture stand for.
fn legend(path: &Path, map: &HeatMap, output: &mut Output) {
    let hex = |[r, g, b]: [u8; 3]| format!("#{r:02x}{g:02x}{b:02x}");
    let scale: Vec<(f64, String)> =
        (0..=4).map(|quarter| f64::from(quarter) / 4.0).map(|part| (part, hex(colour(part)))).collect();
    let fields = json!({
        "path": shown(path), "cell": map.cell(), "rows": map.rows, "columns": map.columns,
        "scale": scale.iter().map(|(part, colour)| json!({ "survived": part, "colour": colour })).collect::<Vec<_>>(),
        "not_changed": hex(NOT_CHANGED), "no_slot": hex(NO_SLOT),
    });
    output.result("heat_map", fields, || {
        let scale: Vec<String> = scale.iter().map(|(part, colour)| format!("{:.0} % {colour}", 100.0 * part)).collect();
        let columns: Vec<String> =
            map.columns.iter().map(|block| block.map_or("no block".to_owned(), |n| n.to_string())).collect();
        let mut lines = vec![
            format!("{}: cells of {} pixels", path.display(), map.cell()),
            format!("  survived {}; not changed {}; no slot {}", scale.join(", "), hex(NOT_CHANGED), hex(NO_SLOT)),
            format!("  columns {}", columns.join(", ")),
        ];
        lines.extend(map.rows.iter().enumerate().map(|(n, row)| format!("  row {n} {row}")));
        lines.join("\n")
    });
}
