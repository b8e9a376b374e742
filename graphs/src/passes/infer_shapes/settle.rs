//! Numbers for the named extents of a model's inputs, so that it can be run.

use indexmap::IndexMap;

use super::inference::Inference;
use crate::symbolic::{Expr, Symbols};
use crate::{Dim, Model};

/// A number for each named extent of the main graph's inputs, in the order in which the inputs name them.
///
/// `given` is kept. What follows from it through the graph (the length of a table that is multiplied with a sequence, a
/// cache that is joined to a frame) is computed; `default(input, axis, rank)` chooses the rest, one after another, each
/// before what follows from it. An extent of which nothing is known goes by `<input>.<axis>`. Whether a model runs with
/// the result only a run can tell: not every constraint is found. Costs one shape inference per round.
pub fn settle_extents(
    model: &Model,
    given: &IndexMap<String, usize>,
    default: &dyn Fn(&str, usize, usize) -> usize,
) -> IndexMap<String, usize> {
    let mut model = model.clone();
    // What was recorded for other extents says nothing of these.
    model.graph.value_info.clear();
    let mut wanted: IndexMap<String, (String, usize, usize)> = IndexMap::new();
    for input in &mut model.graph.inputs {
        let Some(shape) = input.ty.as_mut().and_then(|ty| ty.shape.as_mut()) else { continue };
        let rank = shape.len();
        for (axis, dim) in shape.iter_mut().enumerate() {
            if *dim == Dim::Unknown || *dim == Dim::Symbol(String::new()) {
                *dim = Dim::Symbol(format!("{}.{axis}", input.name));
            }
            if let Dim::Symbol(name) = dim {
                wanted.entry(name.clone()).or_insert_with(|| (input.name.clone(), axis, rank));
            }
        }
    }
    let mut settled: IndexMap<String, usize> =
        given.iter().filter(|(name, _)| wanted.contains_key(*name)).map(|(name, n)| (name.clone(), *n)).collect();
    loop {
        for dim in model.graph.inputs.iter_mut().filter_map(|i| i.ty.as_mut()?.shape.as_mut()).flatten() {
            if let Dim::Symbol(name) = dim
                && let Some(&n) = settled.get(name)
            {
                *dim = Dim::Fixed(n);
            }
        }
        let Some((name, (input, axis, rank))) = wanted.iter().find(|(name, _)| !settled.contains_key(*name)) else {
            break;
        };
        let symbols = Inference::run(&model.graph, 1).facts.symbols;
        let found = symbols.equalities().iter().filter_map(|(a, b)| solve(&symbols, a, b));
        let before = settled.len();
        for (name, n) in found {
            settled.entry(name).or_insert(n);
        }
        if settled.len() == before {
            settled.insert(name.clone(), default(input, *axis, *rank));
        }
    }
    wanted.keys().map(|name| (name.clone(), settled[name])).collect()
}

/// What the equality says of the one extent in it that is not known yet.
fn solve(symbols: &Symbols, a: &Expr, b: &Expr) -> Option<(String, usize)> {
    let difference = a.sub(b)?;
    let (mut constant, mut linear) = (0, None);
    for (monomial, n) in difference.terms() {
        match monomial.factors() {
            [] => constant = n,
            [symbol] if linear.is_none() => linear = Some((*symbol, n)),
            _ => return None,
        }
    }
    let (symbol, n) = linear?;
    let name = symbols.declared_name(symbol)?;
    let value = constant.checked_neg()?.checked_div(n).filter(|value| value.checked_mul(n) == Some(-constant))?;
    Some((name.to_owned(), usize::try_from(value).ok().filter(|value| *value > 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType};

    #[test]
    fn settle_extents_follows_products_and_joins() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("batch"), Dim::from("frames"), Dim::from("height")]);
        let table = b.input("table", DataType::Float, [Dim::from("tokens")]);
        let cache = b.input("cache", DataType::Float, [Dim::from("batch"), Dim::from("rows")]);
        let two = b.ints(&[0, -1]);
        let flat = b.op("Reshape", &[&x, &two]);
        let y = b.op("Mul", &[&flat, &table]);
        let joined = b.concat(&[&y, &cache], 0);
        b.output("y", &joined, DataType::Float, [Dim::Unknown, Dim::Unknown]);
        let model = b.finish().unwrap();
        let given = IndexMap::from([("height".to_owned(), 6), ("other".to_owned(), 9)]);
        let settled = settle_extents(&model, &given, &|input, axis, rank| {
            assert_eq!((input, rank), ("x", 3));
            axis + 2
        });
        let pairs: Vec<(&str, usize)> = settled.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(pairs, [("batch", 2), ("frames", 3), ("height", 6), ("tokens", 18), ("rows", 18)]);
    }
}
