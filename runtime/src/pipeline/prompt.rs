//! Prompts cleaned as some of diffusers' pipelines clean them, before they are tokenised.
//!
//! diffusers runs ftfy's `fix_text` first, where ftfy is installed. Of that is here what is plain: typographic quotes become
//! straight ones, and control characters go. Wide characters, ligatures and composed characters are left to the tokenizer,
//! which maps them by itself (NFKC). Text that was decoded with the wrong encoding is not repaired.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::CharIndices;

/// Every name of a character in HTML5: the name, `;` if it needs one, and its characters in hexadecimal. In order of their bytes.
const ENTITIES: &str = include_str!("prompt/entities.txt");
/// Longest name that is looked for, in characters.
const LONGEST_NAME: usize = 32;

/// The prompt as it is tokenised.
pub(super) fn cleaned(prompt: &str) -> String {
    let text = prompt.chars().filter_map(fixed).collect::<String>();
    let text = unescaped(&unescaped(&text)).into_owned();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Straight quotes for others, and no control characters but white space.
fn fixed(c: char) -> Option<char> {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => Some('\''),
        '\u{201c}'..='\u{201f}' => Some('"'),
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' => None,
        '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => None,
        c => Some(c),
    }
}

/// Entities of HTML resolved, as Python's `html.unescape` resolves them.
fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut found = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        found.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let taken = match rest.strip_prefix('#') {
            Some(number) => numbered(number, &mut found).map(|taken| taken + 1),
            None => named(rest, &mut found),
        };
        match taken {
            Some(taken) => rest = &rest[taken..],
            None => found.push('&'),
        }
    }
    found.push_str(rest);
    Cow::Owned(found)
}

/// Resolves a number after `&#`. Bytes that it takes, if it is one.
fn numbered(text: &str, found: &mut String) -> Option<usize> {
    let (radix, skipped) = if text.starts_with(['x', 'X']) { (16, 1) } else { (10, 0) };
    let digits = text[skipped..].bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    if digits == 0 {
        return None;
    }
    let end = skipped + digits;
    // What does not fit 32 bits is no character either.
    let code = u32::from_str_radix(&text[skipped..end], radix).unwrap_or(u32::MAX);
    found.extend(character(code));
    Some(end + usize::from(text[end..].starts_with(';')))
}

/// The character of a number; none for those that stand for nothing.
fn character(code: u32) -> Option<char> {
    /// Numbers 128 to 159 as Windows-1252 has them, which HTML follows.
    const WINDOWS: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match code {
        0 => Some('\u{fffd}'),
        0x80..=0x9f => WINDOWS.get(code as usize - 0x80).copied(),
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        0x1_0000.. if code <= 0x10_ffff && code & 0xfffe == 0xfffe => None,
        0xfffe | 0xffff => None,
        code => Some(char::from_u32(code).unwrap_or('\u{fffd}')),
    }
}

/// Resolves a name after `&`: the whole of it or, if there is none, the longest start that needs no `;`. Bytes that it takes.
fn named(text: &str, found: &mut String) -> Option<usize> {
    let stops = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let mut ends = ends(text.char_indices().peekable(), text.len(), stops);
    let whole = ends.pop()?;
    if text[whole..].starts_with(';')
        && let Some((_, characters)) = entity(&text[..whole])
    {
        found.push_str(&characters);
        return Some(whole + 1);
    }
    // A name has at least two characters.
    ends.drain(..ends.len().min(1));
    for end in std::iter::once(whole).chain(ends.into_iter().rev()) {
        if let Some((true, characters)) = entity(&text[..end]) {
            found.push_str(&characters);
            return Some(end);
        }
    }
    None
}

/// Where the first characters end, up to one that stops.
fn ends(mut chars: Peekable<CharIndices<'_>>, length: usize, stops: impl Fn(char) -> bool) -> Vec<usize> {
    let mut ends = Vec::new();
    while let Some((_, c)) = chars.next()
        && !stops(c)
        && ends.len() < LONGEST_NAME
    {
        ends.push(chars.peek().map_or(length, |&(at, _)| at));
    }
    ends
}

/// Whether a name does without `;`, and its characters.
fn entity(name: &str) -> Option<(bool, String)> {
    let lines = lines();
    let key = |line: &&'static str| line.split([' ', ';']).next().unwrap_or_default();
    let at = lines.binary_search_by(|line| key(line).cmp(name)).ok()?;
    let (entry, codes) = lines[at].split_once(' ')?;
    let characters = codes.split(' ').filter_map(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?)).collect();
    Some((!entry.ends_with(';'), characters))
}

fn lines() -> &'static [&'static str] {
    static LINES: std::sync::OnceLock<Vec<&'static str>> = std::sync::OnceLock::new();
    LINES.get_or_init(|| ENTITIES.lines().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_is_cleaned_as_diffusers_cleans_it() {
        let cases = [
            (
                "  Crush it! a hydraulic press squeezes &amp;  melts a toy car",
                "Crush it! a hydraulic press squeezes & melts a toy car",
            ),
            ("a&amp;amp;b", "a&b"),
            ("one\r\n\ttwo\u{3000}three", "one two three"),
            ("\u{201c}so\u{201d}, it\u{2019}s", "\"so\", it's"),
            ("\u{feff}a\u{0}b", "ab"),
            ("", ""),
        ];
        for (prompt, expected) in cases {
            assert_eq!(cleaned(prompt), expected, "{prompt:?}");
        }
    }

    /// Expected values: `html.unescape` of Python 3.12.
    #[test]
    fn entities_are_resolved_as_python_resolves_them() {
        let cases = [
            ("&lt;b&gt; &eacute;&eacute &notit; &notin; &noti", "<b> éé ¬it; ∉ ¬i"),
            (
                "&#65;&#x42&#X43; &#0; &#128; &#1;x &#xD800; &#99999999999; &#xfffe;.",
                "ABC \u{fffd} € x \u{fffd} \u{fffd} .",
            ),
            ("&; & &&amp &# &#x &#; &unknown; &CounterClockwiseContourIntegral;", "&; & && &# &#x &#; &unknown; ∳"),
            ("&nGg; &ampx &a&lt;", "⋙\u{338} &x &a<"),
            ("caf&é; &ｌｔ; a&b=c&copy=1", "caf&é; &ｌｔ; a&b=c©=1"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescaped(text), expected, "{text:?}");
        }
    }

    #[test]
    fn table_is_in_order() {
        let names: Vec<&str> = lines().iter().filter_map(|line| line.split([' ', ';']).next()).collect();
        assert!(names.len() == 2125 && names.is_sorted());
    }
}
