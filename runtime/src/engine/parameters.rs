//! What adapters may change besides linear layers: biases, norms' scales, modulation tables, convolutions.

use std::collections::HashSet;

use super::manifest::{Found, Graph, How, Manifest, RESERVED_PREFIX, SCALES_SUFFIX, Slot};

/// The floating-point weights of an engine's graphs that are no linear layer's matrix, each as a slot that is called like its tensor.
///
/// A full difference of such a tensor is an update of its matrix form (see [`matrix`]), of which a vector is one row.
pub(super) fn parameters(manifest: &Manifest) -> Vec<Slot> {
    let matrices: HashSet<&str> = manifest.slots.iter().map(|slot| &slot.tensor[..]).collect();
    let read: HashSet<&str> =
        manifest.graphs.iter().flat_map(Graph::parts).flat_map(|part| &part.weights).map(String::as_str).collect();
    let is_parameter = |name: &str| {
        read.contains(name)
            && !matrices.contains(name)
            && !name.starts_with(RESERVED_PREFIX)
            && !name.ends_with(SCALES_SUFFIX)
    };
    let taken: HashSet<&str> = manifest
        .slots
        .iter()
        .flat_map(|slot| std::iter::once(&slot.name).chain(&slot.aliases))
        .map(|n| &n[..])
        .collect();
    let tensors = manifest.tensors.iter().filter(|(name, record)| is_parameter(name) && record.dtype.is_float());
    let slots = tensors
        .filter(|(name, _)| !taken.contains(&name[..]))
        .filter_map(|(name, record)| parameter(name, &record.shape));
    slots.collect()
}

/// A parameter of this name and shape as a slot, which is called like its tensor; `None` of one without elements.
pub fn parameter(name: &str, shape: &[usize]) -> Option<Slot> {
    let (rows, columns) = matrix(shape)?;
    Some(Slot { tensor: name.to_owned(), found: Found::by(How::Initializer), ..Slot::linear(name, rows, columns) })
}

/// Rows and columns of a tensor as a matrix in the same order of elements: leading extents of 1 are left out, then the first
/// extent is the rows; a vector is one row. `None` of a tensor without elements.
pub fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    if let &[rows, columns] = shape {
        return Some((rows, columns));
    }
    let first = shape.iter().position(|&extent| extent != 1).unwrap_or(shape.len());
    let (rows, rest) = match &shape[first..] {
        [] => (1, &[][..]),
        [columns] => (1, std::slice::from_ref(columns)),
        [rows, rest @ ..] => (*rows, rest),
    };
    let columns = rest.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
    (rows > 0 && columns > 0).then_some((rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_keeps_the_order_of_elements() {
        for (shape, expected) in [
            (&[4, 3][..], Some((4, 3))),
            (&[1, 5], Some((1, 5))),
            (&[5], Some((1, 5))),
            (&[], Some((1, 1))),
            (&[1, 1, 1], Some((1, 1))),
            (&[1, 6, 48], Some((6, 48))),
            (&[48, 16, 1, 2, 2], Some((48, 64))),
            (&[1, 1, 7], Some((1, 7))),
            (&[0, 2, 2], None),
            (&[2, usize::MAX, 2], None),
        ] {
            assert_eq!(matrix(shape), expected, "{shape:?}");
        }
    }
}
