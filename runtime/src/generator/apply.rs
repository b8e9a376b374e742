//! Adapters, applied: fused or in branches, whole or not at all.

use std::collections::{HashMap, HashSet};

use super::{AdapterMode, Generator, GeneratorError, Way, choose, has_branches};
use crate::components::{NegativeStep, StepGraph, TRANSFORMER, TRANSFORMER_2};
use crate::directory::DirectoryError;
use crate::error::{Classified, Error, ErrorClass};
use crate::lora::fuse::{CancelCheck, FuseReport, idle};
use crate::lora::{AdapterSet, Branch};

/// What became of a set of adapters.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// How they are applied.
    pub way: Way,
    /// Why so, in words.
    pub reason: String,
    /// What fusing them did; in branches nothing is rounded.
    pub fused: Option<FuseReport>,
    /// Slots that they change.
    pub slots: usize,
    /// True if they are in branches because fusing them failed or lost too much.
    pub fell_back: bool,
    /// What the user should know.
    pub warning: Option<String>,
}

impl Generator {
    /// Replaces the adapters by others; none is the base model. A transaction: on an error all is as before. `cancelled` is asked now and
    /// then, on any thread.
    ///
    /// Where the negative prompt sees other adapters or strengths, it gets weights of its own, which take as much memory again; in
    /// branches it gets other factors. A step then runs the transformer once for each prompt, in place of once for both.
    ///
    /// ```no_run
    /// use v2l_runtime::lora::AdapterSet;
    ///
    /// # fn main() -> Result<(), v2l_runtime::Error> {
    /// # let mut generator = v2l_runtime::Generator::open("engines", &v2l_runtime::Options::default())?;
    /// # let (effect, style) = (v2l_runtime::Adapter::default(), v2l_runtime::Adapter::default());
    /// let applied = generator.set_adapters(&AdapterSet::from([(&effect, 1.0), (&style, 0.5)]), None)?;
    /// println!("{} slots changed", applied.slots);
    /// generator.set_adapters(&AdapterSet::default(), None)?; // the base model, bit for bit
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If an adapter does not fit, the engine was not compiled for [`Options::adapter_mode`](super::Options::adapter_mode), memory does
    /// not suffice, or `cancelled` says so.
    pub fn set_adapters(&mut self, set: &AdapterSet, cancelled: CancelCheck<'_>) -> Result<Applied, Error> {
        let engine = self.directory.engine(TRANSFORMER)?;
        let (mode, step) = (self.options.adapter_mode, StepGraph::default());
        let (mut way, mut reason) = choose(mode, engine.manifest(), &step.graph)?;
        let mut branches = has_branches(engine.manifest(), &step.graph);
        if self.directory.has(TRANSFORMER_2) {
            // One way for both.
            let second = self.directory.engine(TRANSFORMER_2)?;
            branches &= has_branches(second.manifest(), &step.graph);
            let (other, why) = choose(mode, second.manifest(), &step.graph)?;
            if other == Way::Branch {
                (way, reason) = (other, why);
            }
        }
        let applied = match way {
            Way::Branch => self.beside(set, reason.to_owned(), cancelled)?,
            Way::Fuse if set.is_empty() && self.none_fused() => {
                self.step = Some(step);
                Applied { way, reason: reason.to_owned(), fused: Some(FuseReport::default()), ..Applied::default() }
            }
            Way::Fuse => {
                let or_beside = mode == AdapterMode::Auto && branches;
                self.fuse(set, reason, or_beside, cancelled)?
            }
        };
        self.adapters = set.clone();
        let idle = match &applied.fused {
            _ if set.variants().all(|(_, adapters)| adapters.iter().all(|(_, strength)| *strength == 0.0)) => None,
            Some(fused) => fused.idle(),
            None => {
                let prompt = set.variants().filter(|(variant, _)| variant.branch == Branch::All);
                let updates =
                    prompt.flat_map(|(_, adapters)| adapters).flat_map(|(adapter, _)| adapter.layers.values());
                idle(updates.map(|update| update.is_zero()))
            }
        };
        Ok(Applied { warning: applied.warning.or(idle), slots: set.layers().len(), ..applied })
    }

    fn state(&self) -> State {
        State { step: self.step.clone(), fused: self.directory.adapters().clone() }
    }

    /// Brings earlier adapters back.
    fn restore(&mut self, State { step, fused }: State) -> Result<(), DirectoryError> {
        self.directory.set_adapters(&fused, None)?;
        self.step = step;
        Ok(())
    }

    fn none_fused(&self) -> bool {
        let fused = self.directory.adapters();
        fused.changes_nothing() && !fused.is_guided()
    }

    /// Applies adapters in branches. What changes parameters is fused, as no branch stands beside them.
    fn beside(
        &mut self,
        set: &AdapterSet,
        reason: String,
        cancelled: CancelCheck<'_>,
    ) -> Result<Applied, DirectoryError> {
        let (parameters, layers) = self.parted(set)?;
        let mut step = self.directory.branch_step(&layers)?;
        let parameters = if parameters.changes_nothing() { AdapterSet::default() } else { parameters };
        let reason = match parameters.is_empty() {
            true => reason,
            false => format!("{reason}; biases, norms and tables are fused"),
        };
        if !parameters.is_empty() || !self.none_fused() {
            self.directory.set_adapters(&parameters, cancelled)?;
        }
        if let Some(negative) = &mut step.negative {
            negative.own_weights = !parameters.is_empty();
        }
        self.step = Some(step);
        Ok(Applied { way: Way::Branch, reason, ..Applied::default() })
    }

    /// A set in two: what changes parameters, and what changes linear layers.
    fn parted(&mut self, set: &AdapterSet) -> Result<(AdapterSet, AdapterSet), DirectoryError> {
        let mut names: HashMap<&str, HashSet<String>> = HashMap::new();
        for component in [TRANSFORMER, TRANSFORMER_2] {
            if self.directory.has(component) {
                let engine = self.directory.engine(component)?;
                names.insert(component, engine.parameters().iter().map(|parameter| parameter.name.clone()).collect());
            }
        }
        Ok(set.partition(|component, layer| names.get(component).is_some_and(|names| names.contains(layer))))
    }

    /// Fuses adapters, `or_beside` applies them in branches where that serves them better.
    fn fuse(
        &mut self,
        set: &AdapterSet,
        reason: &str,
        or_beside: bool,
        cancelled: CancelCheck<'_>,
    ) -> Result<Applied, Error> {
        let before = self.state();
        let fused = self.directory.set_adapters(set, cancelled).map(|()| self.directory.fused());
        let instead = match &fused {
            Ok(fused) if fused.warning().is_none() || !or_beside => {
                return Ok(self.all_fused(set, reason.to_owned(), fused.clone()));
            }
            Ok(fused) => {
                let lost = 100.0 * (1.0 - fused.overall().rounding.survived());
                format!("fused in the storage type, {lost:.1} % of the update would be lost in rounding")
            }
            Err(error) if or_beside && branches_may_help(error) => error.to_string(),
            Err(_) => return Ok(fused.map(|fused| self.all_fused(set, reason.to_owned(), fused))?),
        };
        match (self.beside(set, instead.clone(), cancelled), fused) {
            (Ok(applied), _) => Ok(Applied { fell_back: true, ..applied }),
            (Err(why), fused) if why.class() == ErrorClass::Cancelled => {
                if fused.is_ok() {
                    self.restore(before)?;
                }
                Err(why.into())
            }
            // The branches do not serve these adapters, and what is fused does.
            (Err(why), Ok(fused)) => {
                let reason = format!("{instead}, but the low-rank branches do not work: {why}");
                let warning =
                    format!("the adapters are fused all the same, because the low-rank branches do not work: {why}");
                Ok(Applied { warning: Some(warning), ..self.all_fused(set, reason, fused) })
            }
            (Err(why), Err(error)) => {
                Err(GeneratorError::Neither { fuse: Box::new(error), branch: Box::new(why) }.into())
            }
        }
    }

    /// All of a set is fused: the step is the plain one, with weights of its own for the negative prompt where that sees others.
    fn all_fused(&mut self, set: &AdapterSet, reason: String, fused: FuseReport) -> Applied {
        let negative = set.is_guided().then(|| Box::new(NegativeStep { own_weights: true, ..NegativeStep::default() }));
        self.step = Some(StepGraph { negative, ..StepGraph::default() });
        let warning = self.directory.negative_fused().and_then(FuseReport::warning);
        let warning = warning.map(|warning| format!("for the negative prompt: {warning}"));
        Applied { way: Way::Fuse, reason, fused: Some(fused), warning, ..Applied::default() }
    }
}

/// Adapters as they are applied at some moment.
struct State {
    step: Option<StepGraph>,
    fused: AdapterSet,
}

fn branches_may_help(error: &DirectoryError) -> bool {
    matches!(error, DirectoryError::Backend(error) if error.branches_may_help())
}
