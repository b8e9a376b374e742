//! From contents to layers: which of several tensors with equal content a product multiplies by.

use std::collections::{BTreeMap, BTreeSet};

use v2l_graphs::slots::LinearUse;
use v2l_runtime::engine::manifest::{Found, How, RowRange};

use super::content::{Content, Contents};
use super::found::{AmbiguousSlot, Foreign, Layer};
use super::names::{at_node, module};
use crate::Checkpoint;

/// Layers that are certain, and what is not.
pub(super) struct Settled {
    pub(super) layers: Vec<Layer>,
    pub(super) ambiguous: Vec<AmbiguousSlot>,
    /// Rows of fused layers that no tensor has.
    pub(super) gaps: Vec<String>,
    /// Products that take a layer's matrix the other way round.
    pub(super) foreign: Vec<Foreign>,
}

/// Tensor of the checkpoint, true if the graph stores its transpose, and what told it from others.
type Choice<'a> = (&'a str, bool, Option<How>);

/// The module that a checkpoint's tensor is the weight of.
pub(super) fn module_of(tensor: &str) -> String {
    module(tensor, ".weight").unwrap_or_else(|| tensor.to_owned())
}

/// True if one path is the other, or its end: exporters see a model inside a wrapper, checkpoints a model inside a
/// prefix.
pub(super) fn agree(a: &str, b: &str) -> bool {
    let ends = |long: &str, short: &str| long.strip_suffix(short).is_some_and(|start| start.ends_with('.'));
    a == b || ends(a, b) || ends(b, a)
}

/// The longest path that both begin with.
fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.split('.').zip(b.split('.')).take_while(|(x, y)| x == y);
    let length: usize = same.map(|(x, _)| x.len() + 1).sum();
    &a[..length.saturating_sub(1).min(a.len())]
}

/// Names every product by a matrix that was found in the checkpoint.
///
/// Where several tensors have its content, the initializer's name, the bias, the scope and the layers before and after
/// decide; what none of them decides is ambiguous.
pub(super) fn settle(uses: &[LinearUse], contents: &Contents, checkpoint: &Checkpoint) -> Settled {
    let mut settled = Settled { layers: Vec::new(), ambiguous: Vec::new(), gaps: Vec::new(), foreign: Vec::new() };
    let mut readers: BTreeMap<&str, usize> = BTreeMap::new();
    for of in uses {
        *readers.entry(&of.weight).or_default() += 1;
    }
    let mut chosen: BTreeMap<usize, Choice<'_>> = BTreeMap::new();
    let mut open: BTreeMap<usize, &[(String, bool)]> = BTreeMap::new();
    for (at, of) in uses.iter().enumerate() {
        match contents.found.get(&of.weight).map(|c| c.whole.as_slice()) {
            None | Some([]) => {}
            Some([(only, turned)]) => drop(chosen.insert(at, (only, *turned, None))),
            Some(several) => match told_apart(of, several, readers[of.weight.as_str()] == 1) {
                Some(((name, turned), how)) => drop(chosen.insert(at, (name, *turned, Some(how)))),
                None => drop(open.insert(at, several)),
            },
        }
    }
    by_position(&mut chosen, &mut open);
    doubt_merged(uses, contents, checkpoint, &mut chosen, &mut open);
    for (at, candidates) in open {
        settled.ambiguous.push(AmbiguousSlot {
            tensor: uses[at].weight.clone(),
            node: uses[at].label.clone(),
            candidates: candidates.iter().map(|(name, _)| name.clone()).collect(),
        });
    }
    let mut by_name: BTreeMap<&str, Vec<(usize, Choice<'_>)>> = BTreeMap::new();
    for (at, choice) in chosen {
        by_name.entry(choice.0).or_default().push((at, choice));
    }
    for (tensor, at) in by_name {
        // What takes the matrix the other way round is not the layer, if something else is.
        let own = |(at, (_, turned, _)): &(usize, Choice<'_>)| *turned == uses[*at].transposed;
        let (at, foreign): (Vec<_>, Vec<_>) = match at.iter().any(own) {
            true => at.into_iter().partition(own),
            false => (at, Vec::new()),
        };
        let layer = module_of(tensor);
        settled.foreign.extend(foreign.into_iter().map(|(at, _)| Foreign { at, layer: layer.clone() }));
        let (_, (_, turned, _)) = at[0];
        let how = if turned { How::TransposedContent } else { How::Content };
        let settled_by = at.iter().find_map(|(_, (.., how))| *how);
        let found = Found { how, checkpoint: Some(tensor.to_owned()), settled_by };
        let at: Vec<usize> = at.into_iter().map(|(at, _)| at).collect();
        let aliases = aliases(uses, &at, &layer, checkpoint);
        settled.layers.push(Layer { name: layer, found, rows: None, aliases, uses: at });
    }
    let mut seen = BTreeSet::new();
    for (at, of) in uses.iter().enumerate() {
        let Some(content) = contents.found.get(&of.weight).filter(|c| c.whole.is_empty()) else { continue };
        if seen.insert(&of.weight) {
            let at: Vec<usize> = (at..uses.len()).filter(|&i| uses[i].weight == of.weight).collect();
            pieces(uses, &at, content, &mut settled);
        }
    }
    settled
}

/// The candidate that initializer, bias or scope name.
fn told_apart<'a>(of: &LinearUse, candidates: &'a [(String, bool)], alone: bool) -> Option<(&'a (String, bool), How)> {
    let initializer = module(&of.weight, ".weight").filter(|_| alone).map(|m| (m, How::Initializer));
    let bias = of.bias.as_ref().and_then(|b| module(b, ".bias")).map(|m| (m, How::Bias));
    let scope = of.scope.clone().map(|s| (s, How::Scope));
    [initializer, bias, scope].into_iter().flatten().find_map(|(module, how)| {
        let exact = candidates.iter().find(|(name, _)| module_of(name) == module);
        let mut close = candidates.iter().filter(|(name, _)| agree(&module_of(name), &module));
        let only = exact.or_else(|| close.next().filter(|_| close.next().is_none()));
        only.map(|candidate| (candidate, how))
    })
}

/// Decides by the certain layers next to a product, where they are of one module that holds only one candidate; then
/// the last candidate is the last product's, if there are as many of each.
fn by_position<'a>(chosen: &mut BTreeMap<usize, Choice<'a>>, open: &mut BTreeMap<usize, &'a [(String, bool)]>) {
    let certain: BTreeMap<usize, String> = chosen.iter().map(|(at, (name, ..))| (*at, module_of(name))).collect();
    open.retain(|&at, candidates| {
        let (before, after) = (certain.range(..at).next_back(), certain.range(at..).next());
        let (Some((_, before)), Some((_, after))) = (before, after) else { return true };
        let around = common(before, after);
        let mut inside = candidates.iter().filter(|(name, _)| {
            !around.is_empty() && name.strip_prefix(around).is_some_and(|rest| rest.starts_with('.'))
        });
        match (inside.next(), inside.next()) {
            (Some((name, turned)), None) if !chosen.values().any(|(taken, ..)| taken == name) => {
                chosen.insert(at, (name, *turned, Some(How::Position)));
                false
            }
            _ => true,
        }
    });
    let mut groups: BTreeMap<Vec<&'a str>, Vec<usize>> = BTreeMap::new();
    for (&at, candidates) in open.iter() {
        groups.entry(candidates.iter().map(|(name, _)| name.as_str()).collect()).or_default().push(at);
    }
    for (names, last) in groups {
        let taken: Vec<&str> = chosen.values().map(|(name, ..)| *name).filter(|name| names.contains(name)).collect();
        let distinct = taken.iter().collect::<BTreeSet<_>>().len() == taken.len();
        let rest: Vec<&(String, bool)> =
            open[&last[0]].iter().filter(|(name, _)| !taken.contains(&name.as_str())).collect();
        if let ([at], [(name, turned)], true) = (last.as_slice(), rest.as_slice(), distinct) {
            chosen.insert(*at, (name, *turned, Some(How::Position)));
            open.remove(at);
        }
    }
}

/// Withdraws products that may stand for several layers: exporters make one of equal layers with one input, and what
/// tells is that a layer of equal content is nowhere while this one lacks the bias that it has in the checkpoint.
fn doubt_merged<'a>(
    uses: &[LinearUse],
    contents: &'a Contents,
    checkpoint: &Checkpoint,
    chosen: &mut BTreeMap<usize, Choice<'a>>,
    open: &mut BTreeMap<usize, &'a [(String, bool)]>,
) {
    let taken: BTreeSet<&str> = chosen.values().map(|(name, ..)| *name).collect();
    let doubted = |at: usize, name: &str| {
        let candidates = contents.found.get(&uses[at].weight).map(|c| c.whole.as_slice())?;
        let missing = candidates.iter().any(|(other, _)| !taken.contains(other.as_str()));
        let biased = checkpoint.contains(&format!("{}.bias", module_of(name)));
        (missing && biased && uses[at].bias.is_none()).then_some(candidates)
    };
    let doubted: Vec<_> = chosen.iter().filter_map(|(&at, (name, ..))| Some((at, doubted(at, name)?))).collect();
    for (at, candidates) in doubted {
        chosen.remove(&at);
        open.insert(at, candidates);
    }
}

/// Other modules that multiply by the same parameter, of which the checkpoint has no weight of their own.
fn aliases(uses: &[LinearUse], at: &[usize], name: &str, checkpoint: &Checkpoint) -> Vec<String> {
    let told: Vec<String> = at.iter().filter_map(|&at| at_node(&uses[at])).map(|(module, _)| module).collect();
    let wrapper = told.iter().find_map(|t| t.strip_suffix(name).filter(|start| start.ends_with('.'))).unwrap_or("");
    let mut found: Vec<String> = Vec::new();
    for module in told.iter().filter(|t| !agree(t, name)) {
        let module = module.strip_prefix(wrapper).unwrap_or(module);
        if !checkpoint.contains(&format!("{module}.weight")) && !found.iter().any(|f| f == module) {
            found.push(module.to_owned());
        }
    }
    found
}

/// Layers of a matrix that holds several tensors, or is a part of one.
fn pieces(uses: &[LinearUse], at: &[usize], content: &Content, settled: &mut Settled) {
    let of = &uses[at[0]];
    let mut ranges: BTreeMap<(usize, usize), Vec<&String>> = BTreeMap::new();
    for (range, name) in &content.parts {
        ranges.entry((range.start, range.end)).or_default().push(name);
    }
    let parent = |name: &str| module_of(name).rsplit_once('.').map_or(String::new(), |(parent, _)| parent.to_owned());
    let certain: BTreeSet<String> = ranges.values().filter(|n| n.len() == 1).map(|names| parent(names[0])).collect();
    let layer = |name: String, tensor: &str, rows, settled_by| Layer {
        name,
        found: Found { how: How::Slice, checkpoint: Some(tensor.to_owned()), settled_by },
        rows,
        aliases: Vec::new(),
        uses: at.to_vec(),
    };
    let mut unsure = |candidates: Vec<String>| {
        settled.ambiguous.push(AmbiguousSlot { tensor: of.weight.clone(), node: of.label.clone(), candidates });
    };
    let (mut end, mut covered) = (0, 0);
    let fused = !ranges.is_empty();
    let mut gaps = Vec::new();
    for ((start, stop), names) in ranges {
        if start > covered {
            gaps.push((covered, start));
        }
        covered = covered.max(stop);
        let near: Vec<&&String> = names.iter().filter(|n| certain.contains(&parent(n))).collect();
        let (name, by) = match (names.as_slice(), near.as_slice()) {
            ([only], _) => (*only, None),
            (_, [near]) => (**near, Some(How::Position)),
            _ => {
                unsure(names.into_iter().cloned().collect());
                continue;
            }
        };
        // Two that overlap cannot both be there.
        if start < end {
            unsure(vec![name.clone()]);
            continue;
        }
        end = stop;
        settled.layers.push(layer(module_of(name), name, Some(RowRange { start, end: stop }), by));
    }
    if fused && covered < of.out_features {
        gaps.push((covered, of.out_features));
    }
    let gap = |(start, end): (usize, usize)| format!("{}, rows {start}..{end}", of.weight);
    settled.gaps.extend(gaps.into_iter().map(gap));
    if content.parts.is_empty() {
        match content.slices.as_slice() {
            [(name, rows)] => settled.layers.push(layer(part_of(&module_of(name), rows), name, None, None)),
            several => unsure(several.iter().map(|(name, rows)| part_of(name, rows)).collect()),
        }
    }
}

/// Rows of something, in words.
fn part_of(name: &str, rows: &RowRange) -> String {
    format!("{name}[{}..{}]", rows.start, rows.end)
}
