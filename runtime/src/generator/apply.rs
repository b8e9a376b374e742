//! Adapters, applied: fused or in branches, whole or not at all.

use std::borrow::Cow;
use std::collections::HashSet;

use indexmap::IndexMap;
use ndarray::Array2;

use super::{AdapterMode, Generator, GeneratorError, Way, choose, has_branches};
use crate::components::{NegativeStep, StepGraph, TRANSFORMER, TRANSFORMER_2};
use crate::directory::{DirectoryError, FusedAdapters};
use crate::error::{Classified, Error, ErrorClass};
use crate::lora::Strength;
use crate::lora::adapter::{Adapter, LowRank, changes, of_second};
use crate::lora::fuse::{CancelCheck, FuseReport, idle};

/// What became of a set of adapters.
#[derive(Clone, Debug)]
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
    /// Replaces the adapters by others, each with its strength; none is the base model. A transaction: on an error all is as before.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), v2l_runtime::Error> {
    /// # let mut generator = v2l_runtime::Generator::open("engines", &v2l_runtime::Options::default())?;
    /// # let (effect, style) = (v2l_runtime::Adapter::default(), v2l_runtime::Adapter::default());
    /// let applied = generator.set_adapters(&[(&effect, 1.0), (&style, 0.5)])?;
    /// println!("{} slots changed", applied.slots);
    /// generator.set_adapters(&[])?; // the base model, bit for bit
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Self::set_adapters_unless`].
    pub fn set_adapters(&mut self, adapters: &[(&Adapter, f32)]) -> Result<Applied, Error> {
        self.set_adapters_unless(adapters, None)
    }

    /// [`Self::set_adapters`] that `cancelled` stops, which is asked now and then, on any thread.
    ///
    /// # Errors
    /// If an adapter does not fit, the engine was not compiled for [`Options::adapter_mode`](super::Options::adapter_mode), memory does
    /// not suffice, or `cancelled` says so.
    pub fn set_adapters_unless(
        &mut self,
        adapters: &[(&Adapter, f32)],
        cancelled: CancelCheck<'_>,
    ) -> Result<Applied, Error> {
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
            Way::Branch => self.beside(adapters, reason.to_owned(), cancelled)?,
            Way::Fuse if adapters.is_empty() && self.none_fused() => {
                self.step = Some(step);
                Applied::fused(reason.to_owned(), FuseReport::default())
            }
            Way::Fuse => {
                let or_beside = mode == AdapterMode::Auto && branches;
                self.fuse(adapters, reason, or_beside, cancelled)?
            }
        };
        self.applied = adapters.len();
        self.changed = changed(adapters);
        let idle = match &applied.fused {
            _ if adapters.iter().all(|(_, strength)| *strength == 0.0) => None,
            Some(fused) => fused.idle(),
            None => idle(adapters.iter().flat_map(|(adapter, _)| adapter.layers.values()).map(is_zero)),
        };
        Ok(Applied { warning: applied.warning.or(idle), ..applied })
    }

    /// [`Self::set_adapters_unless`] with adapters that the prediction for the negative prompt sees with another strength, or not at all.
    ///
    /// Where they are fused, the negative prompt gets weights of its own, which take as much memory again; in branches it gets other
    /// factors. A step then runs the transformer once for each prompt, in place of once for both.
    ///
    /// # Errors
    /// As [`Self::set_adapters_unless`].
    pub fn set_guided_adapters(
        &mut self,
        adapters: &[(&Adapter, Strength)],
        cancelled: CancelCheck<'_>,
    ) -> Result<Applied, Error> {
        if adapters.iter().all(|(_, strength)| strength.is_even()) {
            let adapters: Vec<_> = adapters.iter().map(|(adapter, strength)| (*adapter, strength.cond)).collect();
            return self.set_adapters_unless(&adapters, cancelled);
        }
        let seen = |one: fn(&Strength) -> f32| -> Vec<(&Adapter, f32)> {
            let all = adapters.iter().map(|(adapter, strength)| (*adapter, one(strength)));
            all.filter(|&(_, strength)| strength != 0.0).collect()
        };
        let (positive, negative) = (seen(|strength| strength.cond), seen(|strength| strength.uncond));
        let before = self.state();
        let applied = self.set_adapters_unless(&positive, cancelled)?;
        match self.negative_step(&negative, applied.way, cancelled) {
            Ok(negative) => {
                self.step.get_or_insert_default().negative = Some(Box::new(negative));
                self.applied = adapters.len();
                let all: Vec<(&Adapter, f32)> = adapters.iter().map(|(adapter, _)| (*adapter, 1.0)).collect();
                self.changed = changed(&all);
                let slots: HashSet<&String> = all.iter().flat_map(|(adapter, _)| adapter.layers.keys()).collect();
                let warning = self.directory.negative_fused().and_then(FuseReport::warning);
                let warning = warning.map(|warning| format!("for the negative prompt: {warning}"));
                Ok(Applied { slots: slots.len(), warning: applied.warning.or(warning), ..applied })
            }
            Err(error) => {
                self.restore(before)?;
                Err(error.into())
            }
        }
    }

    /// The step for the negative prompt alone, with its adapters applied as the prompt's are.
    fn negative_step(
        &mut self,
        adapters: &[(&Adapter, f32)],
        way: Way,
        cancelled: CancelCheck<'_>,
    ) -> Result<NegativeStep, DirectoryError> {
        if way == Way::Fuse {
            let copies = adapters.iter().map(|(adapter, strength)| ((*adapter).clone(), *strength)).collect();
            self.directory.set_negative_adapters(copies, cancelled)?;
            return Ok(NegativeStep { own_weights: true, ..NegativeStep::default() });
        }
        let (StepGraph { inputs, second, .. }, parameters) = self.in_branches(adapters)?;
        let own_weights = !parameters.is_empty() || !self.none_fused();
        if own_weights {
            self.directory.set_negative_adapters(parameters, cancelled)?;
        }
        Ok(NegativeStep { inputs, second, own_weights })
    }

    fn state(&self) -> State {
        State {
            step: self.step.clone(),
            applied: self.applied,
            changed: self.changed,
            fused: self.directory.adapters().clone(),
            negative: self.directory.negative_adapters().cloned(),
        }
    }

    /// Brings earlier adapters back.
    fn restore(&mut self, state: State) -> Result<(), DirectoryError> {
        let State { step, applied, changed, fused, negative } = state;
        self.directory.set_parts(fused, None)?;
        self.directory.set_negative_parts(negative, None)?;
        (self.step, self.applied, self.changed) = (step, applied, changed);
        Ok(())
    }

    fn none_fused(&self) -> bool {
        let none = self.directory.adapters().iter().all(|adapters| adapters.is_empty());
        none && self.directory.negative_adapters().is_none()
    }

    /// Applies adapters in branches.
    fn beside(
        &mut self,
        adapters: &[(&Adapter, f32)],
        reason: String,
        cancelled: CancelCheck<'_>,
    ) -> Result<Applied, DirectoryError> {
        let (step, parameters) = self.in_branches(adapters)?;
        let reason = match parameters.is_empty() {
            true => reason,
            false => format!("{reason}; biases, norms and tables are fused"),
        };
        if !parameters.is_empty() || !self.none_fused() {
            self.directory.set_adapters(parameters, cancelled)?;
        }
        self.step = Some(step);
        let slots: HashSet<&String> = adapters.iter().flat_map(|(adapter, _)| adapter.layers.keys()).collect();
        let slots = slots.len();
        Ok(Applied { way: Way::Branch, reason, fused: None, slots, fell_back: false, warning: None })
    }

    /// The step whose branches carry adapters, and what of them changes parameters, which must be fused.
    fn in_branches(
        &mut self,
        adapters: &[(&Adapter, f32)],
    ) -> Result<(StepGraph, Vec<(Adapter, f32)>), DirectoryError> {
        let (layers, parameters) = self.parted(adapters)?;
        let borrowed: Vec<(&Adapter, f32)> = layers.iter().map(|(adapter, strength)| (&**adapter, *strength)).collect();
        Ok((self.directory.branch_step(&borrowed)?, parameters))
    }

    /// Adapters in two: what changes linear layers, and what changes parameters, which no branch stands beside.
    fn parted<'a>(&mut self, adapters: &[(&'a Adapter, f32)]) -> Result<Parted<'a>, DirectoryError> {
        let mut names: HashSet<String> = HashSet::new();
        for (component, second) in [(TRANSFORMER, false), (TRANSFORMER_2, true)] {
            if self.directory.has(component) {
                let engine = self.directory.engine(component)?;
                let own = engine.parameters().iter().map(|parameter| &parameter.name);
                names.extend(own.map(|name| if second { of_second(name) } else { name.clone() }));
            }
        }
        let (mut layers, mut parameters) = (Vec::with_capacity(adapters.len()), Vec::new());
        for &(adapter, strength) in adapters {
            if !adapter.layers.keys().any(|name| names.contains(name)) {
                layers.push((Cow::Borrowed(adapter), strength));
                continue;
            }
            let (fused, beside) =
                adapter.layers.clone().into_iter().partition::<IndexMap<_, _>, _>(|(name, _)| names.contains(name));
            let part = |layers| Adapter { name: adapter.name.clone(), layers };
            parameters.push((part(fused), strength));
            layers.push((Cow::Owned(part(beside)), strength));
        }
        Ok((layers, parameters))
    }

    /// Fuses adapters, `or_beside` applies them in branches where that serves them better.
    fn fuse(
        &mut self,
        adapters: &[(&Adapter, f32)],
        reason: &str,
        or_beside: bool,
        cancelled: CancelCheck<'_>,
    ) -> Result<Applied, Error> {
        let before = self.state();
        let copies = adapters.iter().map(|(adapter, strength)| ((*adapter).clone(), *strength)).collect();
        let fused = self.directory.set_adapters(copies, cancelled).map(drop);
        let fused = fused.map(|()| self.directory.fused().clone());
        let instead = match &fused {
            Ok(fused) if fused.warning().is_none() || !or_beside => {
                self.step = Some(StepGraph::default());
                return Ok(Applied::fused(reason.to_owned(), fused.clone()));
            }
            Ok(fused) => {
                let lost = 100.0 * (1.0 - fused.overall().rounding.survived());
                format!("fused in the storage type, {lost:.1} % of the update would be lost in rounding")
            }
            Err(error) if or_beside && branches_may_help(error) => error.to_string(),
            Err(_) => return Ok(fused.map(|fused| Applied::fused(reason.to_owned(), fused))?),
        };
        match (self.beside(adapters, instead.clone(), cancelled), fused) {
            (Ok(applied), _) => Ok(Applied { fell_back: true, ..applied }),
            (Err(why), fused) if why.class() == ErrorClass::Cancelled => {
                if fused.is_ok() {
                    self.restore(before)?;
                }
                Err(why.into())
            }
            // The branches do not serve these adapters, and what is fused does.
            (Err(why), Ok(fused)) => {
                self.step = Some(StepGraph::default());
                let reason = format!("{instead}, but the low-rank branches do not work: {why}");
                let warning =
                    format!("the adapters are fused all the same, because the low-rank branches do not work: {why}");
                Ok(Applied { warning: Some(warning), ..Applied::fused(reason, fused) })
            }
            (Err(why), Err(error)) => {
                Err(GeneratorError::Neither { fuse: Box::new(error), branch: Box::new(why) }.into())
            }
        }
    }
}

impl Applied {
    fn fused(reason: String, fused: FuseReport) -> Self {
        let slots = fused.slots.len();
        Self { way: Way::Fuse, reason, fused: Some(fused), slots, fell_back: false, warning: None }
    }
}

/// Adapters as they are applied at some moment.
struct State {
    step: Option<StepGraph>,
    applied: usize,
    changed: Option<&'static str>,
    fused: [FusedAdapters; 2],
    negative: Option<[FusedAdapters; 2]>,
}

/// What goes into branches, and what is fused.
type Parted<'a> = (Vec<(Cow<'a, Adapter>, f32)>, Vec<(Adapter, f32)>);

/// True for an update that is zero whatever its strength.
fn is_zero(update: &LowRank) -> bool {
    let zero = |factor: &Array2<f32>| factor.iter().all(|&x| x == 0.0);
    update.alpha == 0.0 || zero(&update.up) || zero(&update.down)
}

/// Which of two transformers some adapters change, if it is one alone.
fn changed(adapters: &[(&Adapter, f32)]) -> Option<&'static str> {
    let changes = |component| adapters.iter().any(|(adapter, _)| changes(adapter, component));
    match [TRANSFORMER, TRANSFORMER_2].map(changes) {
        [true, false] => Some("first"),
        [false, true] => Some("second"),
        _ => None,
    }
}

fn branches_may_help(error: &DirectoryError) -> bool {
    matches!(error, DirectoryError::Backend(error) if error.branches_may_help())
}
