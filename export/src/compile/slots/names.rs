//! Names from what the exporter left beside a matrix.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use v2l_graphs::Model;
use v2l_graphs::passes::{ALIASES_KEY, TRANSFORMS_KEY};
use v2l_graphs::slots::LinearUse;
use v2l_runtime::engine::manifest::{Found, How};

use super::found::{Foreign, Layer};

/// The module that a parameter's name speaks of.
pub(super) fn module(name: &str, end: &str) -> Option<String> {
    name.strip_suffix(end).filter(|m| !m.is_empty()).map(str::to_owned)
}

/// What the node says of its module: its own bias, then its scope.
pub(super) fn at_node(of: &LinearUse) -> Option<(String, How)> {
    let bias = of.bias.as_ref().and_then(|b| module(b, ".bias")).map(|m| (m, How::Bias));
    bias.or_else(|| of.scope.clone().map(|scope| (scope, How::Scope)))
}

/// Which initializers are forms of one parameter, as the passes recorded it.
#[derive(Default)]
pub(super) struct Forms {
    aliases: BTreeMap<String, String>,
    transforms: BTreeMap<String, String>,
}

impl Forms {
    pub(super) fn of(model: &Model) -> Self {
        let read = |key: &str| model.metadata.get(key).and_then(|text| serde_json::from_str(text).ok());
        Self { aliases: read(ALIASES_KEY).unwrap_or_default(), transforms: read(TRANSFORMS_KEY).unwrap_or_default() }
    }

    /// The parameter's own name.
    pub(super) fn root<'a>(&'a self, tensor: &'a str) -> &'a str {
        self.aliases.get(tensor).map_or(tensor, String::as_str)
    }

    /// True if the initializer is the parameter's transpose; `None` if the exporter may have turned it before.
    pub(super) fn turned(&self, tensor: &str) -> Option<bool> {
        match self.transforms.get(tensor) {
            Some(steps) => Some(steps.split('+').any(|step| step == "transposed")),
            None => self.root(tensor).ends_with(".weight").then_some(false),
        }
    }

    /// Whether a product takes the parameter as a linear layer does, `x · Wᵀ`.
    fn own(&self, of: &LinearUse) -> Option<bool> {
        self.turned(&of.weight).map(|turned| turned == of.transposed)
    }
}

/// Some products by one parameter, and the name that they claim.
struct Claim<'a> {
    tensor: &'a String,
    module: String,
    how: How,
    uses: Vec<usize>,
    foreign: Vec<usize>,
    aliases: Vec<String>,
}

/// Layers of the uses at `open`, by names that are not `known` yet, and products that are no layer's own.
///
/// An initializer that products of several modules share is one parameter for each of them. Where initializers of
/// different content claim one name, all keep their own; `same` compares the matrices of two uses, or the one with the
/// other's transpose.
pub(super) fn name(
    uses: &[LinearUse],
    open: &[usize],
    known: BTreeSet<String>,
    forms: &Forms,
    same: &dyn Fn(usize, usize, bool) -> bool,
) -> (Vec<Layer>, Vec<Foreign>) {
    let mut by_parameter: IndexMap<&str, Vec<usize>> = IndexMap::new();
    for &at in open {
        by_parameter.entry(forms.root(&uses[at].weight)).or_default().push(at);
    }
    let mut claims: Vec<Claim<'_>> = Vec::new();
    for (parameter, readers) in by_parameter {
        let (readers, mut foreign) = owners(uses, readers, forms);
        let named = module(parameter, ".weight").map(|m| (m, How::Initializer));
        let told: Option<Vec<_>> = readers.iter().map(|&at| at_node(&uses[at])).collect();
        let mut claim = |module: String, how: How, readers: Vec<usize>| {
            let (tensor, foreign) = (&uses[readers[0]].weight, std::mem::take(&mut foreign));
            claims.push(Claim { tensor, module, how, uses: readers, foreign, aliases: Vec::new() });
        };
        match told {
            Some(told) if readers.len() > 1 => {
                let mut modules: IndexMap<String, (How, Vec<usize>)> = IndexMap::new();
                for ((module, how), at) in told.into_iter().zip(readers) {
                    modules.entry(module).or_insert((how, Vec::new())).1.push(at);
                }
                match (modules.len(), named) {
                    (1, Some((module, how))) => {
                        claim(module, how, modules.into_values().flat_map(|(_, readers)| readers).collect());
                    }
                    _ => modules.into_iter().for_each(|(m, (how, readers))| claim(m, how, readers)),
                }
            }
            _ => {
                let of = &uses[readers[0]];
                let (module, how) =
                    named.or_else(|| at_node(of)).unwrap_or_else(|| (of.weight.clone(), How::Initializer));
                claim(module, how, readers);
            }
        }
    }
    settle_claims(give_way(join_copies(claims, same), uses, forms, same), known)
}

/// The products that are the layer's own, and those that take its matrix the other way round.
fn owners(uses: &[LinearUse], readers: Vec<usize>, forms: &Forms) -> (Vec<usize>, Vec<usize>) {
    let first = uses[readers[0]].transposed;
    let any = readers.iter().any(|&at| forms.own(&uses[at]) == Some(true));
    readers.into_iter().partition(|&at| match forms.own(&uses[at]) {
        Some(own) => own || !any,
        None => any || uses[at].transposed == first,
    })
}

/// The module that TorchScript names `fc_1` where `fc` is called again.
fn first_call(module: &str, how: How) -> Option<&str> {
    let (first, number) = module.rsplit_once('_').filter(|_| how == How::Scope)?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(first)
}

/// Claims of one name become one where exporters stored a layer once for each call, or numbered the calls.
fn join_copies<'a>(claims: Vec<Claim<'a>>, same: &dyn Fn(usize, usize, bool) -> bool) -> Vec<Claim<'a>> {
    let mut joined: Vec<Claim<'a>> = Vec::new();
    for claim in claims {
        let first = first_call(&claim.module, claim.how);
        let home = joined.iter_mut().find(|home| {
            let named = home.module == claim.module || Some(&home.module[..]) == first;
            named && (home.tensor == claim.tensor || same(home.uses[0], claim.uses[0], false))
        });
        match home {
            Some(home) => {
                if home.module != claim.module {
                    home.aliases.push(claim.module);
                }
                home.uses.extend(claim.uses);
                home.foreign.extend(claim.foreign);
            }
            None => joined.push(claim),
        }
    }
    joined
}

/// A product that takes a parameter the other way round has the parameter's name only if no layer has it: exporters
/// store the transpose that the layer takes under another.
fn give_way<'a>(
    claims: Vec<Claim<'a>>,
    uses: &[LinearUse],
    forms: &Forms,
    same: &dyn Fn(usize, usize, bool) -> bool,
) -> Vec<Claim<'a>> {
    let other_way = |c: &Claim<'_>| c.how == How::Initializer && forms.own(&uses[c.uses[0]]) == Some(false);
    let (others, mut owners): (Vec<_>, Vec<_>) = claims.into_iter().partition(other_way);
    for other in others {
        let owner = owners.iter_mut().find(|c| c.module == other.module && same(c.uses[0], other.uses[0], true));
        match owner {
            Some(owner) => owner.foreign.extend(other.uses.into_iter().chain(other.foreign)),
            None => owners.push(other),
        }
    }
    owners.sort_by_key(|claim| claim.uses[0]);
    owners
}

fn settle_claims(claims: Vec<Claim<'_>>, known: BTreeSet<String>) -> (Vec<Layer>, Vec<Foreign>) {
    let mut times: BTreeMap<String, usize> = known.into_iter().map(|name| (name, 1)).collect();
    for claim in &claims {
        *times.entry(claim.module.clone()).or_default() += 1;
    }
    let (mut layers, mut foreign): (Vec<Layer>, Vec<Foreign>) = (Vec::new(), Vec::new());
    for Claim { tensor, module, how, uses, foreign: others, aliases } in claims {
        let (name, how) = if times[&module] == 1 { (module, how) } else { (tensor.clone(), How::Initializer) };
        foreign.extend(others.into_iter().map(|at| Foreign { at, layer: name.clone() }));
        match layers.iter_mut().find(|l| l.name == name) {
            Some(layer) => layer.uses.extend(uses),
            None => layers.push(Layer { name, found: Found::by(how), rows: None, aliases, uses }),
        }
    }
    (layers, foreign)
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
        let (layers, foreign) = name(uses, &open, BTreeSet::new(), &Forms::default(), &|_, _, _| false);
        assert!(foreign.is_empty());
        layers.into_iter().map(|l| (l.name, l.found.how, l.uses)).collect()
    }

    #[test]
    fn layer_owns_its_name_and_a_product_with_its_transpose_does_not() {
        let upright = |node| LinearUse { transposed: false, ..product(node, "fc.weight", "", "") };
        let forms = Forms {
            aliases: BTreeMap::from([("fc.weight.transposed".to_owned(), "fc.weight".to_owned())]),
            transforms: BTreeMap::from([("fc.weight.transposed".to_owned(), "transposed".to_owned())]),
        };
        // h · W before x · Wᵀ, which has the matrix as Gemm takes it, or as MatMul does.
        for own in [upright(1), product(1, "fc.weight.transposed", "", "")] {
            let uses = [product(0, "fc.weight", "", ""), own];
            let (layers, foreign) = name(&uses, &[0, 1], BTreeSet::new(), &forms, &|_, _, _| false);
            assert_eq!((layers.len(), &layers[0].name[..], &layers[0].uses[..]), (1, "fc", &[1][..]));
            assert_eq!((foreign.len(), foreign[0].at, &foreign[0].layer[..]), (1, 0, "fc"));
        }
        // Alone, h · W is a layer that is stored [in, out].
        let (layers, foreign) =
            name(&[product(0, "fc.weight", "", "")], &[0], BTreeSet::new(), &forms, &|_, _, _| false);
        assert_eq!((layers[0].name.as_str(), foreign.len()), ("fc", 0));
    }

    #[test]
    fn layer_that_exporters_stored_transposed_owns_the_parameters_name() {
        let uses = [product(0, "fc.weight", "", ""), product(1, "val_0", "fc.bias", "")];
        let turned = |_, _, turned: bool| turned;
        let (layers, foreign) = name(&uses, &[0, 1], BTreeSet::new(), &Forms::default(), &turned);
        assert_eq!((layers.len(), &layers[0].name[..], &layers[0].uses[..]), (1, "fc", &[1][..]));
        assert_eq!((foreign.len(), foreign[0].at), (1, 0));
        // Another matrix of that name stays another.
        let (layers, foreign) = name(&uses, &[0, 1], BTreeSet::new(), &Forms::default(), &|_, _, _| false);
        assert_eq!((layers.len(), foreign.len()), (2, 0));
    }

    #[test]
    fn calls_that_the_exporter_numbered_are_one_layer() {
        let shared = [product(0, "w", "", "a.fc"), product(1, "w", "", "a.fc_1"), product(2, "v", "", "a.fc_2")];
        for (same, count) in [(true, 1), (false, 2)] {
            let (layers, _) = name(&shared, &[0, 1, 2], BTreeSet::new(), &Forms::default(), &|_, _, _| same);
            assert_eq!((layers.len(), &layers[0].name[..], &layers[0].aliases[0][..]), (count, "a.fc", "a.fc_1"));
        }
    }

    #[test]
    fn layer_that_is_stored_once_for_each_call_is_one() {
        let uses = [product(0, "val_1", "", "b.fc"), product(1, "val_2", "", "b.fc")];
        let (layers, _) = name(&uses, &[0, 1], BTreeSet::new(), &Forms::default(), &|_, _, _| true);
        assert_eq!((layers.len(), &layers[0].name[..], &layers[0].uses[..]), (1, "b.fc", &[0, 1][..]));
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
