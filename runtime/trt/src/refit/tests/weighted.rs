//! Changes of weights as a whole, with engines whose refits fail.

use std::cell::Cell;
use std::rc::Rc;

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("no device memory")]
struct Scarce;

/// Gives so many engines; the first fails at its `fails`th refit. Counts those that live.
struct Models {
    left: usize,
    fails: Option<usize>,
    placeholders: bool,
    alive: Rc<Cell<usize>>,
}

struct Model(Engine, Rc<Cell<usize>>);

impl Drop for Model {
    fn drop(&mut self) {
        self.1.set(self.1.get() - 1);
    }
}

impl Engines for Models {
    type Engine = Model;
    type Error = Scarce;

    fn load(&mut self) -> Result<Model, Scarce> {
        self.left = self.left.checked_sub(1).ok_or(Scarce)?;
        assert_eq!(self.alive.get(), 0, "two engines at a time do not fit");
        self.alive.set(1);
        let values = prototypes().into_keys().map(|name| (name, pristine().to_vec()));
        let engine = Engine {
            prototypes: prototypes(),
            groups: partitions(&WEIGHTS).remove(0),
            held: if self.placeholders { BTreeMap::new() } else { values.collect() },
            fails: self.fails.take(),
            refits: 0,
            touched: BTreeSet::new(),
            largest_staging: 0,
        };
        Ok(Model(engine, Rc::clone(&self.alive)))
    }

    fn prototypes(&self, engine: &mut Model) -> Result<IndexMap<String, Prototype>, Scarce> {
        Ok(engine.0.prototypes.clone())
    }

    fn refitter<'a>(&'a self, engine: &'a mut Model) -> Result<Box<dyn Refitter + 'a>, Scarce> {
        Ok(Box::new(Borrowed(&mut engine.0)))
    }
}

struct Borrowed<'a>(&'a mut Engine);

impl Refitter for Borrowed<'_> {
    fn refit(&mut self, weights: &[(&str, &[u8])]) -> Result<Outcome, RefitError> {
        self.0.refit(weights)
    }
}

/// An engine with the adapters of a number, of which the first `engines` can be loaded.
fn open(engines: usize, fails: Option<usize>, number: u64) -> (Weighted<Models, Source>, Rc<Cell<usize>>) {
    open_plan(true, engines, fails, number)
}

/// The same, of a plan with placeholders or without.
fn open_plan(
    placeholders: bool,
    engines: usize,
    fails: Option<usize>,
    number: u64,
) -> (Weighted<Models, Source>, Rc<Cell<usize>>) {
    let alive = Rc::new(Cell::new(0));
    let models = Models { left: engines, fails, placeholders, alive: Rc::clone(&alive) };
    let stored = prototypes().into_iter().collect();
    // Groups are unknown, and two weights are fused at a time.
    let fixed = Fixed { slots: slots(), stored, groups: Groups::default(), staging: 4 * BYTES, placeholders };
    (Weighted::open(models, fixed, adapters(number), Source, &Source).unwrap(), alive)
}

#[test]
fn weights_whose_refit_fails_are_the_former_ones_again() {
    for (before, after) in (0..81).flat_map(|before| (0..81).map(move |after| (before, after))) {
        let (mut weighted, alive) = open(2, Some(2), before);
        let refits = weighted.engine().unwrap().0.refits;
        assert_eq!(refits, 1, "all that is fused fits into one round");
        let changed = weighted.set(adapters(after), Source, &Source);
        assert_eq!(alive.get(), 1);
        match changed {
            Err(WeightedError::Restored(Cause::Refit(RefitError::Failed { .. }))) => {
                assert_eq!(weighted.engine().unwrap().0.held, expected(&adapters(before)));
                // What is remembered of the new engine is right: the next change touches no more than it must.
                let applied = weighted.set(adapters(after), Source, &Source).unwrap();
                assert!(applied.refits > 0 && weighted.engine().unwrap().0.held == expected(&adapters(after)));
            }
            Ok(applied) => assert!(before == after && applied.refits == 0, "{before} {after}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn weights_that_are_refused_are_as_they_were() {
    let (mut weighted, _) = open(1, None, 7);
    let unknown = BTreeMap::from([("x".to_owned(), 1)]);
    let error = weighted.set(unknown, Source, &Source).unwrap_err();
    assert!(matches!(error, WeightedError::Refused(Cause::Plan(RefitPlanError::UnknownSlot { .. }))), "{error}");
    assert_eq!(weighted.engine().unwrap().0.held, expected(&adapters(7)));
    weighted.set(adapters(11), Source, &Source).unwrap();
    assert_eq!(weighted.engine().unwrap().0.held, expected(&adapters(11)));
}

#[test]
fn weights_of_an_engine_that_cannot_be_loaded_again_are_gone() {
    let (mut weighted, alive) = open(1, Some(2), 7);
    let error = weighted.set(adapters(11), Source, &Source).unwrap_err();
    assert!(matches!(error, WeightedError::Lost { .. }) && error.to_string().contains("no device memory"), "{error}");
    assert!(weighted.engine().is_none() && alive.get() == 0);
    assert!(matches!(weighted.set(adapters(7), Source, &Source), Err(WeightedError::Load(Scarce))));
}

#[test]
fn weights_come_back_with_the_next_change_after_the_engine_is_gone() {
    for (number, known) in [(5, true), (0, true), (5, false)] {
        let (mut weighted, alive) = open(2, None, 7);
        weighted.discard();
        assert!(weighted.engine().is_none() && alive.get() == 0);
        let wanted = if known { adapters(number) } else { BTreeMap::from([("x".to_owned(), 1)]) };
        let set = weighted.set(wanted, Source, &Source);
        assert_eq!(set.is_ok(), known);
        match weighted.engine() {
            Some(engine) => assert_eq!(engine.0.held, expected(&adapters(number))),
            // It was loaded, and never given its weights.
            None => assert!(!known && alive.get() == 0),
        }
    }
}

#[test]
fn weights_of_an_engine_that_is_reset_are_those_that_it_is_reset_to() {
    let (mut weighted, alive) = open(2, None, 7);
    weighted.set(adapters(11), Source, &Source).unwrap();
    weighted.reset(adapters(7), Source).unwrap();
    let engine = &weighted.engine().unwrap().0;
    assert_eq!((engine.refits, engine.held.clone()), (1, expected(&adapters(7))), "of a new one");
    assert!(weighted.reset(adapters(11), Source).unwrap_err().contains("no device memory"));
    assert!(weighted.engine().is_none() && alive.get() == 0);
}

#[test]
fn plan_that_holds_its_weights_is_refit_only_where_adapters_change_it() {
    for (before, after) in (0..81).flat_map(|before| (0..81).map(move |after| (before, after))) {
        let (mut weighted, _) = open_plan(false, 2, None, before);
        let opened = &weighted.engine().unwrap().0;
        assert_eq!((opened.refits == 0, opened.held.clone()), (before == 0, expected(&adapters(before))));
        weighted.set(adapters(after), Source, &Source).unwrap();
        assert_eq!(weighted.engine().unwrap().0.held, expected(&adapters(after)));
    }
    // The first change of weights fails, and the engine that is loaded again holds the pristine ones by itself.
    let (mut weighted, _) = open_plan(false, 2, Some(1), 0);
    assert!(matches!(weighted.set(adapters(1), Source, &Source), Err(WeightedError::Restored(_))));
    let restored = &weighted.engine().unwrap().0;
    assert_eq!((restored.refits, restored.held.clone()), (0, expected(&adapters(0))));
}
