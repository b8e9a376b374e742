//! Recipes of adapters, brought into a request.

use super::Generator;
use crate::components::TRANSFORMER_2;
use crate::lora::adapter::Recipe;
use crate::pipeline::Request;

/// What became of a recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// What the request takes from it.
    pub taken: Recipe,
    /// What the request says otherwise, and what will look wrong, each a sentence.
    pub contradictions: Vec<String>,
}

impl Generator {
    /// Takes what a request leaves open from the recipe of an adapter. What the request says stays, and is compared with the recipe. What
    /// only a model with two transformers has is passed over for any other.
    pub fn follow_recipe(&self, request: &mut Request, recipe: &Recipe) -> Followed {
        let two = self.directory.has(TRANSFORMER_2);
        let mut recipe = recipe.clone();
        if !two {
            (recipe.guidance_scale_2, recipe.boundary_ratio) = (None, None);
        }
        follow(request, &recipe)
    }
}

/// What more or fewer steps, and other settings than a distillation's, do to the picture.
const STEPS: &str = "more steps make it harsh and over-saturated, fewer leave noise";
const GUIDANCE: &str = "guidance on top of a distillation burns colours, and takes twice the time";
const LEVELS: &str = "the steps then fall on noise levels that it was not trained for, which blurs or leaves noise";
const BOUNDARY: &str = "a transformer then makes steps that its part of the adapter was not trained for";

fn follow(request: &mut Request, recipe: &Recipe) -> Followed {
    let mut followed = Followed::default();
    let Followed { taken, contradictions } = &mut followed;
    let mut say = |what: &str, asked: String, made: String, then: &str| {
        contradictions.push(format!("{what} {asked} is asked for, the adapter was made for {made}: {then}"));
    };
    match (request.num_inference_steps, recipe.num_inference_steps) {
        (None, made) => (request.num_inference_steps, taken.num_inference_steps) = (made, made),
        (Some(asked), Some(made)) if asked != made => say("steps:", asked.to_string(), made.to_string(), STEPS),
        _ => {}
    }
    match (&request.scheduler, &recipe.scheduler) {
        (None, made) => (request.scheduler, taken.scheduler) = (made.clone(), made.clone()),
        (Some(asked), Some(made)) if asked != made => say("scheduler", asked.clone(), made.clone(), LEVELS),
        _ => {}
    }
    let guidance = request.guidance_scale;
    let numbers = [
        ("shift", &mut request.shift, recipe.shift, &mut taken.shift, LEVELS),
        ("guidance", &mut request.guidance_scale, recipe.guidance_scale, &mut taken.guidance_scale, GUIDANCE),
        // A request for one guidance is for both.
        (
            "guidance 2",
            &mut request.guidance_scale_2,
            recipe.guidance_scale_2.filter(|_| guidance.is_none()),
            &mut taken.guidance_scale_2,
            GUIDANCE,
        ),
        ("boundary", &mut request.boundary_ratio, recipe.boundary_ratio, &mut taken.boundary_ratio, BOUNDARY),
    ];
    for (what, asked, made, taken, then) in numbers {
        match (*asked, made) {
            (None, made) => (*asked, *taken) = (made, made),
            (Some(asked), Some(made)) if asked != made => say(what, asked.to_string(), made.to_string(), then),
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

    #[test]
    fn follow_fills_what_is_open_and_says_what_contradicts() {
        let mut open = Request::new("a");
        let followed = follow(&mut open, &recipe());
        assert_eq!((followed.taken, followed.contradictions.len()), (recipe(), 0));
        assert_eq!((open.num_inference_steps, open.guidance_scale, open.shift), (Some(4), Some(1.0), Some(5.0)));

        let mut asked =
            Request { num_inference_steps: Some(30), guidance_scale: Some(5.0), shift: Some(5.0), ..Request::new("a") };
        let followed = follow(&mut asked, &recipe());
        assert_eq!(followed.taken, Recipe { scheduler: recipe().scheduler, ..Recipe::default() });
        assert_eq!(asked.num_inference_steps, Some(30));
        assert_eq!(followed.contradictions.len(), 2);
        assert!(followed.contradictions[0].contains("30 is asked for, the adapter was made for 4"));
        assert!(followed.contradictions[1].contains("burns colours"));
    }
}
