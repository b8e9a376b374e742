//! Weights are looked at for NaN and infinity as they stream into the bundle: no pass of its own, and no copy.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;

use v2l_graphs::DataType;

/// What is being written, shared by the writer and who feeds it.
#[derive(Clone, Default)]
pub(crate) struct Watch(Rc<Cell<Scan>>);

#[derive(Clone, Copy, Default)]
struct Scan {
    /// Bytes of an element, and the bits of its exponent; `None`: whatever comes is fine.
    form: Option<(usize, u64)>,
    /// Bytes of an element that a write ended in the middle of.
    begun: [u8; 8],
    held: usize,
    /// Elements so far.
    seen: usize,
    /// The first that is not finite.
    found: Option<usize>,
}

impl Watch {
    /// Begins with a tensor of this type.
    pub(crate) fn begin(&self, dtype: DataType) {
        let form = match dtype {
            DataType::Float => Some((4, 0x7f80_0000)),
            DataType::Bfloat16 => Some((2, 0x7f80)),
            DataType::Float16 => Some((2, 0x7c00)),
            DataType::Double => Some((8, 0x7ff0_0000_0000_0000)),
            _ => None,
        };
        self.0.set(Scan { form, ..Scan::default() });
    }

    /// Ends with it: the first element that is not finite, in the order in which they are stored.
    pub(crate) fn end(&self) -> Option<usize> {
        self.0.take().found
    }
}

/// Writes on, and looks.
pub(crate) struct Watched<W> {
    pub(crate) inner: W,
    pub(crate) watch: Watch,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        let mut scan = self.watch.0.get();
        scan.look(&bytes[..written]);
        self.watch.0.set(scan);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Scan {
    fn look(&mut self, mut bytes: &[u8]) {
        let Some((size, exponent)) = self.form.filter(|_| self.found.is_none()) else { return };
        while self.held > 0 && !bytes.is_empty() {
            let (first, rest) = bytes.split_at(1);
            self.begun[self.held] = first[0];
            self.held += 1;
            bytes = rest;
            if self.held == size {
                let element = self.begun;
                self.held = 0;
                self.whole(&element[..size], size, exponent);
            }
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % size);
        self.whole(whole, size, exponent);
        self.begun[..rest.len()].copy_from_slice(rest);
        self.held += rest.len();
    }

    fn whole(&mut self, bytes: &[u8], size: usize, exponent: u64) {
        // A loop for each size, which the compiler makes wide.
        let any = match size {
            2 => bytes
                .chunks_exact(2)
                .fold(false, |any, c| any | (u16::from_le_bytes([c[0], c[1]]) & exponent as u16 == exponent as u16)),
            4 => bytes.chunks_exact(4).fold(false, |any, c| {
                any | (u32::from_le_bytes([c[0], c[1], c[2], c[3]]) & exponent as u32 == exponent as u32)
            }),
            _ => bytes.chunks_exact(size).any(|c| is_special(c, exponent)),
        };
        if any {
            let at = bytes.chunks_exact(size).position(|c| is_special(c, exponent));
            self.found = self.found.or_else(|| at.map(|at| self.seen + at));
        }
        self.seen += bytes.len() / size;
    }
}

/// True for a little-endian element all of whose exponent's bits are set.
fn is_special(element: &[u8], exponent: u64) -> bool {
    let mut bits = [0; 8];
    bits[..element.len()].copy_from_slice(element);
    u64::from_le_bytes(bits) & exponent == exponent
}

#[cfg(test)]
mod tests {
    use v2l_graphs::{ExternalDataWriter, TensorData};

    use super::*;

    /// Writes `bytes` in pieces of `piece`.
    fn found(dtype: DataType, bytes: &[u8], piece: usize) -> Option<usize> {
        let mut out = Watched { inner: Vec::new(), watch: Watch::default() };
        out.watch.begin(dtype);
        for part in bytes.chunks(piece) {
            out.write_all(part).unwrap();
        }
        assert_eq!(out.inner, bytes);
        out.watch.end()
    }

    #[test]
    fn tensor_after_padding_is_looked_at_from_its_own_first_byte() {
        let watch = Watch::default();
        let mut data =
            ExternalDataWriter::new(Watched { inner: Vec::<u8>::new(), watch: watch.clone() }, "weights.bin");
        let mut write = |name: &str, dtype: DataType, bytes: Vec<u8>| {
            data.pad().unwrap();
            watch.begin(dtype);
            let at = data.append(name, &TensorData::raw(bytes)).unwrap().offset;
            (at, watch.end())
        };
        let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(write("odd", DataType::Bfloat16, vec![0x80, 0x3f]), (0, None));
        // Two bytes further are the bits of an infinity.
        let bits = [1.0, f32::from_bits(0x0000_7f80)];
        assert_eq!(write("fine", DataType::Float, floats(&bits)), (64, None));
        assert_eq!(write("odd again", DataType::Bfloat16, vec![0x80, 0x3f]), (128, None));
        assert_eq!(write("wrong", DataType::Float, floats(&[1.0, f32::NAN])), (192, Some(1)));
    }

    #[test]
    fn first_element_that_is_not_finite_is_found_however_it_is_written() {
        let floats: Vec<u8> = [1.0, -0.0, f32::MAX, f32::MIN_POSITIVE, f32::NEG_INFINITY, f32::NAN]
            .iter()
            .flat_map(|x: &f32| x.to_le_bytes())
            .collect();
        let halves: Vec<u8> = [0x3c00u16, 0x7bff, 0xfbff, 0x7c01].iter().flat_map(|x| x.to_le_bytes()).collect();
        let brains: Vec<u8> = [0x3f80u16, 0x7f7f, 0xff80].iter().flat_map(|x| x.to_le_bytes()).collect();
        let doubles: Vec<u8> = [f64::MAX, f64::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
        for piece in [1, 2, 3, 5, 7, 64] {
            assert_eq!(found(DataType::Float, &floats, piece), Some(4), "{piece}");
            assert_eq!(found(DataType::Float, &floats[..16], piece), None, "{piece}");
            assert_eq!(found(DataType::Float16, &halves, piece), Some(3), "{piece}");
            assert_eq!(found(DataType::Bfloat16, &brains, piece), Some(2), "{piece}");
            assert_eq!(found(DataType::Double, &doubles, piece), Some(1), "{piece}");
            assert_eq!(found(DataType::Int64, &[0xff; 16], piece), None, "{piece}");
        }
    }
}
