//! `--effect`: an adapter from a prompt, by the predictor of the engine directory.

use serde_json::json;
use v2l_cli::{Failure, Output, split_strength};
use v2l_runtime::generator::{Generator, PredictOptions};
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::lora::algebra::recompress;
use v2l_runtime::predict::{Source, TEXT_HIDDEN, TEXT_MASK};
use v2l_runtime::tensor::NamedTensors;

use super::adapters;
use super::args::Args;
use super::generate::{Listener, say_decisions};
use super::vae::read_checked;

/// The adapter of all `--effect` and `--effect-embeds`, if there are any; saved where `--save-lora` says.
pub(crate) fn predict(args: &Args, generator: &mut Generator, output: &mut Output) -> anyhow::Result<Option<Adapter>> {
    if !args.has_effect() {
        return match args.effect_rank {
            Some(_) => Err(Failure::usage("--effect-rank is for --effect; leave it out")),
            None => Ok(None),
        };
    }
    let given = given(args)?;
    let sources: Vec<(Source<'_>, f32)> = given
        .iter()
        .map(|(prompt, tensors, weight)| {
            (Source { prompt: *prompt, tensors: tensors.as_ref(), ..Source::default() }, *weight)
        })
        .collect();
    let mut prediction = generator.predict_blend(&sources, &PredictOptions::default(), &mut Listener::new(output))?;
    output.finish();
    adapters::cached(&prediction, "this effect was kept: the predictor does", output);
    if let Some(rank) = args.effect_rank {
        let (adapter, kept) = recompress(&prediction.adapter, rank as usize)?;
        prediction.adapter = adapter;
        output.event("recompressed", json!({ "rank": rank, "energy": kept }));
        output.note(&format!("rank {rank} keeps {:.2} % of the square of the update's norm", 100.0 * kept));
    }
    if let Some(path) = &args.save_lora {
        let format = args.adapter_format();
        say_decisions(&prediction.decisions, output);
        prediction.save(path, format)?;
        adapters::saved(path, format, &prediction.adapter, output);
    }
    Ok(Some(prediction.adapter))
}

/// A text, embeddings in its place, and a weight.
type Effect<'a> = (Option<&'a str>, Option<NamedTensors>, f32);

/// Every effect, as the flags pair texts and files.
fn given(args: &Args) -> anyhow::Result<Vec<Effect<'_>>> {
    let texts = args.effect.iter().map(|text| split_effect(text)).collect::<anyhow::Result<Vec<_>>>()?;
    if args.effect_embeds.is_empty() {
        return Ok(texts.into_iter().map(|(text, weight)| (Some(text), None, weight)).collect());
    }
    if !texts.is_empty() && texts.len() != args.effect_embeds.len() {
        return Err(Failure::usage(format!(
            "--effect is given {} times and --effect-embeds {} times; expected one file for each text, or files alone",
            texts.len(),
            args.effect_embeds.len()
        )));
    }
    let mut found = Vec::with_capacity(args.effect_embeds.len());
    for (at, file) in args.effect_embeds.iter().enumerate() {
        let (path, own) = split_strength(file)?;
        let (text, weight) = texts.get(at).map_or((None, 1.0), |(text, weight)| (Some(*text), *weight));
        // The file may hold more: what the transformer takes, say.
        let mut tensors = read_checked(path)?;
        tensors.retain(|name, _| [TEXT_HIDDEN, TEXT_MASK].contains(&&**name));
        if !tensors.contains_key(TEXT_HIDDEN) {
            return Err(Failure::usage(format!("{}: there is no tensor `{TEXT_HIDDEN}`", path.display())));
        }
        found.push((text, Some(tensors), weight * own));
    }
    Ok(found)
}

/// Splits `TEXT[=STRENGTH]`: what is behind the last `=` is a strength if it is a number.
fn split_effect(argument: &str) -> anyhow::Result<(&str, f32)> {
    let number = argument.rsplit_once('=').and_then(|(text, number)| Some((text, number.trim().parse::<f32>().ok()?)));
    match number {
        Some((_, strength)) if !strength.is_finite() => {
            Err(Failure::usage(format!("--effect {argument}: strength `{strength}` is not a finite number")))
        }
        Some(found) => Ok(found),
        None => Ok((argument, 1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::split_effect;

    #[test]
    fn strength_is_split_off_texts_that_end_in_a_number() {
        for (given, expected) in [
            ("melt=0.5", ("melt", 0.5)),
            ("melt", ("melt", 1.0)),
            ("a=b", ("a=b", 1.0)),
            ("a=b=-2", ("a=b", -2.0)),
            ("melt=", ("melt=", 1.0)),
        ] {
            assert_eq!(split_effect(given).unwrap(), expected);
        }
        assert!(split_effect("melt=inf").unwrap_err().to_string().contains("not a finite number"));
    }
}
