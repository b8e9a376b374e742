use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::apply::{Applied, ApplyError, Cause, Refitter, Staging, apply};
use super::plan::{Content, Groups, Held, Prototype, Request, SlotWeight};

/// Where engines come from.
pub trait Engines {
    /// An engine, which frees its device memory when it is dropped.
    type Engine;
    /// Why there is none.
    type Error: std::error::Error;

    /// Loads the plan.
    ///
    /// # Errors
    /// Its own.
    fn load(&mut self) -> Result<Self::Engine, Self::Error>;

    /// Every weight that an engine can be given, in its order.
    ///
    /// # Errors
    /// Its own.
    fn prototypes(&self, engine: &mut Self::Engine) -> Result<IndexMap<String, Prototype>, Self::Error>;

    /// A refitter for an engine.
    ///
    /// # Errors
    /// Its own.
    fn refitter<'a>(&'a self, engine: &'a mut Self::Engine) -> Result<Box<dyn Refitter + 'a>, Self::Error>;
}

/// What does not change between refits of one plan; see [`Request`].
#[derive(Clone, Debug)]
pub struct Fixed {
    /// What adapters may change.
    pub slots: Vec<SlotWeight>,
    /// Type and element count of the weights in the engine file.
    pub stored: BTreeMap<String, Prototype>,
    /// Weights that go together.
    pub groups: Groups,
    /// Bytes of fused weights that may lie in memory at a time.
    pub staging: usize,
    /// True if a plan that was just loaded holds no values for the weights that it can be given; else it holds the pristine ones.
    pub placeholders: bool,
}

impl Fixed {
    fn request<'a>(
        &'a self,
        prototypes: &'a IndexMap<String, Prototype>,
        adapters: &'a BTreeMap<String, u64>,
        held: &'a Held,
    ) -> Request<'a> {
        Request {
            slots: &self.slots,
            prototypes,
            stored: &self.stored,
            groups: &self.groups,
            adapters,
            held,
            staging: self.staging,
        }
    }

    /// What a plan holds that was just loaded.
    fn fresh(&self, prototypes: &IndexMap<String, Prototype>) -> Held {
        let names = prototypes.keys().filter(|_| !self.placeholders);
        names.map(|name| (name.clone(), Content::Pristine)).collect()
    }
}

/// Why an engine does not hold the weights that were asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightedError<E: std::error::Error, S: std::fmt::Debug + std::fmt::Display> {
    /// There is no engine.
    #[error("{0}")]
    Load(E),
    /// Nothing was replaced: the engine holds what it held.
    #[error("{0}")]
    Refused(Cause<S>),
    /// The refit failed midway. The engine was dropped and loaded again: it holds what it held before.
    #[error("{0}; the engine was loaded again with its former weights")]
    Restored(Cause<S>),
    /// The refit failed midway, and the engine could not be brought back. It is gone.
    #[error("{cause}; the engine is lost, because it could not be loaded again: {reason}; open it again")]
    Lost {
        /// Why the refit failed.
        cause: Cause<S>,
        /// Why it could not be brought back.
        reason: String,
    },
}

/// What came of a change of weights.
type Changed<T, E, S> = Result<T, WeightedError<<E as Engines>::Error, <S as Staging>::Error>>;

/// An engine and its weights, which change as a whole or not at all.
pub struct Weighted<E: Engines, S: Staging> {
    engines: E,
    fixed: Fixed,
    prototypes: IndexMap<String, Prototype>,
    engine: Option<E::Engine>,
    /// What `engine` holds.
    held: Held,
    adapters: BTreeMap<String, u64>,
    staging: S,
}

impl<E: Engines, S: Staging<Error: std::fmt::Debug + std::fmt::Display>> Weighted<E, S> {
    /// Loads an engine and sets its weights. `adapters` are as in [`Request`]. The bytes for them come from `through` now, and from
    /// `staging` if the engine must be brought back.
    ///
    /// # Errors
    /// [`WeightedError::Load`], [`WeightedError::Refused`]; the engine is dropped.
    pub fn open(
        mut engines: E,
        fixed: Fixed,
        adapters: BTreeMap<String, u64>,
        staging: S,
        through: &impl Staging<Error = S::Error, Data = S::Data>,
    ) -> Changed<Self, E, S> {
        let mut engine = engines.load().map_err(WeightedError::Load)?;
        let prototypes = engines.prototypes(&mut engine).map_err(WeightedError::Load)?;
        let held = fixed.fresh(&prototypes);
        let applied = run::<_, S, _>(&engines, &mut engine, &fixed.request(&prototypes, &adapters, &held), through)?;
        let held = applied.map_err(|error| WeightedError::Refused(error.cause))?.held;
        Ok(Self { engines, fixed, prototypes, engine: Some(engine), held, adapters, staging })
    }

    /// The engine; `None` after [`WeightedError::Lost`] and [`Self::discard`].
    pub fn engine(&mut self) -> Option<&mut E::Engine> {
        self.engine.as_mut()
    }

    /// Sets the weights that differ from those that the engine holds, or all of an engine that is loaded anew, if there is none; `staging` and `through` are as in [`Self::open`].
    ///
    /// # Errors
    /// [`WeightedError`]; but for [`WeightedError::Lost`] the engine is as it was.
    pub fn set(
        &mut self,
        adapters: BTreeMap<String, u64>,
        staging: S,
        through: &impl Staging<Error = S::Error, Data = S::Data>,
    ) -> Changed<Applied, E, S> {
        // Until it is clear what it holds there is no engine, whoever panics.
        let (mut engine, there) = match self.engine.take() {
            Some(engine) => (engine, true),
            None => {
                self.held = self.fixed.fresh(&self.prototypes);
                (self.engines.load().map_err(WeightedError::Load)?, false)
            }
        };
        let request = self.fixed.request(&self.prototypes, &adapters, &self.held);
        match run::<_, S, _>(&self.engines, &mut engine, &request, through) {
            Ok(Ok(applied)) => {
                self.held.clone_from(&applied.held);
                (self.adapters, self.staging) = (adapters, staging);
                self.engine = Some(engine);
                Ok(applied)
            }
            Ok(Err(ApplyError { poisoned: true, cause })) => {
                drop(engine);
                match self.restore() {
                    Ok(()) => Err(WeightedError::Restored(cause)),
                    Err(reason) => Err(WeightedError::Lost { cause, reason }),
                }
            }
            refused => {
                // One that was just loaded has no weights.
                self.engine = there.then_some(engine);
                Err(match refused {
                    Ok(Err(error)) => WeightedError::Refused(error.cause),
                    Err(error) => error,
                    Ok(Ok(_)) => unreachable!("matched above"),
                })
            }
        }
    }

    /// Loads the engine again, whatever it holds, and gives it these weights.
    ///
    /// # Errors
    /// Why there is no engine now.
    pub fn reset(&mut self, adapters: BTreeMap<String, u64>, staging: S) -> Result<(), String> {
        (self.adapters, self.staging) = (adapters, staging);
        self.restore()
    }

    /// Lets the engine go.
    pub fn discard(&mut self) {
        self.engine = None;
    }

    /// Drops the engine, so that there is room for another, and brings that to what this shall hold.
    fn restore(&mut self) -> Result<(), String> {
        self.engine = None;
        let mut engine = self.engines.load().map_err(|error| error.to_string())?;
        self.held = self.fixed.fresh(&self.prototypes);
        let request = self.fixed.request(&self.prototypes, &self.adapters, &self.held);
        let applied = run::<_, S, _>(&self.engines, &mut engine, &request, &self.staging);
        let applied = applied.map_err(|error: WeightedError<E::Error, S::Error>| error.to_string())?;
        self.held = applied.map_err(|error| error.cause.to_string())?.held;
        self.engine = Some(engine);
        Ok(())
    }
}

/// Applies a request with a refitter that lives no longer.
fn run<E: Engines, S: Staging<Error: std::fmt::Debug + std::fmt::Display>, T: Staging<Error = S::Error>>(
    engines: &E,
    engine: &mut E::Engine,
    request: &Request<'_>,
    staging: &T,
) -> Changed<Result<Applied, ApplyError<S::Error>>, E, S> {
    let mut refitter = engines.refitter(engine).map_err(WeightedError::Load)?;
    Ok(apply(request, refitter.as_mut(), staging))
}
