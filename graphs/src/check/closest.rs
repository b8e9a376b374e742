//! The name that was meant.

/// The name with the longest common start and end, if these make up at least half of `wanted`. Linear in all names.
pub fn closest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let score = |name: &str| {
        let start = wanted.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let end = wanted.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count();
        (start + end).min(wanted.len()).min(name.len())
    };
    let scored = names.map(|n| (score(n), std::cmp::Reverse(n.len().abs_diff(wanted.len())), std::cmp::Reverse(n)));
    scored.max().filter(|(s, ..)| s * 2 >= wanted.len() && *s > 0).map(|(.., n)| n.0.to_owned())
}
