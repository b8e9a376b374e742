//! Where a slot stands in its model.

/// Module path and block of a slot: `transformer_blocks.7.attn1.to_q` is `transformer_blocks.*.attn1.to_q` in block 7.
pub fn place(name: &str) -> (String, Option<u64>) {
    let mut parts: Vec<&str> = name.split('.').collect();
    let number = |at: usize| parts[at + 1].parse::<u64>().ok().filter(|_| parts[at].ends_with("blocks"));
    match (0..parts.len() - 1).find_map(|at| Some((at, number(at)?))) {
        Some((at, block)) => {
            parts[at + 1] = "*";
            (parts.join("."), Some(block))
        }
        None => (name.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn place_knows_blocks_of_wan_and_nothing_else_as_blocks() {
        assert_eq!(place("blocks.7.self_attn.q"), ("blocks.*.self_attn.q".to_owned(), Some(7)));
        assert_eq!(place("up.blocks.x.1.proj"), ("up.blocks.x.1.proj".to_owned(), None));
        assert_eq!(place("head"), ("head".to_owned(), None));
    }
}
