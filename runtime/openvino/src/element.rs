//! Types of elements.

use std::fmt;

use openvino_sys::ov_element_type_e;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// IEEE, 32 bits.
    F32,
    /// IEEE, 16 bits.
    F16,
    /// The upper half of [`Self::F32`].
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
    /// A byte, 0 or 1.
    Bool,
}

const ALL: [(Element, ov_element_type_e, &str, usize); 8] = [
    (Element::F32, ov_element_type_e::F32, "f32", 4),
    (Element::F16, ov_element_type_e::F16, "f16", 2),
    (Element::BF16, ov_element_type_e::BF16, "bf16", 2),
    (Element::I64, ov_element_type_e::I64, "i64", 8),
    (Element::I32, ov_element_type_e::I32, "i32", 4),
    (Element::I8, ov_element_type_e::I8, "i8", 1),
    (Element::U8, ov_element_type_e::U8, "u8", 1),
    (Element::Bool, ov_element_type_e::OV_BOOLEAN, "bool", 1),
];

impl Element {
    const fn entry(self) -> &'static (Self, ov_element_type_e, &'static str, usize) {
        &ALL[self as usize]
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        self.entry().3
    }

    pub(crate) const fn raw(self) -> ov_element_type_e {
        self.entry().1
    }

    /// The type of OpenVINO's number.
    pub(crate) fn of(number: u32) -> Option<Self> {
        ALL.iter().find(|(_, raw, ..)| *raw as u32 == number).map(|(element, ..)| *element)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry().2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_lie_in_the_table_under_their_own_place() {
        for (element, raw, name, size) in ALL {
            assert_eq!((element.raw(), element.to_string(), element.size()), (raw, name.to_owned(), size));
            assert_eq!(Element::of(raw as u32), Some(element));
        }
        assert_eq!(Element::of(ov_element_type_e::STRING as u32), None);
        assert_eq!(Element::of(1000), None);
    }
}
