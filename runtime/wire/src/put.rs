//! Writing fields of a message.

use super::fields::LENGTH;

/// Appends a field with a length: text, bytes, a message.
pub fn put_message(out: &mut Vec<u8>, number: u64, payload: &[u8]) {
    varint(out, number << 3 | LENGTH);
    varint(out, payload.len() as u64);
    out.extend_from_slice(payload);
}

/// Appends a field that is a varint.
pub fn put_varint(out: &mut Vec<u8>, number: u64, value: u64) {
    varint(out, number << 3);
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
