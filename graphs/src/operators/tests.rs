//! What holds for the whole table.

use std::collections::BTreeSet;
use std::path::Path;

use super::entry::{Buffer, IntegerRule, Kind, Operator, Out, Random, RowRule, ShapeRule};
use super::table::{entries, onnx_names, operator};
use crate::Node;

/// The entries of which `holds` is false.
fn without(holds: impl Fn(&Operator) -> bool) -> Vec<&'static str> {
    entries().filter(|known| !holds(known)).map(|known| known.name).collect()
}

#[test]
fn each_operator_has_one_entry_and_is_found_by_either_name_of_its_domain() {
    let named: BTreeSet<(&str, &str)> = entries().map(|known| (known.domain, known.name)).collect();
    assert_eq!(entries().count(), named.len());
    let found = |domain: &str, name: &str| {
        let node = Node { domain: domain.into(), op_type: name.into(), ..Node::default() };
        operator(&node).map(|known| (known.domain, known.name))
    };
    for (domain, name) in named {
        assert_eq!(found(domain, name), Some((domain, name)));
        assert_eq!(found("acme", name), None);
        if domain.is_empty() {
            assert_eq!(found("ai.onnx", name), Some((domain, name)));
        }
    }
    assert!(onnx_names().is_sorted());
}

#[test]
fn entries_do_not_contradict_themselves() {
    let nothing: Vec<&str> = Vec::new();
    let calls = without(|known| {
        known.since >= 1
            && known.signature.is_none_or(|s| {
                let same = s.same == (0, 0) || (s.same.0 < s.same.1 && s.same.0 < s.inputs.1);
                s.inputs.0 <= s.inputs.1 && s.outputs.0 <= s.outputs.1 && s.optional <= s.inputs.0 && same
            })
    });
    assert_eq!(calls, nothing, "signature");
    let types = without(|known| {
        let has = |out: Out, inputs: usize| if let Out::Like(input) = out { input < inputs } else { true };
        known.signature.is_none_or(|s| {
            let further = known.others == Out::Open || s.outputs.1 > 1;
            further && has(known.result, s.inputs.1) && has(known.others, s.inputs.1)
        })
    });
    assert_eq!(types, nothing, "types of outputs");
    let integers = without(|known| match known.integers {
        IntegerRule::Moved | IntegerRule::Joined => known.is_move() && known.evaluate.is_some(),
        IntegerRule::Evaluated => known.evaluate.is_some(),
        IntegerRule::Folded(_) => known.signature.is_some(),
        IntegerRule::Unknown | IntegerRule::By(_) => true,
    });
    assert_eq!(integers, nothing, "integers");
    let shapes = without(|known| match known.shape {
        ShapeRule::Branches => known.kind == Kind::Control,
        ShapeRule::Like(input) => known.signature.is_none_or(|s| input < s.inputs.1),
        _ => true,
    });
    assert_eq!(shapes, nothing, "shapes");
    let buffers = without(|known| match known.buffer {
        Buffer::Own => true,
        Buffer::View => known.kind == Kind::Move,
        Buffer::InPlace => matches!(known.shape, ShapeRule::Like(0) | ShapeRule::Broadcast),
    });
    assert_eq!(buffers, nothing, "buffers");
}

#[test]
fn what_is_claimed_of_an_operator_fits_its_kind() {
    let nothing: Vec<&str> = Vec::new();
    let same_each_time = |known: &Operator| {
        let plain = matches!(known.rows, RowRule::Mixed) && matches!(known.integers, IntegerRule::Unknown);
        known.random != Random::Always || (plain && known.evaluate.is_none())
    };
    assert_eq!(without(same_each_time), nothing, "what is random is neither evaluated nor apart");
    let apart = |known: &Operator| {
        let no_rows = matches!(known.kind, Kind::Extents | Kind::Constant | Kind::Control);
        !no_rows || matches!(known.rows, RowRule::Mixed)
    };
    assert_eq!(without(apart), nothing, "how many rows there are is in no row");
    assert_eq!(without(|known| !(known.is_move() && known.has_narrow_form)), nothing, "moves take any type");
    let typed = |known: &Operator| !known.has_narrow_form || known.result != Out::Open;
    assert_eq!(without(typed), nothing, "16 bits of an unknown type");
    let layer = |known: &Operator| known.kind != Kind::Layer || (known.weight_rank)(1, 0).is_some();
    assert_eq!(without(layer), nothing, "a layer's weight is not a number");
    let elementwise = |known: &Operator| {
        let rows = matches!(known.rows, RowRule::FirstInput | RowRule::Aligned | RowRule::Mixed);
        known.kind != Kind::Elementwise || rows
    };
    assert_eq!(without(elementwise), nothing, "each element by itself");
}

/// Words in quotes in the code of a folder that could be names of operators, tests left out.
fn quoted(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            quoted(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_stem().is_none_or(|stem| stem != "tests") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let words = code.split('"').filter(|word| {
                let rest = word.get(1..).unwrap_or_default();
                let plain = word.bytes().all(|b| b.is_ascii_alphanumeric());
                plain && word.starts_with(|c: char| c.is_ascii_uppercase()) && rest.contains(|c: char| c.is_lowercase())
            });
            found.extend(words.map(str::to_owned));
        }
    }
}

/// Words in quotes that are parts of names, and operators of which nothing is known but that they are refused.
const NO_OPERATORS: [&str; 5] = ["ATen", "BiasSplitGelu", "NhwcConv", "Raise", "Widen"];

#[test]
fn every_operator_that_code_names_is_in_the_table() {
    let mut named = BTreeSet::new();
    quoted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut named);
    assert!(named.contains("MatMul") && named.contains("MatMulNBits"), "{named:?}");
    let known: BTreeSet<&str> = entries().map(|known| known.name).chain(NO_OPERATORS).collect();
    let unknown: Vec<&String> = named.iter().filter(|name| !known.contains(&name[..])).collect();
    assert!(unknown.is_empty(), "no entry in the table of operators: {unknown:?}");
}
