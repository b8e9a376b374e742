use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

use crate::DataType;

/// What the engine says of a weight that can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prototype {
    /// Element type that it must be given in.
    pub dtype: DataType,
    /// Elements that it must have.
    pub count: usize,
}

impl Prototype {
    /// Bytes of the weight.
    pub const fn bytes(&self) -> usize {
        self.dtype.size() * self.count
    }
}

/// A layer that adapters may change, and the weight that it is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotWeight {
    /// The slot's name.
    pub slot: String,
    /// The weight's name; several slots may be rows of one.
    pub weight: String,
}

/// What a weight of an engine holds, or shall hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// The engine file's own bytes.
    Pristine,
    /// Those with adapters fused in: per slot of the weight that something changes, what identifies the sum of its factors.
    Fused(BTreeMap<String, u64>),
}

/// What the weights of an engine hold; a weight that is not named is a placeholder, and must be set before the engine runs.
pub type Held = BTreeMap<String, Content>;

/// Sets of weights that TensorRT wants together, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Vec<BTreeSet<String>>);

impl Groups {
    /// Makes all of `names` one group, together with the groups that they are in.
    pub fn join<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        let mut joined: BTreeSet<String> = names.into_iter().map(str::to_owned).collect();
        if joined.len() < 2 {
            return;
        }
        let (meeting, apart) = std::mem::take(&mut self.0).into_iter().partition(|group| !group.is_disjoint(&joined));
        self.0 = apart;
        joined.extend(Vec::<BTreeSet<String>>::into_iter(meeting).flatten());
        self.0.push(joined);
    }

    /// The group that `name` is in; itself alone if none is known.
    fn of(&self, name: &str) -> BTreeSet<String> {
        let known = self.0.iter().find(|group| group.contains(name));
        known.cloned().unwrap_or_else(|| BTreeSet::from([name.to_owned()]))
    }
}

/// What to plan for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What adapters may change.
    pub slots: &'a [SlotWeight],
    /// Every weight that the engine can be given, in its order.
    pub prototypes: &'a IndexMap<String, Prototype>,
    /// Type and element count of the weights in the engine file.
    pub stored: &'a BTreeMap<String, Prototype>,
    /// Weights that go together.
    pub groups: &'a Groups,
    /// Slot → what identifies the sum of the adapters' factors for it. A slot that is not named gets its pristine rows.
    pub adapters: &'a BTreeMap<String, u64>,
    /// What the engine holds now.
    pub held: &'a Held,
    /// Bytes of fused weights that may lie in memory at a time. Pristine ones are handed over in place and cost nothing.
    pub staging: usize,
}

/// One weight to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub weight: String,
    /// What it gets.
    pub content: Content,
}

/// Weights to set before one refit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// In the engine's order.
    pub changes: Vec<Change>,
    /// Bytes of those that are fused.
    pub staging: usize,
}

/// All that is to be done, in order. Nothing if the engine holds what it shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefitPlan {
    /// One refit each.
    pub rounds: Vec<Round>,
}

/// Why the weights cannot be replaced as asked. The engine is untouched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefitPlanError {
    /// Adapters are given for a layer that is none.
    #[error(
        "adapters change slot `{slot}`, which the engine does not have; open the engine that they were matched with"
    )]
    UnknownSlot {
        /// The slot.
        slot: String,
    },
    /// The weight of a slot is constant in the plan.
    #[error(
        "slot `{slot}`: weight `{weight}` cannot be replaced in this plan; compile it again so that it feeds its layer directly"
    )]
    NotRefittable {
        /// The slot.
        slot: String,
        /// Its weight.
        weight: String,
    },
    /// A weight that the plan needs is not in the engine file.
    #[error("the plan needs weight `{weight}`, which the engine file does not hold; compile the model again")]
    NotStored {
        /// The weight.
        weight: String,
    },
    /// A weight is stored in another form than the plan wants.
    #[error("weight `{weight}`: the plan expects {expected}, the engine file holds {found}; compile the model again")]
    Form {
        /// The weight.
        weight: String,
        /// What the plan expects.
        expected: String,
        /// What is stored.
        found: String,
    },
    /// Weights that must be set together do not fit into the staging memory.
    #[error(
        "fusing {weights} together takes {needed} bytes of staging memory, {available} are allowed; allow more, or use an \
         adapter for fewer layers"
    )]
    Staging {
        /// The weights.
        weights: String,
        /// Bytes needed at a time.
        needed: usize,
        /// Bytes allowed.
        available: usize,
    },
}

/// Plans the rounds that bring an engine from what it holds to what the adapters ask for.
///
/// The first round sets every placeholder, since nothing is refit before all of them are: in place where it stays
/// pristine, fused as far as the staging memory reaches. Further rounds set, group by group, what changes besides. A weight
/// is set only if it or another of its group changes; fused weights are always made from the pristine ones.
///
/// # Errors
/// [`RefitPlanError`], by the first slot or weight in order.
pub fn plan(request: &Request<'_>) -> Result<RefitPlan, RefitPlanError> {
    let wanted = wanted(request)?;
    let changed = |name: &String| request.held.get(name) != Some(&wanted[name]);
    let mut seen = BTreeSet::new();
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for name in request.prototypes.keys().filter(|name| changed(name)) {
        if seen.contains(name) {
            continue;
        }
        let group: BTreeSet<String> =
            request.groups.of(name).into_iter().filter(|name| wanted.contains_key(name)).collect();
        seen.extend(group.iter().cloned());
        let unset = group.iter().any(|name| !request.held.contains_key(name));
        if unset { first.push(group) } else { later.push(group) }
    }
    let mut packer = Packer { request, wanted: &wanted, rounds: Vec::new() };
    packer.place_unset(first, &mut later)?;
    for group in later {
        packer.append(&group)?;
    }
    let order = |change: &Change| request.prototypes.get_index_of(&change.weight);
    for round in &mut packer.rounds {
        round.changes.sort_by_key(order);
    }
    Ok(RefitPlan { rounds: packer.rounds })
}

/// What every weight shall hold, after checking that it can be given.
fn wanted(request: &Request<'_>) -> Result<Held, RefitPlanError> {
    let mut wanted: Held = request.prototypes.keys().map(|name| (name.clone(), Content::Pristine)).collect();
    for (slot, &digest) in request.adapters {
        let Some(known) = request.slots.iter().find(|known| known.slot == *slot) else {
            return Err(RefitPlanError::UnknownSlot { slot: slot.clone() });
        };
        match wanted.get_mut(&known.weight) {
            None => {
                return Err(RefitPlanError::NotRefittable { slot: slot.clone(), weight: known.weight.clone() });
            }
            Some(Content::Fused(slots)) => drop(slots.insert(slot.clone(), digest)),
            Some(content) => *content = Content::Fused(BTreeMap::from([(slot.clone(), digest)])),
        }
    }
    for (weight, prototype) in request.prototypes {
        let Some(stored) = request.stored.get(weight) else {
            return Err(RefitPlanError::NotStored { weight: weight.clone() });
        };
        if stored != prototype {
            let text = |p: &Prototype| format!("{} elements of {}", p.count, p.dtype);
            return Err(RefitPlanError::Form {
                weight: weight.clone(),
                expected: text(prototype),
                found: text(stored),
            });
        }
    }
    Ok(wanted)
}

/// Puts groups into rounds.
struct Packer<'a> {
    request: &'a Request<'a>,
    wanted: &'a Held,
    rounds: Vec<Round>,
}

impl Packer<'_> {
    /// The one round that sets every placeholder. Groups that do not fit any more go in pristine, and again in `later`.
    fn place_unset(
        &mut self,
        groups: Vec<BTreeSet<String>>,
        later: &mut Vec<BTreeSet<String>>,
    ) -> Result<(), RefitPlanError> {
        let mut round = Round::default();
        let mut postponed = Vec::new();
        for group in groups {
            let needed = self.fused_bytes(&group)?;
            let fits = round.staging + needed <= self.request.staging;
            if fits {
                round.staging += needed;
            }
            round.changes.extend(group.iter().map(|weight| {
                let content = if fits { self.wanted[weight].clone() } else { Content::Pristine };
                Change { weight: weight.clone(), content }
            }));
            if !fits {
                postponed.push(group);
            }
        }
        if !round.changes.is_empty() {
            self.rounds.push(round);
        }
        postponed.append(later);
        *later = postponed;
        Ok(())
    }

    /// Adds a group to the last round, or to a new one if its fused weights do not fit there.
    fn append(&mut self, group: &BTreeSet<String>) -> Result<(), RefitPlanError> {
        let needed = self.fused_bytes(group)?;
        // A weight is set once in a round: one that went in pristine needs the next.
        let fits = |round: &&mut Round| {
            round.staging + needed <= self.request.staging && round.changes.iter().all(|c| !group.contains(&c.weight))
        };
        let changes = group.iter().map(|name| Change { weight: name.clone(), content: self.wanted[name].clone() });
        match self.rounds.last_mut().filter(fits) {
            Some(round) => {
                round.changes.extend(changes);
                round.staging += needed;
            }
            None => self.rounds.push(Round { changes: changes.collect(), staging: needed }),
        }
        Ok(())
    }

    /// Bytes of the group's weights that are to be fused.
    fn fused_bytes(&self, group: &BTreeSet<String>) -> Result<usize, RefitPlanError> {
        let fused = |name: &&String| matches!(self.wanted[*name], Content::Fused(_));
        let names: Vec<&str> = group.iter().filter(fused).map(String::as_str).collect();
        let needed = names.iter().map(|name| self.request.prototypes[*name].bytes()).sum();
        let available = self.request.staging;
        if needed > available {
            return Err(RefitPlanError::Staging { weights: names.join(", "), needed, available });
        }
        Ok(needed)
    }
}
