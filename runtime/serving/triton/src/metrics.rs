//! What a model counts, for the server's `/metrics`, by the names that `v2l serve` has.

use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

use crate::failure::{Failure, log};
use crate::server::{Counter, Family};

/// Parts of a request that take time. `run` is of a graph by itself.
pub(crate) const PHASES: [&CStr; 9] =
    [c"predict", c"swap", c"encode_text", c"encode_condition", c"denoise", c"decode", c"save", c"run", c"total"];

/// The families of all models, until the backend is finished.
static FAMILIES: Mutex<Option<Families>> = Mutex::new(None);

struct Families {
    seconds: Family,
    steps: Family,
    swaps: Family,
    hits: Family,
    misses: Family,
}

impl Families {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            seconds: Family::new(c"v2l_phase_seconds_total", c"Seconds of requests, by phase.")?,
            steps: Family::new(c"v2l_steps_total", c"Steps that samplers made.")?,
            swaps: Family::new(c"v2l_swaps_total", c"Requests that changed the adapters.")?,
            hits: Family::new(c"v2l_cache_hits_total", c"Predictions and fused weights that were kept.")?,
            misses: Family::new(c"v2l_cache_misses_total", c"Predictions and fused weights that were not kept.")?,
        })
    }
}

/// Lets go of the families; models must be gone.
pub(crate) fn finish() {
    *FAMILIES.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// A folder of what need not be computed again.
#[derive(Clone, Copy)]
pub(crate) enum Cache {
    Prediction,
    Fused,
}

struct Cached {
    hits: Counter,
    misses: Counter,
}

struct Counters {
    seconds: Vec<(&'static CStr, Counter)>,
    steps: Counter,
    swaps: Counter,
    prediction: Cached,
    fused: Cached,
}

/// The counters of a model; none where the server counts nothing.
pub(crate) struct Metrics(Option<Counters>);

impl Metrics {
    /// Of the model of this name and version.
    pub(crate) fn of(model: &str, version: u64) -> Self {
        let counters = Counters::new(model, version);
        if let Err(failure) = &counters {
            log(&format!("no metrics of {model}: {failure:?}"));
        }
        Self(counters.ok())
    }

    /// A phase took some time.
    pub(crate) fn took(&self, phase: &CStr, seconds: f64) {
        let counters = self.0.iter().flat_map(|counters| &counters.seconds);
        counters.filter(|(name, _)| *name == phase).for_each(|(_, counter)| counter.add(seconds));
    }

    /// The sampler made a step.
    pub(crate) fn step(&self) {
        self.0.iter().for_each(|counters| counters.steps.add(1.0));
    }

    /// A request changed the adapters.
    pub(crate) fn swapped(&self) {
        self.0.iter().for_each(|counters| counters.swaps.add(1.0));
    }

    /// A cache had what was looked for, or not; `None` if there is no such cache.
    pub(crate) fn cached(&self, cache: Cache, hit: Option<bool>) {
        let (Some(counters), Some(hit)) = (&self.0, hit) else { return };
        let cached = match cache {
            Cache::Prediction => &counters.prediction,
            Cache::Fused => &counters.fused,
        };
        if hit { cached.hits.add(1.0) } else { cached.misses.add(1.0) }
    }
}

impl Counters {
    fn new(model: &str, version: u64) -> Result<Self, Failure> {
        let mut families = FAMILIES.lock().unwrap_or_else(PoisonError::into_inner);
        let families = match &mut *families {
            Some(families) => families,
            none => none.insert(Families::new()?),
        };
        let model = CString::new(model).unwrap_or_default();
        let version = CString::new(version.to_string()).unwrap_or_default();
        let of = |family: &Family, more: Option<(&CStr, &CStr)>| {
            let labels = [(c"model", &*model), (c"version", &*version)].into_iter().chain(more);
            family.counter(&labels.collect::<Vec<_>>())
        };
        let seconds = PHASES.map(|phase| Ok((phase, of(&families.seconds, Some((c"phase", phase)))?)));
        let cached = |name| {
            let (hits, misses) =
                (of(&families.hits, Some((c"cache", name))), of(&families.misses, Some((c"cache", name))));
            Ok::<_, Failure>(Cached { hits: hits?, misses: misses? })
        };
        Ok(Self {
            seconds: seconds.into_iter().collect::<Result<_, Failure>>()?,
            steps: of(&families.steps, None)?,
            swaps: of(&families.swaps, None)?,
            prediction: cached(c"prediction")?,
            fused: cached(c"fused")?,
        })
    }
}
