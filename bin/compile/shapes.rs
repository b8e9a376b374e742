//! Shapes on the command line, as trtexec writes them.

use clap::Args;
use indexmap::IndexMap;
use v2l_cli::Failure;
use v2l_runtime::engine::manifest::{Profile, ShapeRange};

/// The shapes to compile for.
#[derive(Args)]
pub(crate) struct ShapeArgs {
    /// Smallest shapes of a profile, `name:2x16x60x90,name:…`; again for each further profile. Inputs not named are
    /// free [default: the opt shapes].
    #[arg(long = "minShapes", visible_alias = "min-shapes", value_name = "SHAPES", value_parser = parse)]
    min: Vec<Shapes>,
    /// Shapes of a profile to tune and check for [default: the max shapes].
    #[arg(long = "optShapes", visible_alias = "opt-shapes", value_name = "SHAPES", value_parser = parse)]
    opt: Vec<Shapes>,
    /// Largest shapes of a profile [default: the opt shapes]. An extent that all profiles hold to one number becomes
    /// that number in the graph.
    #[arg(long = "maxShapes", visible_alias = "max-shapes", value_name = "SHAPES", value_parser = parse)]
    max: Vec<Shapes>,
}

/// Extents by input.
#[derive(Clone)]
struct Shapes(IndexMap<String, Vec<usize>>);

fn parse(text: &str) -> Result<Shapes, String> {
    let one = |part: &str| {
        let (name, extents) = part.rsplit_once(':').filter(|(name, _)| !name.is_empty())?;
        let extents: Option<Vec<usize>> = extents.split('x').map(|n| n.parse().ok()).collect();
        Some((name.to_owned(), extents?))
    };
    let parts = text.split(',').map(|part| {
        one(part).ok_or_else(|| format!("expected name:AxBxC with whole numbers, separated by commas; found `{part}`"))
    });
    let mut shapes = IndexMap::new();
    for part in parts {
        let (name, extents) = part?;
        if shapes.insert(name.clone(), extents).is_some() {
            return Err(format!("input `{name}` is given twice; repeat the flag for another profile"));
        }
    }
    Ok(Shapes(shapes))
}

impl ShapeArgs {
    /// The profiles; one for each occurrence of the flags.
    pub(crate) fn profiles(&self) -> anyhow::Result<Vec<Profile>> {
        let count = self.min.len().max(self.opt.len()).max(self.max.len());
        for (flag, given) in [("--minShapes", &self.min), ("--optShapes", &self.opt), ("--maxShapes", &self.max)] {
            if !given.is_empty() && given.len() != count {
                return Err(Failure::usage(format!(
                    "{flag} is given {} times, another of the three flags {count} times; expected one for each profile",
                    given.len()
                )));
            }
        }
        (0..count).map(|index| self.profile(index)).collect()
    }

    fn profile(&self, index: usize) -> anyhow::Result<Profile> {
        let of = |given: &[Shapes], name: &str| given.get(index).and_then(|shapes| shapes.0.get(name)).cloned();
        let all = [&self.min, &self.opt, &self.max];
        let names = all.iter().filter_map(|given| given.get(index)).flat_map(|shapes| shapes.0.keys());
        let mut profile = Profile::new();
        for name in names {
            let (min, opt, max) = (of(&self.min, name), of(&self.opt, name), of(&self.max, name));
            let range = match (min, opt, max) {
                (min, Some(opt), max) => {
                    ShapeRange { min: min.unwrap_or_else(|| opt.clone()), max: max.unwrap_or_else(|| opt.clone()), opt }
                }
                (min, None, Some(max)) => ShapeRange { min: min.unwrap_or_else(|| max.clone()), opt: max.clone(), max },
                (Some(_), None, None) => {
                    return Err(Failure::usage(format!(
                        "--minShapes names `{name}`, but neither --optShapes nor --maxShapes does; give one of them"
                    )));
                }
                (None, None, None) => unreachable!("the name is one of theirs"),
            };
            profile.insert(name.clone(), range);
        }
        Ok(profile)
    }
}
