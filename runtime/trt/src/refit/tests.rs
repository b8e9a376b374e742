//! The planner against a model of the refitter's rules, over every small case.

mod weighted;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

use super::*;
use crate::DataType;

const BYTES: usize = 8;
const WEIGHTS: [&str; 4] = ["a", "b", "c", "d"];
/// Two slots are rows of one weight, one weight has none.
const SLOTS: [(&str, &str); 4] = [("a.0", "a"), ("a.1", "a"), ("b", "b"), ("c", "c")];

/// An engine that keeps the rules of TensorRT's refitter.
struct Engine {
    prototypes: IndexMap<String, Prototype>,
    /// Weights that TensorRT fused: all or none of them.
    groups: Vec<BTreeSet<&'static str>>,
    held: BTreeMap<String, Vec<u8>>,
    /// The refit that fails after it has replaced one weight.
    fails: Option<usize>,
    refits: usize,
    touched: BTreeSet<String>,
    largest_staging: usize,
}

impl Refitter for Engine {
    fn refit(&mut self, weights: &[(&str, &[u8])]) -> Result<Outcome, RefitError> {
        let names: BTreeSet<&str> = weights.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), weights.len(), "a weight is set twice");
        for (name, bytes) in weights {
            let fits = self.prototypes.get(*name).is_some_and(|prototype| prototype.bytes() == bytes.len());
            if !fits {
                return Err(RefitError::Refused { weight: (*name).into(), reason: "type or count".into() });
            }
        }
        let unset = self.prototypes.keys().filter(|name| !self.held.contains_key(*name)).map(String::as_str);
        let torn = self.groups.iter().filter(|group| !group.is_disjoint(&names)).flatten().copied();
        let missing: BTreeSet<&str> = unset.chain(torn).filter(|name| !names.contains(name)).collect();
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing.into_iter().map(str::to_owned).collect()));
        }
        self.refits += 1;
        let fails = self.fails == Some(self.refits);
        for (name, bytes) in weights.iter().take(if fails { 1 } else { usize::MAX }) {
            self.held.insert((*name).into(), bytes.to_vec());
            self.touched.insert((*name).into());
        }
        let staged = weights.iter().filter(|(_, bytes)| **bytes != *pristine()).map(|(_, bytes)| bytes.len()).sum();
        self.largest_staging = self.largest_staging.max(staged);
        if fails { Err(RefitError::Failed { reason: "out of memory".into() }) } else { Ok(Outcome::Done) }
    }
}

fn pristine() -> &'static [u8] {
    &[0; BYTES]
}

/// Bytes that tell what was fused.
fn bytes_of(content: &Content) -> Vec<u8> {
    let Content::Fused(slots) = content else { return pristine().to_vec() };
    let mut bytes = vec![0; BYTES];
    for (slot, digest) in slots {
        let at = SLOTS.iter().position(|(name, _)| name == slot).unwrap();
        bytes[at] = u8::try_from(*digest).unwrap();
    }
    bytes
}

struct Source;

impl Staging for Source {
    type Error = String;
    type Data = Cow<'static, [u8]>;

    fn weight(&self, change: &Change) -> Result<Cow<'static, [u8]>, String> {
        Ok(match &change.content {
            Content::Pristine => Cow::Borrowed(pristine()),
            fused => Cow::Owned(bytes_of(fused)),
        })
    }
}

fn prototypes() -> IndexMap<String, Prototype> {
    let prototype = Prototype { dtype: DataType::Bf16, count: BYTES / 2 };
    WEIGHTS.iter().map(|name| ((*name).to_owned(), prototype)).collect()
}

fn slots() -> Vec<SlotWeight> {
    SLOTS.iter().map(|(slot, weight)| SlotWeight { slot: (*slot).into(), weight: (*weight).into() }).collect()
}

/// Every way to divide the weights into groups.
fn partitions(names: &[&'static str]) -> Vec<Vec<BTreeSet<&'static str>>> {
    let Some((first, rest)) = names.split_first() else { return vec![Vec::new()] };
    let mut found = Vec::new();
    for smaller in partitions(rest) {
        for at in 0..smaller.len() {
            let mut joined = smaller.clone();
            joined[at].insert(first);
            found.push(joined);
        }
        let mut alone = smaller;
        alone.push(BTreeSet::from([*first]));
        found.push(alone);
    }
    found
}

/// The adapters of a number from 0 to 80: each slot has none, the first or the second.
fn adapters(mut number: u64) -> BTreeMap<String, u64> {
    let mut chosen = BTreeMap::new();
    for (slot, _) in SLOTS {
        if !number.is_multiple_of(3) {
            chosen.insert(slot.to_owned(), number % 3);
        }
        number /= 3;
    }
    chosen
}

fn expected(adapters: &BTreeMap<String, u64>) -> BTreeMap<String, Vec<u8>> {
    let content = |weight: &str| {
        let mine = SLOTS.iter().filter(|(_, of)| *of == weight);
        let fused: BTreeMap<String, u64> =
            mine.filter_map(|(slot, _)| Some(((*slot).to_owned(), *adapters.get(*slot)?))).collect();
        if fused.is_empty() { Content::Pristine } else { Content::Fused(fused) }
    };
    WEIGHTS.iter().map(|weight| ((*weight).to_owned(), bytes_of(&content(weight)))).collect()
}

/// One load and one swap.
struct Case {
    groups: Vec<BTreeSet<&'static str>>,
    known: bool,
    staging: usize,
    load: u64,
    swap: u64,
    fails: Option<usize>,
}

impl Case {
    fn run(&self) {
        let (prototypes, slots) = (prototypes(), slots());
        let stored: BTreeMap<String, Prototype> = prototypes.clone().into_iter().collect();
        let mut groups = Groups::default();
        if self.known {
            self.groups.iter().for_each(|group| groups.join(group.iter().copied()));
        }
        let mut engine = Engine {
            prototypes: prototypes.clone(),
            groups: self.groups.clone(),
            held: BTreeMap::new(),
            fails: self.fails,
            refits: 0,
            touched: BTreeSet::new(),
            largest_staging: 0,
        };
        let mut held = Held::new();
        for (step, number) in [self.load, self.swap].into_iter().enumerate() {
            let adapters = adapters(number);
            let before = (engine.held.clone(), engine.refits);
            engine.touched.clear();
            let request = Request {
                slots: &slots,
                prototypes: &prototypes,
                stored: &stored,
                groups: &groups,
                adapters: &adapters,
                held: &held,
                staging: self.staging,
            };
            match apply(&request, &mut engine, &Source) {
                Ok(applied) => {
                    assert_eq!(engine.held, expected(&adapters), "the engine holds something else");
                    assert_eq!(applied.refits, engine.refits - before.1);
                    let told = applied.held.iter().map(|(name, content)| (name.clone(), bytes_of(content)));
                    assert_eq!(told.collect::<BTreeMap<_, _>>(), engine.held, "what is told is not what is held");
                    if step == 1 {
                        self.only_what_changes(&before.0, &engine);
                    }
                    held = applied.held;
                }
                Err(error) => {
                    let replaced = engine.held != before.0 || engine.refits > before.1;
                    assert_eq!(error.poisoned, replaced, "{error:?}");
                    let failed = matches!(error.cause, Cause::Refit(RefitError::Failed { .. }));
                    let scarce = matches!(error.cause, Cause::Plan(RefitPlanError::Staging { .. }));
                    assert!(
                        failed == (self.fails == Some(engine.refits) && self.fails.is_some()) || scarce,
                        "{error:?}"
                    );
                    assert!(!scarce || self.staging < WEIGHTS.len() * BYTES, "{error:?}");
                    return;
                }
            }
        }
        assert!(engine.largest_staging <= self.staging);
        assert!(self.fails.is_none_or(|at| at > engine.refits), "a failed refit went unnoticed");
    }

    /// A swap sets weights whose bytes change, and what TensorRT wants with them.
    fn only_what_changes(&self, before: &BTreeMap<String, Vec<u8>>, engine: &Engine) {
        let changed = |name: &&&str| before[**name] != engine.held[**name];
        let together = |name: &str| self.groups.iter().find(|group| group.contains(name)).unwrap();
        let needed: BTreeSet<String> =
            WEIGHTS.iter().filter(changed).flat_map(|name| together(name)).map(|name| (*name).to_owned()).collect();
        assert_eq!(engine.touched, needed, "a swap touches only what changes");
    }
}

#[test]
fn apply_keeps_the_refitters_rules_in_every_small_case() {
    let mut cases = 0;
    for groups in partitions(&WEIGHTS) {
        for (known, staging) in [(true, 1), (false, 1), (true, 2), (false, 2), (true, 4), (false, 4)] {
            for (load, swap) in (0..81).step_by(13).flat_map(|load| (0..81).map(move |swap| (load, swap))) {
                for fails in [None, Some(1), Some(2), Some(3)] {
                    let staging = staging * BYTES;
                    Case { groups: groups.clone(), known, staging, load, swap, fails }.run();
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 15 * 6 * 7 * 81 * 4);
}

#[test]
fn plan_with_nothing_to_change_is_empty() {
    let (prototypes, slots) = (prototypes(), slots());
    let stored: BTreeMap<String, Prototype> = prototypes.clone().into_iter().collect();
    let held: Held = WEIGHTS.iter().map(|name| ((*name).to_owned(), Content::Pristine)).collect();
    let request = Request {
        slots: &slots,
        prototypes: &prototypes,
        stored: &stored,
        groups: &Groups::default(),
        adapters: &BTreeMap::new(),
        held: &held,
        staging: 0,
    };
    assert_eq!(plan(&request).unwrap(), RefitPlan::default());
}

#[test]
fn plan_of_a_load_sets_every_placeholder_in_one_round_and_postpones_what_does_not_fit() {
    let (prototypes, slots) = (prototypes(), slots());
    let stored: BTreeMap<String, Prototype> = prototypes.clone().into_iter().collect();
    let adapters = BTreeMap::from([("a.0".to_owned(), 1), ("b".to_owned(), 1), ("c".to_owned(), 2)]);
    let request = Request {
        slots: &slots,
        prototypes: &prototypes,
        stored: &stored,
        groups: &Groups::default(),
        adapters: &adapters,
        held: &Held::new(),
        staging: BYTES,
    };
    let rounds = plan(&request).unwrap().rounds;
    let names = |round: &Round| round.changes.iter().map(|c| c.weight.clone()).collect::<Vec<_>>();
    assert_eq!(rounds.iter().map(names).collect::<Vec<_>>(), [&WEIGHTS[..], &["b"], &["c"]]);
    assert!(rounds.iter().all(|round| round.staging <= BYTES));
}

#[test]
fn plan_refuses_what_the_engine_cannot_take() {
    let (mut prototypes, slots) = (prototypes(), slots());
    let mut stored: BTreeMap<String, Prototype> = prototypes.clone().into_iter().collect();
    let message = |prototypes: &IndexMap<_, _>, stored: &BTreeMap<_, _>, slot: &str, staging| {
        let request = Request {
            slots: &slots,
            prototypes,
            stored,
            groups: &Groups::default(),
            adapters: &BTreeMap::from([(slot.to_owned(), 1)]),
            held: &Held::new(),
            staging,
        };
        plan(&request).unwrap_err().to_string()
    };
    assert!(message(&prototypes, &stored, "x", 99).contains("slot `x`, which the engine does not have"));
    assert!(message(&prototypes, &stored, "b", 7).contains("fusing b together takes 8 bytes"));
    stored.insert("c".into(), Prototype { dtype: DataType::F16, count: 4 });
    let form = "weight `c`: the plan expects 4 elements of bf16, the engine file holds 4 elements of f16";
    assert!(message(&prototypes, &stored, "b", 99).contains(form));
    stored.remove("c");
    assert!(message(&prototypes, &stored, "b", 99).contains("the plan needs weight `c`"));
    prototypes.shift_remove("b");
    assert!(message(&prototypes, &stored, "b", 99).contains("slot `b`: weight `b` cannot be replaced"));
}

#[test]
fn apply_gives_up_on_an_engine_that_asks_for_what_it_was_given() {
    struct Stubborn;
    impl Refitter for Stubborn {
        fn refit(&mut self, _: &[(&str, &[u8])]) -> Result<Outcome, RefitError> {
            Ok(Outcome::Missing(vec!["d".into()]))
        }
    }
    let (prototypes, slots) = (prototypes(), slots());
    let stored: BTreeMap<String, Prototype> = prototypes.clone().into_iter().collect();
    let request = Request {
        slots: &slots,
        prototypes: &prototypes,
        stored: &stored,
        groups: &Groups::default(),
        adapters: &BTreeMap::new(),
        held: &Held::new(),
        staging: 0,
    };
    let error = apply(&request, &mut Stubborn, &Source).unwrap_err();
    assert!(!error.poisoned && error.cause.to_string().contains("still misses d"), "{error:?}");
}

#[test]
fn groups_join_those_that_meet() {
    let mut groups = Groups::default();
    groups.join(["a", "b"]);
    groups.join(["c", "d"]);
    groups.join(["e"]);
    let mut expected = Groups::default();
    groups.join(["b", "c"]);
    expected.join(["a", "b", "c", "d"]);
    assert_eq!(groups, expected);
}
