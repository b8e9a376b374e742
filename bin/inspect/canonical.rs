//! The sum of adapters in singular values.

use std::path::Path;

use serde_json::json;
use v2l_cli::{Output, shown};
use v2l_runtime::lora::adapter::{AdapterFormat, write_adapter};
use v2l_runtime::lora::algebra::{Canonical, merge, recompress};

use super::{Args, Given, adapter, count};

/// Values that are printed of a layer; `--json` has all.
const SHOWN: usize = 6;

/// A line of singular values for each layer; `--save-lora` keeps the sum, brought to `--rank`.
pub(crate) fn show(paths: &[Given], engine: &Path, args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let mut adapters = Vec::with_capacity(paths.len());
    for given in paths {
        adapters.push((adapter::load_whole(given, engine, args, output)?, given.strength));
    }
    let borrowed: Vec<_> = adapters.iter().map(|(adapter, strength)| (adapter, *strength)).collect();
    let name = paths.iter().map(|given| given.path.display().to_string()).collect::<Vec<_>>().join(" + ");
    let sum = merge(&name, &borrowed)?;
    let rank = args.rank.map(usize::from);
    output.result("canonical", json!({ "slots": sum.layers.len(), "rank": rank }), || {
        format!("  singular values of {}, largest first", count(sum.layers.len(), "layer"))
    });
    let width = sum.layers.keys().map(String::len).max().unwrap_or(0);
    for (slot, update) in &sum.layers {
        let found = Canonical::of(update, &sum.name, slot)?;
        let kept = rank.map(|rank| found.energy(rank));
        let fields = json!({
            "slot": slot, "rank": update.rank(), "numerical_rank": found.numerical_rank(), "norm": found.norm(),
            "values": found.values, "kept": kept,
        });
        output.result("canonical_slot", fields, || {
            let values: Vec<String> = found.values.iter().take(SHOWN).map(|value| format!("{value:.3e}")).collect();
            let more = if found.values.len() > SHOWN { " …" } else { "" };
            let kept = kept.map_or(String::new(), |kept| format!("  kept {:.2} %", 100.0 * kept));
            format!(
                "    {slot:<width$}  rank {} of {}{kept}  {}{more}",
                found.numerical_rank(),
                update.rank(),
                values.join(" ")
            )
        });
    }
    let (canonical, kept) = recompress(&sum, rank.unwrap_or(usize::MAX))?;
    if let Some(rank) = rank {
        output.result("recompressed", json!({ "rank": rank, "kept": kept }), || {
            format!("  rank {rank} keeps {:.3} % of the square of the norm", 100.0 * kept)
        });
    }
    if let Some(path) = &args.save_lora {
        let format = AdapterFormat::from(args.lora_format);
        write_adapter(path, &canonical, format)?;
        let fields = json!({ "path": shown(path), "format": format, "layers": canonical.layers.len() });
        output.result("adapter", fields, || {
            format!("{}: {}, {}", path.display(), count(canonical.layers.len(), "layer"), format.name())
        });
    }
    Ok(())
}
