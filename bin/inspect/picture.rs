//! What is said of a picture of all slots.

use std::path::Path;

use serde_json::json;
use v2l_cli::heat_map::{HeatMap, NO_SLOT, NOT_CHANGED, colour};
use v2l_cli::{Output, shown};

/// Says what the rows, columns and colours stand for; `what` has the colours.
pub(crate) fn legend(path: &Path, map: &HeatMap, what: &str, output: &mut Output) {
    let hex = |[r, g, b]: [u8; 3]| format!("#{r:02x}{g:02x}{b:02x}");
    let scale: Vec<(f64, String)> =
        (0..=4).map(|quarter| f64::from(quarter) / 4.0).map(|part| (part, hex(colour(part)))).collect();
    let fields = json!({
        "path": shown(path), "cell": map.cell(), "rows": map.rows, "columns": map.columns,
        "scale": scale.iter().map(|(part, colour)| json!({ what: part, "colour": colour })).collect::<Vec<_>>(),
        "not_changed": hex(NOT_CHANGED), "no_slot": hex(NO_SLOT),
    });
    output.result("heat_map", fields, || {
        let scale: Vec<String> = scale.iter().map(|(part, colour)| format!("{:.0} % {colour}", 100.0 * part)).collect();
        let columns: Vec<String> =
            map.columns.iter().map(|block| block.map_or("no block".to_owned(), |n| n.to_string())).collect();
        let mut lines = vec![
            format!("{}: cells of {} pixels", path.display(), map.cell()),
            format!("  {what} {}; not changed {}; no slot {}", scale.join(", "), hex(NOT_CHANGED), hex(NO_SLOT)),
            format!("  columns {}", columns.join(", ")),
        ];
        lines.extend(map.rows.iter().enumerate().map(|(n, row)| format!("  row {n} {row}")));
        lines.join("\n")
    });
}
