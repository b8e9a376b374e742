//! Two adapters: will they disturb each other?

use std::path::Path;

use serde_json::{Value as Json, json};
use v2l_cli::heat_map::HeatMap;
use v2l_cli::{Failure, Output, shown};
use v2l_runtime::engine::manifest::slots_by_name;
use v2l_runtime::lora::algebra::{Comparison, Means, SlotOverlap, compare};
use v2l_runtime::lora::fuse::weight_norm;
use v2l_runtime::media::video::check_png;

use super::picture::legend;
use super::{Args, Given, adapter, count};

/// A table of the layers that both change, means, and the answer; with `--heat-map`, a picture of how alike they are.
pub(crate) fn show(adapters: [&Given; 2], engine: &Path, args: &Args, output: &mut Output) -> anyhow::Result<()> {
    args.heat_map.as_deref().map_or(Ok(()), check_png)?;
    let [Given { path: first, strength: a, .. }, Given { path: second, strength: b, .. }] = adapters;
    let (engine_file, [first_adapter, second_adapter]) = adapter::load_two(adapters, engine, args, output)?;
    let slots = &engine_file.manifest().slots;
    let found = compare(slots, (&first_adapter, *a), (&second_adapter, *b))?;
    if found.slots.is_empty() {
        return Err(Failure::usage(format!(
            "{} and {} have no layer in common: there is nothing to compare, and they do not disturb each other",
            first.display(),
            second.display()
        )));
    }
    let names = [first, second].map(|path| path.display().to_string());
    let width = found.slots.iter().map(|slot| slot.slot.len()).max().unwrap_or(0);
    header(&found, &names, [*a, *b], width, output);
    let by_name = slots_by_name(slots);
    for slot in &found.slots {
        let norm = by_name.get(&slot.slot[..]).map(|slot| weight_norm(&engine_file, slot)).transpose()?.flatten();
        output.result("overlap_slot", slot_fields(slot, norm), || row(slot, norm, width));
    }
    verdict(&found, output);
    args.heat_map.as_deref().map_or(Ok(()), |path| {
        let alike = found.slots.iter().map(|slot| (&slot.slot[..], slot.cosine.abs())).collect();
        let map = HeatMap::new(slots, &alike);
        map.write(path)?;
        legend(path, &map, "cosine", output);
        Ok(())
    })
}

const COLUMNS: [&str; 8] = ["slot", "ranks", "|ΔA|/|W|", "|ΔB|/|W|", "outputs", "inputs", "cosine", "norms"];

fn header(found: &Comparison, names: &[String; 2], strengths: [f32; 2], width: usize, output: &mut Output) {
    let adapters: Vec<Json> = names
        .iter()
        .zip(strengths)
        .zip(found.alone)
        .map(
            |((path, strength), alone)| json!({ "path": shown(Path::new(path)), "strength": strength, "alone": alone }),
        )
        .collect();
    output.result("overlap", json!({ "adapters": adapters, "slots": found.slots.len() }), || {
        let [a, b] = names;
        let mut lines = vec![format!("A {a}, strength {}", strengths[0]), format!("B {b}, strength {}", strengths[1])];
        let alone = found.alone.map(|n| count(n, "layer"));
        lines.push(format!(
            "  both change {}; A alone {}, B alone {}",
            count(found.slots.len(), "layer"),
            alone[0],
            alone[1]
        ));
        lines.push(line(width, &COLUMNS.map(str::to_owned)));
        lines.join("\n")
    });
}

fn slot_fields(slot: &SlotOverlap, norm: Option<f64>) -> Json {
    let mut fields = json!(slot);
    fields["weight_norm"] = json!(norm);
    fields["relative_norms"] = json!(slot.norms.map(|own| relative(own, norm)));
    fields
}

/// `‖ΔW‖ / ‖W‖`, if the weight is there and other than 0.
fn relative(own: f64, norm: Option<f64>) -> Option<f64> {
    norm.filter(|norm| *norm > 0.0).map(|norm| own / norm)
}

fn row(slot: &SlotOverlap, norm: Option<f64>, width: usize) -> String {
    let percent = |part: Option<f64>| part.map_or("-".to_owned(), |part| format!("{:.2} %", 100.0 * part));
    let of_random = |found: f64, random: f64| format!("{found:.3} ({:.1}x)", found / random.max(f64::MIN_POSITIVE));
    line(
        width,
        &[
            slot.slot.clone(),
            format!("{}/{}", slot.ranks[0], slot.ranks[1]),
            percent(relative(slot.norms[0], norm)),
            percent(relative(slot.norms[1], norm)),
            of_random(slot.output, slot.random_output),
            of_random(slot.input, slot.random_input),
            format!("{:+.3}", slot.cosine),
            format!("{:.2}", slot.norm_dispersion),
        ],
    )
}

/// A line of the table; `width` is that of the first column.
fn line(width: usize, [slot, ranks, a, b, outputs, inputs, cosine, norms]: &[String; 8]) -> String {
    format!("    {slot:<width$}  {ranks:>7}  {a:>9}  {b:>9}  {outputs:>14}  {inputs:>14}  {cosine:>7}  {norms:>6}")
}

/// Means, and the answer.
fn verdict(found: &Comparison, output: &mut Output) {
    let fields = json!({
        "shallow": found.shallow, "deep": found.deep, "modules": found.modules, "worst": found.worst,
        "disturbing": found.disturbing,
    });
    output.result("overlap_overall", fields, || {
        let means = |name: &str, means: &Means| {
            format!(
                "  {name}: {}, outputs {:.3} (random {:.3}), inputs {:.3}, |cosine| {:.3}, norms {:.2}",
                count(means.slots, "layer"),
                means.output,
                means.random_output,
                means.input,
                means.cosine,
                means.norm_dispersion
            )
        };
        let mut lines = vec![means("shallow", &found.shallow), means("deep", &found.deep)];
        lines.extend(found.modules.iter().map(|(module, found)| means(&format!("  {module}"), found)));
        if let Some(worst) = &found.worst {
            lines.push(format!("  most alike in {worst}"));
        }
        lines.push(match found.disturbing {
            true => "  they act on the same outputs in shallow blocks: expect them to disturb each other; try \
                     `v2l-run --compose orthogonal`"
                .to_owned(),
            false => "  in shallow blocks they act on different outputs: expect them to go together".to_owned(),
        });
        lines.join("\n")
    });
}
