//! Recipes of adapters, brought into a request.

use super::Generator;
use crate::components::TRANSFORMER_2;
use crate::lora::adapter::Recipe;
use crate::pipeline::Request;
use crate::schedulers::same_sampler;

/// What became of a recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// What the request takes from it.
    pub taken: Recipe,
    /// What the request, or an earlier recipe, says otherwise, and what will look wrong, each a sentence.
    pub contradictions: Vec<String>,
    /// Why nothing is taken, if this model cannot do what the recipe says.
    pub refused: Option<String>,
}

impl Generator {
    /// Takes what a request leaves open from the recipes of adapters; of several, the first that says something decides. What the request
    /// says stays, and is compared with each recipe. What only a model with two transformers has is passed over for any other. Nothing is taken
    /// of a recipe with which this model would refuse the request.
    pub fn follow_recipes(&self, request: &mut Request, recipes: &[&Recipe]) -> Vec<Followed> {
        let two = self.directory.has(TRANSFORMER_2);
        let asked = request.clone();
        let one = |recipe: &&Recipe| {
            let mut recipe = (*recipe).clone();
            if !two {
                (recipe.guidance_scale_2, recipe.boundary_ratio) = (None, None);
            }
            let mut with = request.clone();
            let followed = follow(&asked, &mut with, &recipe);
            let tried = |request: &Request| self.pipeline.resolve(request, &mut ());
            match (tried(request), tried(&with)) {
                (Ok(_), Err(error)) => Followed { refused: Some(error.to_string()), ..Followed::default() },
                _ => {
                    *request = with;
                    followed
                }
            }
        };
        recipes.iter().map(one).collect()
    }
}

/// What other settings than those that an adapter was made for do to the picture.
const STEPS: &str = "more steps make a distillation harsh and over-saturated, fewer leave noise";
const MORE_GUIDANCE: &str = "more guidance burns colours";
const LESS_GUIDANCE: &str = "less guidance makes the prompt count for less";
const LEVELS: &str = "the steps then fall on noise levels that it was not trained for, which blurs or leaves noise";
const BOUNDARY: &str = "a transformer then makes steps that its part of the adapter was not trained for";

/// Fills what `request` leaves open; `asked` is what it said before any recipe.
fn follow(asked: &Request, request: &mut Request, recipe: &Recipe) -> Followed {
    let mut followed = Followed::default();
    let Followed { taken, contradictions, .. } = &mut followed;
    let mut say = |what: &str, found: String, own: bool, made: String, then: &str| {
        let who = if own { "is asked for" } else { "is another adapter's recipe" };
        contradictions.push(format!("{what} {found} {who}, this adapter was made for {made}: {then}"));
    };
    match (request.num_inference_steps, recipe.num_inference_steps) {
        (None, made) => (request.num_inference_steps, taken.num_inference_steps) = (made, made),
        (Some(found), Some(made)) if found != made => {
            say("steps:", found.to_string(), asked.num_inference_steps.is_some(), made.to_string(), STEPS);
        }
        _ => {}
    }
    match (&request.scheduler, &recipe.scheduler) {
        (None, made) => (request.scheduler, taken.scheduler) = (made.clone(), made.clone()),
        (Some(found), Some(made)) if !same_sampler(found, made) => {
            say("scheduler", found.clone(), asked.scheduler.is_some(), made.clone(), LEVELS);
        }
        _ => {}
    }
    let (first, made_first) = (asked.guidance_scale, recipe.guidance_scale);
    // A request for one guidance is for both, and so is a recipe for one where the request names the second.
    let made_second = recipe.guidance_scale_2.filter(|_| first.is_none());
    let made_second = made_second.or(made_first.filter(|_| asked.guidance_scale_2.is_some()));
    let numbers = [
        ("shift", asked.shift, &mut request.shift, recipe.shift, &mut taken.shift),
        ("guidance", first, &mut request.guidance_scale, made_first, &mut taken.guidance_scale),
        ("guidance 2", asked.guidance_scale_2, &mut request.guidance_scale_2, made_second, &mut taken.guidance_scale_2),
        (
            "boundary",
            asked.boundary_ratio,
            &mut request.boundary_ratio,
            recipe.boundary_ratio,
            &mut taken.boundary_ratio,
        ),
    ];
    for (what, own, found, made, taken) in numbers {
        match (*found, made) {
            (None, made) => (*found, *taken) = (made, made),
            (Some(found), Some(made)) if found != made => {
                let then = match what {
                    "shift" => LEVELS,
                    "boundary" => BOUNDARY,
                    _ if found > made => MORE_GUIDANCE,
                    _ => LESS_GUIDANCE,
                };
                say(what, found.to_string(), own.is_some(), made.to_string(), then);
            }
            _ => {}
        }
    }
    followed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            num_inference_steps: Some(4),
            scheduler: Some("euler_simple".to_owned()),
            shift: Some(5.0),
            guidance_scale: Some(1.0),
            ..Recipe::default()
        }
    }

    fn followed(asked: &Request, recipe: &Recipe) -> (Request, Followed) {
        let mut request = asked.clone();
        let followed = follow(asked, &mut request, recipe);
        (request, followed)
    }

    #[test]
    fn follow_fills_what_is_open_and_says_what_contradicts() {
        let (open, found) = followed(&Request::new("a"), &recipe());
        assert_eq!((found.taken, found.contradictions.len()), (recipe(), 0));
        assert_eq!((open.num_inference_steps, open.guidance_scale, open.shift), (Some(4), Some(1.0), Some(5.0)));

        let asked = Request {
            num_inference_steps: Some(30),
            guidance_scale: Some(5.0),
            guidance_scale_2: Some(4.0),
            shift: Some(5.0),
            ..Request::new("a")
        };
        let (request, found) = followed(&asked, &recipe());
        assert_eq!(found.taken, Recipe { scheduler: recipe().scheduler, ..Recipe::default() });
        assert_eq!(request.num_inference_steps, Some(30));
        let said = found.contradictions;
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("30 is asked for, this adapter was made for 4"), "{said:?}");
        assert!(said[1].contains("burns colours") && said[2].starts_with("guidance 2 4 is asked for"), "{said:?}");
    }

    #[test]
    fn follow_knows_who_said_what_and_schedulers_by_either_name() {
        let asked = Request::new("a");
        let mut request = asked.clone();
        follow(&asked, &mut request, &recipe());
        let later = Recipe { num_inference_steps: Some(8), guidance_scale: Some(2.0), ..Recipe::default() };
        let said = follow(&asked, &mut request, &later).contradictions;
        assert!(said[0].contains("4 is another adapter's recipe") && said[1].contains("count for less"), "{said:?}");
        let named = Request { scheduler: Some("euler".to_owned()), ..Request::new("a") };
        let class = Recipe { scheduler: Some("FlowMatchEulerDiscreteScheduler".to_owned()), ..Recipe::default() };
        assert_eq!(followed(&named, &class).1, Followed::default());
    }
}
