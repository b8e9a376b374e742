//! The call into the shim.

use std::ffi::{CString, c_char};

use super::child::build_in_child;
use super::events::{Listener, Said};
use super::plan_bytes::PlanBytes;
use super::{BuildError, Built, Child, Range, Refit, Request, Step};
use crate::library::Library;
use crate::messages::is_about_driver;
use crate::{Flavour, ffi};

/// C forms of a request's parts; the structures point into one another and must not move.
struct Parts {
    weight_names: Vec<CString>,
    inputs: Vec<Vec<CString>>,
    marked: Vec<CString>,
}

fn c_string(name: &str) -> Result<CString, BuildError> {
    CString::new(name).map_err(|_| BuildError::Name { name: name.to_owned() })
}

impl Parts {
    fn new(request: &Request<'_>) -> Result<Self, BuildError> {
        let marked: &[String] = if let Refit::Marked(names) = request.refit { names } else { &[] };
        let inputs = |ranges: &Vec<Range>| ranges.iter().map(|range| c_string(&range.input)).collect();
        Ok(Self {
            weight_names: request.weights.iter().map(|(name, _)| c_string(name)).collect::<Result<_, _>>()?,
            inputs: request.profiles.iter().map(inputs).collect::<Result<_, _>>()?,
            marked: marked.iter().map(|name| c_string(name)).collect::<Result<_, _>>()?,
        })
    }
}

/// What a build came to.
pub(super) struct Ended {
    /// One of the shim's.
    pub(super) status: i32,
    /// What the status says of it.
    pub(super) detail: i64,
    pub(super) plan: Option<PlanBytes>,
    pub(super) said: Said,
}

/// The parts of a request that the shim can be given.
fn check(request: &Request<'_>) -> Result<Parts, BuildError> {
    if let Some(index) = request.profiles.iter().position(|ranges| !same_rank(ranges)) {
        let messages = vec!["min, opt and max have different ranks".to_owned()];
        return Err(BuildError::Profile { index, messages });
    }
    Parts::new(request)
}

fn same_rank(ranges: &[Range]) -> bool {
    ranges.iter().all(|range| range.min.len() == range.opt.len() && range.opt.len() == range.max.len())
}

impl Library {
    /// Builds a plan in this process. `progress` is told of every step, on whatever thread, and ends the build with `false`.
    ///
    /// Private memory: a few hundred megabytes, the plan, and the weights that are no placeholders. Equal requests give plans of
    /// equal size on one version of TensorRT-RTX; their bytes may differ in the order of weights of equal shape, which follows
    /// addresses: [`Self::build_in`] gives equal bytes.
    ///
    /// # Errors
    /// [`BuildError`], with TensorRT's own words; nothing is left behind.
    pub fn build(
        &self,
        request: &Request<'_>,
        progress: &mut (dyn FnMut(Step<'_>) -> bool + Send),
    ) -> Result<Built, BuildError> {
        let ended = self.call(request, progress)?;
        self.outcome(request, ended, false)
    }

    /// Builds a plan in a process of its own, at addresses that do not change from one build to the next: equal requests with placeholders
    /// give equal bytes, with the same library and program, as [`Built::reproducible`] says. `progress` is told of every step on
    /// this thread, and ends the process with `false`.
    ///
    /// Disk: model, weights and plan in `child.scratch` while it builds. Private memory of this process: the plan.
    ///
    /// # Errors
    /// [`BuildError`], with TensorRT's own words; nothing is left behind, and no process.
    pub fn build_in(
        &self,
        child: Child<'_>,
        request: &Request<'_>,
        progress: &mut dyn FnMut(Step<'_>) -> bool,
    ) -> Result<Built, BuildError> {
        check(request)?;
        let (ended, reproducible) = build_in_child(self.flavour(), self.found(), child, request, progress)?;
        self.outcome(request, ended, reproducible)
    }

    /// Builds a plan here, whatever comes of it.
    pub(super) fn call(
        &self,
        request: &Request<'_>,
        progress: &mut (dyn FnMut(Step<'_>) -> bool + Send),
    ) -> Result<Ended, BuildError> {
        let parts = check(request)?;
        let weights: Vec<ffi::Weight> = request
            .weights
            .iter()
            .zip(&parts.weight_names)
            .map(|((_, data), name)| ffi::Weight { name: name.as_ptr(), data: data.as_ptr().cast(), size: data.len() })
            .collect();
        let range = |(range, input): (&Range, &CString)| ffi::Range {
            input: input.as_ptr(),
            rank: i32::try_from(range.opt.len()).unwrap_or(i32::MAX),
            min: range.min.as_ptr(),
            opt: range.opt.as_ptr(),
            max: range.max.as_ptr(),
        };
        let ranges: Vec<Vec<ffi::Range>> = request
            .profiles
            .iter()
            .zip(&parts.inputs)
            .map(|(ranges, inputs)| ranges.iter().zip(inputs).map(range).collect())
            .collect();
        let profiles: Vec<ffi::Profile> =
            ranges.iter().map(|ranges| ffi::Profile { ranges: ranges.as_ptr(), count: ranges.len() }).collect();
        let capabilities: Vec<i32> = request.capabilities.iter().map(|c| c.number().cast_signed()).collect();
        let marked: Vec<*const c_char> = parts.marked.iter().map(|name| name.as_ptr()).collect();
        let c_request = ffi::Request {
            model: request.model.as_ptr().cast(),
            model_size: request.model.len(),
            weights: weights.as_ptr(),
            weight_count: weights.len(),
            profiles: profiles.as_ptr(),
            profile_count: profiles.len(),
            capabilities: capabilities.as_ptr(),
            capability_count: capabilities.len(),
            refittable: marked.as_ptr(),
            refittable_count: marked.len(),
            refit: match request.refit {
                Refit::None => ffi::REFIT_NONE,
                Refit::Placeholders => ffi::REFIT_PLACEHOLDERS,
                Refit::Marked(_) => ffi::REFIT_MARKED,
            },
            timing_cache: request.timing_cache.map_or(std::ptr::null(), |cache| cache.as_ptr().cast()),
            timing_cache_size: request.timing_cache.map_or(0, <[u8]>::len),
        };
        let listener = Listener::new(progress);
        // SAFETY: the library has the entry points and the shim of one flavour and version; everything that the request and the callbacks
        // point to is borrowed or owned above and outlives the call.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let plan = unsafe { (self.api.build)(&self.entry, &c_request, &listener.callbacks()) };
        let said = listener.finish();
        // SAFETY: what the shim returns is given up once, to the one place that frees it.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let bytes = unsafe { PlanBytes::new(&plan, self.api.free_plan) };
        Ok(Ended { status: plan.status, detail: plan.detail, plan: bytes, said })
    }

    fn outcome(&self, request: &Request<'_>, ended: Ended, reproducible: bool) -> Result<Built, BuildError> {
        let Ended { status, detail, plan, said } = ended;
        match plan {
            Some(plan) if status == ffi::OK => {
                let Said { refittable, warnings, timing_cache, .. } = said;
                Ok(Built { plan, reproducible, refittable, warnings, timing_cache })
            }
            _ => Err(failure(self, request, status, detail, said)),
        }
    }
}

/// Without the complaint about a missing driver, which TensorRT-RTX makes and goes on, unless it is the only one.
fn without_noise(mut messages: Vec<String>) -> Vec<String> {
    if !messages.iter().all(|message| is_about_driver(message)) {
        messages.retain(|message| !is_about_driver(message));
    }
    messages
}

/// What a status means.
fn failure(library: &Library, request: &Request<'_>, status: i32, detail: i64, said: Said) -> BuildError {
    let title = library.flavour().title();
    let messages = without_noise(said.errors);
    let index = usize::try_from(detail).unwrap_or(usize::MAX);
    let marked: &[String] = if let Refit::Marked(names) = request.refit { names } else { &[] };
    let subject = (request.capabilities.get(index), request.weights.get(index), marked.get(index));
    let unavailable = |what, messages| BuildError::Unavailable { title, what, messages };
    match (status, subject) {
        _ if said.cancelled => BuildError::Cancelled,
        (ffi::NO_BUILDER, _) => unavailable("builder", messages),
        (ffi::NO_NETWORK, _) => unavailable("network", messages),
        (ffi::NO_PARSER, _) => unavailable("parser", messages),
        (ffi::CAPABILITY, (Some(&capability), ..)) => BuildError::Capability {
            title,
            version: library.version().to_string(),
            capability,
            messages,
            way_out: match library.flavour() {
                Flavour::Rtx => "it takes 8.0, 8.6, 8.9, 12.0 and 12.1; for a data-center GPU compile for `ort`",
                Flavour::TensorRt => "it builds for the GPU of this machine: give no compute capability",
            },
        },
        (ffi::PARSE, _) => BuildError::Parse { errors: said.parser },
        (ffi::WEIGHT, (_, Some((name, data)), _)) => {
            BuildError::Weight { name: name.clone(), size: data.len(), errors: said.parser }
        }
        (ffi::TIMING_CACHE, _) => BuildError::TimingCache { title, messages },
        (ffi::PROFILE, _) => BuildError::Profile { index, messages },
        (ffi::MARK, (.., Some(name))) => BuildError::Mark { name: name.clone(), messages },
        _ => BuildError::Build { title, messages },
    }
}
