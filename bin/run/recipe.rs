//! `--recipe`: what the adapters of `--lora` were made to be sampled with.

use serde_json::json;
use v2l_cli::{AdapterArg, Output, shown};
use v2l_runtime::generator::{Followed, Generator};
use v2l_runtime::lora::adapter::recipe_of;
use v2l_runtime::request::Request;

use crate::args::{Args, RecipeChoice};

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
    for text in &args.lora {
        let given = AdapterArg::new(text)?;
        let Some(found) = recipe_of(given.path)?.filter(|_| given.strength != 0.0) else { continue };
        let Followed { taken, contradictions } = generator.follow_recipe(request, &found.recipe);
        let path = given.path.display();
        let source = found.source.to_string();
        output.event(
            "recipe",
            json!({ "path": shown(given.path), "recipe": found.recipe, "source": source, "taken": taken }),
        );
        let what = taken.to_string();
        if !what.is_empty() {
            output.note(&format!("{path}: sampled with {what}: {source}; --recipe off leaves it out"));
        }
        for contradiction in contradictions {
            output.warning(&format!("{path}: {contradiction}"));
        }
    }
    Ok(())
}
