//! 8-bit floats, as files hold them.

/// Types of 8-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8 {
    /// 4 bits of exponent, no infinities.
    E4m3,
    /// 5 bits of exponent, an f16 without its last 8 bits.
    E5m2,
}

impl Float8 {
    /// The type that a safetensors file names; `None` if it is another.
    pub const fn of(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F8_E4M3 => Some(Self::E4m3),
            safetensors::Dtype::F8_E5M2 => Some(Self::E5m2),
            _ => None,
        }
    }

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "fp8 e4m3",
            Self::E5m2 => "fp8 e5m2",
        }
    }

    /// The value of every byte.
    pub fn values(self) -> Box<[f32; 256]> {
        let mut values = Box::new([0.0; 256]);
        for (byte, slot) in (0..=u8::MAX).zip(values.iter_mut()) {
            *slot = self.value(byte);
        }
        values
    }

    /// The value of a byte; every finite one is exact.
    pub fn value(self, byte: u8) -> f32 {
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let bits = i32::from(byte & 0x7f);
        let (exponent_bits, mantissa_bits, bias) = match self {
            Self::E4m3 => (4, 3, 7),
            Self::E5m2 => (5, 2, 15),
        };
        let (exponent, mantissa) = (bits >> mantissa_bits, bits & ((1 << mantissa_bits) - 1));
        let whole = f64::from(1 << mantissa_bits);
        let magnitude = match self {
            Self::E4m3 if bits == 0x7f => f64::NAN,
            Self::E5m2 if exponent == (1 << exponent_bits) - 1 => {
                if mantissa == 0 {
                    f64::INFINITY
                } else {
                    f64::NAN
                }
            }
            _ if exponent == 0 => f64::from(mantissa) / whole * f64::from(1 - bias).exp2(),
            _ => (1.0 + f64::from(mantissa) / whole) * f64::from(exponent - bias).exp2(),
        };
        sign * magnitude as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_both_types_are_those_of_their_formats() {
        // OCP 8-bit floating point specification, tables 1 and 2: largest, smallest normal, smallest subnormal.
        for (form, byte, expected) in [
            (Float8::E4m3, 0x7e, 448.0),
            (Float8::E4m3, 0x08, 0.015_625),
            (Float8::E4m3, 0x01, 0.001_953_125),
            (Float8::E4m3, 0xb8, -1.0),
            (Float8::E5m2, 0x7b, 57344.0),
            (Float8::E5m2, 0x04, 6.103_515_6e-5),
            (Float8::E5m2, 0x01, 1.525_878_9e-5),
            (Float8::E5m2, 0xc0, -2.0),
        ] {
            assert_eq!(form.value(byte), expected, "{form:?} {byte:#x}");
        }
        assert!(Float8::E4m3.value(0xff).is_nan() && Float8::E5m2.value(0x7d).is_nan());
        assert_eq!(Float8::E5m2.value(0xfc), f32::NEG_INFINITY);
        for byte in 0..=u8::MAX {
            let expected = half::f16::from_le_bytes([0, byte]).to_f32();
            assert!(Float8::E5m2.value(byte) == expected || expected.is_nan(), "{byte:#x}");
        }
    }
}
