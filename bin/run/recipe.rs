//! `--recipe`: what the adapters of `--lora` were made to be sampled with.

use serde_json::json;
use v2l_cli::{AdapterArg, Output, shown};
use v2l_runtime::generator::{Followed, Generator};
use v2l_runtime::lora::adapter::{Recipe, recipe_of};
use v2l_runtime::request::Request;

use super::args::{Args, RecipeChoice};

/// Takes what the flags leave open from the adapters' recipes, in the order of `--lora`, and says so. Adapters of strength 0 have no say.
pub(crate) fn follow(
    args: &Args,
    request: &mut Request,
    generator: &Generator,
    output: &mut Output,
) -> anyhow::Result<()> {
    if args.recipe == RecipeChoice::Off {
        return Ok(());
    }
    let mut found = Vec::new();
    for text in &args.lora {
        let given = AdapterArg::new(text)?;
        if let Some(recipe) = recipe_of(given.path)?.filter(|_| given.strength != 0.0) {
            found.push((given.path, recipe));
        }
    }
    let recipes: Vec<&Recipe> = found.iter().map(|(_, found)| &found.recipe).collect();
    for ((path, found), followed) in found.iter().zip(generator.follow_recipes(request, &recipes)) {
        let Followed { taken, contradictions, refused } = followed;
        let (source, recipe) = (found.source.to_string(), &found.recipe);
        output.event("recipe", json!({ "path": shown(path), "recipe": recipe, "source": source, "taken": taken }));
        let what = taken.to_string();
        if !what.is_empty() {
            output.note(&format!("{}: sampled with {what}: {source}; --recipe off leaves it out", path.display()));
        }
        if let Some(reason) = refused {
            output.warning(&format!("{}: its recipe ({recipe}) is left out: {reason}", path.display()));
        }
        for contradiction in contradictions {
            output.warning(&format!("{}: {contradiction}", path.display()));
        }
    }
    Ok(())
}
