//! The fields of a message.

use std::ops::Range;

/// Wire type of a field with a length: text, bytes, a message.
pub const LENGTH: u64 = 2;

/// The bytes are no protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model is not an intact protobuf message")]
pub struct Malformed;

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its number.
    pub number: u64,
    /// How its value is stored: 0 as a varint, 1 in 8 bytes, [`LENGTH`], 5 in 4 bytes.
    pub wire: u64,
    /// The value of a varint.
    pub value: u64,
    /// Where it lies, tag and all.
    pub whole: Range<usize>,
    /// What follows the length, if it has one.
    pub payload: Range<usize>,
}

impl Field {
    /// What lies in `message` under this field, if it has a length and this number.
    pub fn of<'a>(&self, number: u64, message: &'a [u8]) -> Option<&'a [u8]> {
        (self.number == number && self.wire == LENGTH).then(|| &message[self.payload.clone()])
    }
}

/// The fields of a message, in order; after an error none. Groups, which ONNX does not have, are an error.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field, Malformed>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= message.len() {
            return None;
        }
        let field = next(message, at);
        at = field.as_ref().map_or(message.len(), |field| field.whole.end);
        Some(field.ok_or(Malformed))
    })
}

fn next(message: &[u8], start: usize) -> Option<Field> {
    let mut at = start;
    // Other parsers cut a tag to 32 bits: a longer one would be another field to them.
    let tag = varint(message, &mut at).filter(|tag| u32::try_from(*tag).is_ok())?;
    let (mut value, mut payload) = (0, at..at);
    match tag & 7 {
        0 => value = varint(message, &mut at)?,
        1 => at = at.checked_add(8)?,
        LENGTH => {
            let length = usize::try_from(varint(message, &mut at)?).ok()?;
            payload = at..at.checked_add(length)?;
            at = payload.end;
        }
        5 => at = at.checked_add(4)?,
        _ => return None,
    }
    (at <= message.len()).then_some(Field { number: tag >> 3, wire: tag & 7, value, whole: start..at, payload })
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_given_in_order_with_number_value_and_payload() {
        let message = b"\x08\xac\x02\x12\x03abc\x1d\x01\x02\x03\x04\x21\x01\x02\x03\x04\x05\x06\x07\x08";
        let all: Vec<Field> = fields(message).map(Result::unwrap).collect();
        let seen: Vec<_> = all.iter().map(|field| (field.number, field.wire, field.value)).collect();
        assert_eq!(seen, [(1, 0, 300), (2, LENGTH, 0), (3, 5, 0), (4, 1, 0)]);
        assert_eq!(all[1].of(2, message), Some(&b"abc"[..]));
        assert_eq!(all[1].of(3, message), None);
        assert_eq!(all[0].of(1, message), None);
        let whole: Vec<_> = all.iter().map(|field| field.whole.clone()).collect();
        assert_eq!(whole, [0..3, 3..8, 8..13, 13..22]);
    }

    #[test]
    fn fields_of_damaged_bytes_end_in_an_error() {
        let cut = b"\x12\x03ab";
        let endless = [0xff; 11];
        // A group, which old protobuf has; and a tag that others read as field 1.
        let group = b"\x0b\x0c";
        let long_tag = b"\x88\x80\x80\x80\x10\x01";
        for message in [&cut[..], &endless, group, long_tag] {
            assert_eq!(fields(message).collect::<Vec<_>>(), [Err(Malformed)], "{message:x?}");
        }
        assert_eq!(fields(b"").count(), 0);
    }
}
