//! Names in the order in which people count.

use std::cmp::Ordering;
use std::ffi::OsStr;

/// Orders names by their parts: digits as the numbers that they are, all else as text. `2.png` is before `10.png`, and `1.png`
/// before `01.png`.
pub(super) fn compare(one: &OsStr, other: &OsStr) -> Ordering {
    let (mut left, mut right) = (one.as_encoded_bytes(), other.as_encoded_bytes());
    loop {
        let (a, b) = (part(&mut left), part(&mut right));
        let order = match (a.first(), b.first()) {
            (Some(digit), Some(other)) if digit.is_ascii_digit() && other.is_ascii_digit() => {
                let (a, b) = (significant(a), significant(b));
                a.len().cmp(&b.len()).then_with(|| a.cmp(b))
            }
            (None, None) => return one.len().cmp(&other.len()).then_with(|| one.cmp(other)),
            _ => a.cmp(b),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes the first digits, or the first other bytes.
fn part<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let digits = rest.first().is_some_and(u8::is_ascii_digit);
    let end = rest.iter().position(|byte| byte.is_ascii_digit() != digits).unwrap_or(rest.len());
    let (part, behind) = rest.split_at(end);
    *rest = behind;
    part
}

/// Digits without the zeros before them.
fn significant(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().take_while(|digit| **digit == b'0').count()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_people_count() {
        let ordered = [
            "0.png",
            "1.png",
            "01.png",
            "001.png",
            "2.png",
            "10.png",
            "18446744073709551616.png",
            "a.png",
            "frame1.png",
            "frame1b.png",
            "frame-1.png",
            "frame-2-1.png",
            "frame-2-10.png",
            "frame-10.png",
        ];
        let mut names = ordered.map(OsStr::new).to_vec();
        names.reverse();
        names.sort_by(|a, b| compare(a, b));
        assert_eq!(names, ordered);
        for (a, b) in ordered.iter().zip(&ordered[1..]) {
            assert_eq!(compare(OsStr::new(a), OsStr::new(a)), Ordering::Equal);
            assert_eq!(compare(OsStr::new(b), OsStr::new(a)), Ordering::Greater, "{a} {b}");
        }
    }
}
