//! Names from what the exporter left beside a matrix.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use v2l_graphs::slots::LinearUse;
use v2l_runtime::engine::manifest::{Found, How};

use super::Layer;

/// The module that a parameter's name speaks of.
pub(super) fn module(name: &str, end: &str) -> Option<String> {
    name.strip_suffix(end).filter(|m| !m.is_empty()).map(str::to_owned)
}

/// What the node says of its module: its own bias, then its scope.
pub(super) fn at_node(of: &LinearUse) -> Option<(String, How)> {
    let bias = of.bias.as_ref().and_then(|b| module(b, ".bias")).map(|m| (m, How::Bias));
    bias.or_else(|| of.scope.clone().map(|scope| (scope, How::Scope)))
}

/// Layers of the uses at `open`, by names that are not `known` yet.
///
/// An initializer that products of several modules share is one parameter for each of them. Where two initializers claim one
/// name, both keep their own.
pub(super) fn name(uses: &[LinearUse], open: &[usize], known: BTreeSet<String>) -> Vec<Layer> {
    let mut by_tensor: IndexMap<&String, Vec<usize>> = IndexMap::new();
    for &at in open {
        by_tensor.entry(&uses[at].weight).or_default().push(at);
    }
    let mut claims: Vec<(&String, String, How, Vec<usize>)> = Vec::new();
    for (tensor, readers) in by_tensor {
        let named = module(tensor, ".weight").map(|m| (m, How::Initializer));
        let told: Option<Vec<_>> = readers.iter().map(|&at| at_node(&uses[at])).collect();
        match told {
            Some(told) if readers.len() > 1 => {
                let mut modules: IndexMap<String, (How, Vec<usize>)> = IndexMap::new();
                for ((module, how), at) in told.into_iter().zip(readers) {
                    modules.entry(module).or_insert((how, Vec::new())).1.push(at);
                }
                match (modules.len(), named) {
                    (1, Some((module, how))) => {
                        let readers = modules.into_values().flat_map(|(_, readers)| readers).collect();
                        claims.push((tensor, module, how, readers));
                    }
                    _ => claims.extend(modules.into_iter().map(|(m, (how, readers))| (tensor, m, how, readers))),
                }
            }
            _ => {
                let at = readers[0];
                let (module, how) =
                    named.or_else(|| at_node(&uses[at])).unwrap_or_else(|| (tensor.clone(), How::Initializer));
                claims.push((tensor, module, how, readers));
            }
        }
    }
    let mut times: BTreeMap<String, usize> = known.into_iter().map(|name| (name, 1)).collect();
    for (_, module, ..) in &claims {
        *times.entry(module.clone()).or_default() += 1;
    }
    let mut layers: Vec<Layer> = Vec::new();
    for (tensor, module, how, readers) in claims {
        let (name, how) = if times[&module] == 1 { (module, how) } else { (tensor.clone(), How::Initializer) };
        match layers.iter_mut().find(|l| l.name == name) {
            Some(layer) => layer.uses.extend(readers),
            None => {
                layers.push(Layer { name, found: Found::by(how), rows: None, aliases: Vec::new(), uses: readers });
            }
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(node: usize, weight: &str, bias: &str, scope: &str) -> LinearUse {
        let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
        LinearUse {
            node,
            label: format!("node {node}"),
            weight: weight.into(),
            transposed: true,
            in_features: 2,
            out_features: 2,
            bias: text(bias),
            scope: text(scope),
        }
    }

    fn names(uses: &[LinearUse]) -> Vec<(String, How, Vec<usize>)> {
        let open: Vec<usize> = (0..uses.len()).collect();
        name(uses, &open, BTreeSet::new()).into_iter().map(|l| (l.name, l.found.how, l.uses)).collect()
    }

    #[test]
    fn initializer_then_bias_then_scope_give_the_name() {
        let found = names(&[
            product(0, "a.weight", "b.bias", "c"),
            product(1, "onnx::MatMul_1", "b.bias", "c"),
            product(2, "val_2", "val_3", "c"),
            product(3, "val_4", "", ""),
        ]);
        let expected = [("a", How::Initializer), ("b", How::Bias), ("c", How::Scope), ("val_4", How::Initializer)];
        let found: Vec<(&str, How)> = found.iter().map(|(name, how, _)| (name.as_str(), *how)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn shared_initializer_is_a_layer_for_each_module() {
        let found = names(&[product(0, "a.weight", "", "a"), product(1, "a.weight", "", "b")]);
        assert_eq!(found, [("a".into(), How::Scope, vec![0]), ("b".into(), How::Scope, vec![1])]);
        let called_twice = names(&[product(0, "a.weight", "", "x.a"), product(1, "a.weight", "", "x.a")]);
        assert_eq!(called_twice, [("a".into(), How::Initializer, vec![0, 1])]);
    }

    #[test]
    fn name_that_two_initializers_claim_is_given_to_none() {
        let found = names(&[product(0, "v", "", "block"), product(1, "w", "", "block")]);
        assert_eq!(found, [("v".into(), How::Initializer, vec![0]), ("w".into(), How::Initializer, vec![1])]);
    }
}
