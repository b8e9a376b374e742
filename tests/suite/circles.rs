//! The modules of a crate form no circle: a file never needs one that needs it.
//!
//! A file needs those that define what it names. A name that a module passes on (`pub use`) counts as the file's that defines it, and
//! passing on is no need; nor is declaring a module, and tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::architecture::root;

/// A path of modules below a crate's root.
type Module = Vec<String>;
type Segments = Vec<String>;

/// What one file says.
#[derive(Default)]
struct Source {
    /// What it names, as written.
    named: Vec<Segments>,
    /// Imports by the name that they have here.
    imports: BTreeMap<String, Segments>,
    /// Names that it passes on.
    exports: BTreeMap<String, Segments>,
    /// Modules whose names it passes on.
    globs: Vec<Segments>,
}

struct Crate {
    modules: BTreeMap<Module, (PathBuf, Source)>,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut modules = BTreeMap::new();
        let mut folders = vec![src.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let inside = path.strip_prefix(src).unwrap().with_extension("");
                let mut module: Module =
                    inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
                let text = std::fs::read_to_string(&path).unwrap();
                if path.extension().is_none_or(|e| e != "rs") || module.iter().any(|part| part.starts_with("test")) {
                    continue;
                }
                if module.last().is_some_and(|last| last == "mod" || (last == "lib" && module.len() == 1)) {
                    module.pop();
                }
                modules.insert(module, (path.strip_prefix(root()).unwrap().to_owned(), parse(&text)));
            }
        }
        Self { modules }
    }

    /// The module that defines what `path` names when `from` says it; `None` for a module, or another crate's.
    fn defines(&self, from: &[String], path: &[String], depth: usize) -> Option<&Module> {
        let (first, mut rest) = path.split_first()?;
        let mut at: Module = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from.split_last()?.1.to_vec(),
            name => {
                let mut child = from.to_vec();
                child.push(name.to_owned());
                match self.modules.get(from).and_then(|(_, source)| source.imports.get(name)) {
                    _ if self.modules.contains_key(&child) => child,
                    Some(import) if depth < 8 && import.first() != Some(first) => {
                        let path: Segments = import.iter().chain(rest).cloned().collect();
                        return self.defines(from, &path, depth + 1);
                    }
                    _ => return None,
                }
            }
        };
        while let Some((segment, tail)) = rest.split_first() {
            if segment == "super" {
                at.pop()?;
                rest = tail;
                continue;
            }
            let mut child = at.clone();
            child.push(segment.clone());
            if self.modules.contains_key(&child) {
                (at, rest) = (child, tail);
                continue;
            }
            let (module, (_, source)) = self.modules.get_key_value(&at)?;
            if depth < 8 {
                if let Some(target) = source.exports.get(segment) {
                    let path: Segments = target.iter().chain(tail).cloned().collect();
                    return self.defines(&at, &path, depth + 1);
                }
                for glob in &source.globs {
                    let path: Segments = glob.iter().chain(rest).cloned().collect();
                    if let Some(found) = self.defines(&at, &path, depth + 1) {
                        return Some(found);
                    }
                }
            }
            return Some(module);
        }
        None
    }

    /// The files that each file needs.
    fn needs(&self) -> BTreeMap<&Path, BTreeSet<&Path>> {
        let mut needs: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
        for (module, (path, source)) in &self.modules {
            let found = source.named.iter().filter_map(|named| self.defines(module, named, 0));
            let paths = found.map(|found| &*self.modules[found].0).filter(|other| *other != path);
            needs.insert(path, paths.collect());
        }
        needs
    }
}

/// The files of circles, each with those of its circle.
fn circles<'a>(needs: &BTreeMap<&'a Path, BTreeSet<&'a Path>>) -> BTreeSet<BTreeSet<&'a Path>> {
    let reach = |from: &'a Path| {
        let mut seen: BTreeSet<&Path> = BTreeSet::new();
        let mut open: Vec<&Path> = needs[from].iter().copied().collect();
        while let Some(file) = open.pop() {
            if seen.insert(file) {
                open.extend(&needs[file]);
            }
        }
        seen
    };
    let reached: BTreeMap<&Path, BTreeSet<&Path>> = needs.keys().map(|file| (*file, reach(file))).collect();
    let both = |a: &Path, b: &Path| reached[a].contains(b) && reached[b].contains(a);
    let with = |file: &'a Path| needs.keys().copied().filter(|other| both(file, other)).collect::<BTreeSet<_>>();
    needs.keys().map(|file| with(file)).filter(|circle| !circle.is_empty()).collect()
}

/// A file's words: identifiers, `::` and other signs, without comments, strings and tests.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = skipped(rest);
        if skip > 0 {
            rest = &rest[skip..];
            continue;
        }
        let ident = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let length = match ident {
            0 if rest.starts_with("::") => 2,
            0 => c.len_utf8(),
            length => length,
        };
        if !c.is_whitespace() {
            words.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    words
}

/// The length of the comment, string or character that `text` begins with; 0 if it begins with something else.
fn skipped(text: &str) -> usize {
    if text.starts_with("//") {
        text.find('\n').unwrap_or(text.len())
    } else if text.starts_with("/*") {
        text.find("*/").map_or(text.len(), |at| at + 2)
    } else if let Some(after) = text.strip_prefix("r#\"") {
        after.find("\"#").map_or(text.len(), |at| at + 5)
    } else if text.starts_with('"') {
        string_end(text)
    } else if let Some(after) = text.strip_prefix('\'') {
        // A character, or a lifetime's quote.
        match after.chars().nth(1) {
            Some('\'') => 2 + after.chars().next().map_or(0, char::len_utf8),
            _ if after.starts_with('\\') => after[2..].find('\'').map_or(text.len(), |at| at + 4),
            _ => 1,
        }
    } else {
        0
    }
}

/// The string literals of a source, as they are written.
pub(crate) fn strings(text: &str) -> Vec<&str> {
    let mut strings = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = skipped(rest);
        if rest.starts_with(['"', 'r']) && length > 0 {
            strings.push(&rest[..length]);
        }
        rest = &rest[length.max(c.len_utf8())..];
    }
    strings
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn parse(text: &str) -> Source {
    let words = words(text);
    let mut source = Source::default();
    let mut at = 0;
    let mut public = false;
    while at < words.len() {
        if words[at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"]) {
            at = after_item(&words, at + 7);
            continue;
        }
        match words[at] {
            "use" => {
                let end = at + words[at..].iter().position(|word| *word == ";").unwrap_or(words.len() - at);
                leaves(&words[at + 1..end], &mut Vec::new(), &mut |leaf, name| match name {
                    "*" if public => source.globs.push(leaf),
                    _ if public => drop(source.exports.insert(name.to_owned(), leaf)),
                    _ => {
                        source.named.push(leaf.clone());
                        source.imports.insert(name.to_owned(), leaf);
                    }
                });
                at = end;
            }
            word if is_name(word) && words.get(at + 1) == Some(&"::") && (at == 0 || words[at - 1] != "::") => {
                let mut path = vec![word.to_owned()];
                while words.get(at + 1) == Some(&"::") && words.get(at + 2).is_some_and(|word| is_name(word)) {
                    path.push(words[at + 2].to_owned());
                    at += 2;
                }
                source.named.push(path);
            }
            _ => {}
        }
        // `pub(crate) use` passes on, too.
        public = match words.get(at) {
            Some(&"pub") => true,
            Some(&("(" | ")" | "crate" | "super" | "in")) => public,
            _ => false,
        };
        at += 1;
    }
    source
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// What follows the item that begins at `at`.
fn after_item(words: &[&str], mut at: usize) -> usize {
    let mut depth = 0;
    while at < words.len() {
        match words[at] {
            "{" => depth += 1,
            "}" if depth == 1 => return at + 1,
            "}" => depth -= 1,
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Every path of a tree of imports, and the name that it has here.
fn leaves(words: &[&str], prefix: &mut Segments, found: &mut dyn FnMut(Segments, &str)) {
    let mut at = 0;
    let before = prefix.len();
    while at < words.len() {
        match words[at] {
            "{" => {
                let (mut depth, mut start) = (0, at + 1);
                for (i, word) in words.iter().enumerate().skip(at) {
                    match *word {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        _ => {}
                    }
                    if (depth == 1 && *word == ",") || depth == 0 {
                        if start < i {
                            leaves(&words[start..i], prefix, found);
                        }
                        start = i + 1;
                    }
                    if depth == 0 {
                        break;
                    }
                }
                prefix.truncate(before);
                return;
            }
            "as" => break,
            "::" => {}
            word => prefix.push(word.to_owned()),
        }
        at += 1;
    }
    let renamed = (words.get(at) == Some(&"as")).then(|| words[at + 1]);
    if prefix.last().is_some_and(|last| last == "self") && prefix.len() > 1 {
        prefix.pop();
    }
    let name = renamed.or(prefix.last().map(String::as_str)).unwrap_or_default().to_owned();
    let leaf = if name == "*" { prefix[..prefix.len() - 1].to_vec() } else { prefix.clone() };
    found(leaf, &name);
    prefix.truncate(before);
}

#[test]
fn no_crate_has_a_circle_of_modules() {
    let mut found = String::new();
    for folder in ["calibration/src", "export/src", "graphs/src", "runtime/src", "runtime/capi/src"] {
        let tree = Crate::read(&root().join(folder));
        let needs = tree.needs();
        assert!(needs.values().any(|needs| !needs.is_empty()), "{folder}: nothing was read");
        for circle in circles(&needs) {
            found += &format!("{folder}:\n");
            for file in &circle {
                let inside: Vec<&&Path> = needs[file].intersection(&circle).collect();
                found += &format!("  {} needs {inside:?}\n", file.display());
            }
        }
    }
    assert!(found.is_empty(), "circles of modules:\n{found}");
}

#[test]
fn circle_is_found_through_names_that_are_passed_on_and_without_tests() {
    let sources = [
        ("", "pub mod a; pub mod b; pub use a::A;"),
        ("a", "use crate::b::{self, inner::{Other as Another}}; pub struct A(b::B); // crate::b::C"),
        ("b", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; } const X: &str = \"crate::a::A\";"),
    ];
    let tree = |sources: &[(&str, &str)]| {
        let module = |name: &str| name.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let modules = sources.iter().map(|(name, text)| (module(name), (PathBuf::from(name), parse(text))));
        Crate { modules: modules.collect() }
    };
    let straight = tree(&sources);
    assert_eq!(straight.needs()[Path::new("a")], BTreeSet::from([Path::new("b")]));
    assert!(circles(&straight.needs()).is_empty());
    // The root passes `A` on: naming it there is naming `a`.
    let round = tree(&[sources[0], sources[1], ("b", "pub struct B; fn f(_: &crate::A) {}")]);
    let all = circles(&round.needs());
    assert_eq!(all, BTreeSet::from([BTreeSet::from([Path::new("a"), Path::new("b")])]));
}
