use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::plan::{Change, Content, Held, RefitPlanError, Request, plan};

/// What TensorRT did with the weights that it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of them are in the engine.
    Done,
    /// None of them is: these must be given, too.
    Missing(Vec<String>),
}

/// Why an engine did not take its weights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefitError {
    /// A weight was refused before anything was replaced.
    #[error("weight `{weight}` was refused: {reason}")]
    Refused {
        /// The weight.
        weight: String,
        /// TensorRT's words.
        reason: String,
    },
    /// The refit failed; some weights may have been replaced.
    #[error("the refit failed: {reason}")]
    Failed {
        /// TensorRT's words.
        reason: String,
    },
}

/// An engine whose weights can be replaced.
pub trait Refitter {
    /// Gives the engine all of `weights`, by name, and lets it replace them if it misses no other.
    ///
    /// # Errors
    /// [`RefitError`]; after [`RefitError::Failed`] the engine may not be used.
    fn refit(&mut self, weights: &[(&str, &[u8])]) -> Result<Outcome, RefitError>;
}

/// Where the bytes of weights come from.
pub trait Staging {
    /// Why it could not give them.
    type Error;
    /// Bytes: pristine ones in place, fused ones in memory that goes with them.
    type Data: AsRef<[u8]>;

    /// The bytes of a weight with this content, in the type that the plan expects.
    ///
    /// # Errors
    /// Its own.
    fn weight(&self, change: &Change) -> Result<Self::Data, Self::Error>;
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What the engine holds now.
    pub held: Held,
    /// Refits that it took.
    pub refits: usize,
    /// Weights that were set in all of them.
    pub weights: usize,
    /// Weights that TensorRT asked for besides, though they do not change: they belong to groups that were not known.
    pub asked_for: BTreeSet<String>,
}

/// Why an engine does not hold what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyError<E> {
    /// True if some weights may have been replaced: the engine must be dropped and loaded again. False: it is as it was.
    pub poisoned: bool,
    /// The reason.
    pub cause: Cause<E>,
}

/// The reason of an [`ApplyError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause<E> {
    /// It cannot be planned.
    #[error(transparent)]
    Plan(#[from] RefitPlanError),
    /// A weight could not be fused.
    #[error("{0}")]
    Staging(E),
    /// TensorRT refused or failed.
    #[error(transparent)]
    Refit(#[from] RefitError),
    /// TensorRT misses weights that it was given, or that are not its own.
    #[error("TensorRT still misses {missing} after it was given all that it asked for; compile the model again")]
    Missing {
        /// The weights.
        missing: String,
    },
}

/// Brings an engine to what `request` asks for, round by round.
///
/// What TensorRT finds missing is added to the round, with the content that the request wants for it; if that is too much at a time,
/// the round is done in two. At most
/// `request.staging` bytes of fused weights lie in memory at a time, and those of a round until its refit has returned.
///
/// # Errors
/// [`ApplyError`], which says whether the engine can still be used.
pub fn apply<S: Staging>(
    request: &Request<'_>,
    refitter: &mut dyn Refitter,
    staging: &S,
) -> Result<Applied, ApplyError<S::Error>> {
    let rounds = plan(request).map_err(|e| ApplyError { poisoned: false, cause: e.into() })?.rounds;
    let mut applied = Applied { held: request.held.clone(), ..Applied::default() };
    let mut queue: VecDeque<Vec<Change>> = rounds.into_iter().map(|round| round.changes).collect();
    while let Some(changes) = queue.pop_front() {
        let poisoned = applied.refits > 0;
        match run_round(changes.clone(), request, refitter, staging, &mut applied.asked_for) {
            Ok(set) => {
                applied.refits += 1;
                applied.weights += set.len();
                applied.held.extend(set.into_iter().map(|change| (change.weight, change.content)));
            }
            // With what TensorRT wants besides, it is too much at a time. Nothing was replaced.
            Err(Cause::Plan(RefitPlanError::Staging { .. })) if changes.len() > 1 => {
                let mut first = changes;
                let second = first.split_off(first.len() / 2);
                queue.push_front(second);
                queue.push_front(first);
            }
            Err(cause) => {
                let failed = matches!(cause, Cause::Refit(RefitError::Failed { .. }));
                return Err(ApplyError { poisoned: poisoned || failed, cause });
            }
        }
        // What came along with another weight is there.
        let done = |change: &Change| applied.held.get(&change.weight) == Some(&change.content);
        queue.iter_mut().for_each(|changes| changes.retain(|change| !done(change)));
        queue.retain(|changes| !changes.is_empty());
    }
    Ok(applied)
}

/// One refit, with everything that TensorRT asks for; what was set.
fn run_round<S: Staging>(
    mut changes: Vec<Change>,
    request: &Request<'_>,
    refitter: &mut dyn Refitter,
    staging: &S,
    asked_for: &mut BTreeSet<String>,
) -> Result<Vec<Change>, Cause<S::Error>> {
    let mut bytes: Vec<S::Data> = Vec::new();
    loop {
        for change in &changes[bytes.len()..] {
            bytes.push(staging.weight(change).map_err(Cause::Staging)?);
        }
        let weights: Vec<(&str, &[u8])> =
            changes.iter().zip(&bytes).map(|(change, bytes)| (&change.weight[..], bytes.as_ref())).collect();
        let missing = match refitter.refit(&weights)? {
            Outcome::Done => return Ok(changes),
            Outcome::Missing(missing) => missing,
        };
        let known = |name: &String| request.prototypes.contains_key(name);
        let given = |name: &String| changes.iter().any(|change| change.weight == *name);
        if missing.is_empty() || missing.iter().any(|name| given(name) || !known(name)) {
            return Err(Cause::Missing { missing: missing.join(", ") });
        }
        for weight in missing {
            let content = content_of(&weight, request);
            asked_for.insert(weight.clone());
            changes.push(Change { weight, content });
        }
        within_staging(&changes, request)?;
    }
}

/// What the request wants a weight to hold.
fn content_of(weight: &str, request: &Request<'_>) -> Content {
    let slots = request.slots.iter().filter(|slot| slot.weight == weight);
    let fused: BTreeMap<String, u64> =
        slots.filter_map(|slot| Some((slot.slot.clone(), *request.adapters.get(&slot.slot)?))).collect();
    if fused.is_empty() { Content::Pristine } else { Content::Fused(fused) }
}

fn within_staging(changes: &[Change], request: &Request<'_>) -> Result<(), RefitPlanError> {
    let fused: Vec<&str> = changes.iter().filter(|c| c.content != Content::Pristine).map(|c| &c.weight[..]).collect();
    let needed: usize = fused.iter().map(|name| request.prototypes[*name].bytes()).sum();
    let available = request.staging;
    if needed > available {
        return Err(RefitPlanError::Staging { weights: fused.join(", "), needed, available });
    }
    Ok(())
}
