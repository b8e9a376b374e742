//! Words that PyTorch's wrappers of modules put into the names of what they wrap: FSDP, activation checkpointing, `torch.compile`,
//! data parallelism.

use std::borrow::Cow;

/// The words, each a segment between dots.
const WORDS: [&str; 4] = ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module"];

/// A tensor's name without the words of wrappers. Its last segment is its own.
///
/// In names with underscores for dots the words that begin with an underscore are found, too; `module` may be a part of another
/// word there.
pub fn unwrapped(name: &str) -> Cow<'_, str> {
    let (stem, own) = name.rsplit_once('.').map_or(("", name), |(stem, own)| (stem, own));
    let plain = match segments(stem) {
        Some(stem) if stem.is_empty() => Cow::Owned(own.to_owned()),
        Some(stem) => Cow::Owned(format!("{stem}.{own}")),
        None => Cow::Borrowed(name),
    };
    WORDS.iter().filter(|word| word.starts_with('_')).fold(plain, |name, word| {
        let joined = format!("_{word}_");
        let mut name = name;
        // Two of a word share the underscore between them.
        while name.contains(&joined) {
            name = Cow::Owned(name.replace(&joined, "_"));
        }
        name
    })
}

/// A module's path without the words of wrappers; a path of nothing else stays.
pub fn unwrapped_module(path: &str) -> Cow<'_, str> {
    match segments(path) {
        Some(plain) if !plain.is_empty() => Cow::Owned(plain),
        _ => Cow::Borrowed(path),
    }
}

/// The path without the words; `None` if there are none.
fn segments(path: &str) -> Option<String> {
    let any = path.split('.').any(|segment| WORDS.contains(&segment));
    any.then(|| path.split('.').filter(|segment| !WORDS.contains(segment)).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwrapped_leaves_out_the_words_of_wrappers_anywhere_and_nothing_else() {
        for (name, expected) in [
            ("module.blocks.0._fsdp_wrapped_module.q.weight", "blocks.0.q.weight"),
            (
                "_orig_mod.a._checkpoint_wrapped_module._fsdp_wrapped_module.b.lora_A.default.weight",
                "a.b.lora_A.default.weight",
            ),
            ("a.q._orig_mod.weight", "a.q.weight"),
            ("module.weight", "weight"),
            ("lora_unet_blocks_0__fsdp_wrapped_module_q.lora_down.weight", "lora_unet_blocks_0_q.lora_down.weight"),
            ("lora_unet_a__orig_mod__orig_mod_q.alpha", "lora_unet_a_q.alpha"),
            ("lora_unet_a__orig_mod_orig_mod_q.alpha", "lora_unet_a_orig_mod_q.alpha"),
            ("lora_unet___orig_mod_blocks_0_q.alpha", "lora_unet__blocks_0_q.alpha"),
            ("motion_modules.0.submodule.weight", "motion_modules.0.submodule.weight"),
            ("temporal_module_0_q.alpha", "temporal_module_0_q.alpha"),
            ("a.module", "a.module"),
            ("module", "module"),
        ] {
            assert_eq!(unwrapped(name), expected);
        }
        assert_eq!(unwrapped_module("blocks.0.q._orig_mod"), "blocks.0.q");
        assert_eq!(unwrapped_module("module"), "module");
    }
}
