//! Matching what is given to what a graph takes, before the backend sees it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::engine::manifest::RANK_SUFFIX;
use crate::engine::session::{Dim, Port, SessionError};
use crate::io::raw::{standard_layout, widen};
use crate::tensor::{Dtype, Lost, Tensor, TensorView};

/// An input in the type that a graph takes: where it was given, or converted.
pub(crate) enum Bound<'a> {
    /// As it was given, in place.
    Given(TensorView<'a>),
    /// Row-major.
    Converted(Tensor),
}

impl Bound<'_> {
    pub(crate) fn view(&self) -> TensorView<'_> {
        match self {
            Self::Given(view) => *view,
            Self::Converted(tensor) => row_major(tensor),
        }
    }
}

/// The elements of a tensor that was made here and so lies in row-major order.
pub(crate) fn row_major(tensor: &Tensor) -> TensorView<'_> {
    match tensor.view() {
        Some(view) => view,
        None => unreachable!("made in row-major order"),
    }
}

/// The tensors, copied only if they do not lie in row-major order.
pub(crate) fn laid_out<'a>(given: &[(&'a str, &'a Tensor)]) -> Vec<(&'a str, Cow<'a, Tensor>)> {
    given.iter().map(|(name, tensor)| (*name, standard_layout(tensor))).collect()
}

/// Views of what [`laid_out`] gave.
pub(crate) fn views<'a>(laid_out: &'a [(&'a str, Cow<'a, Tensor>)]) -> Vec<(&'a str, TensorView<'a>)> {
    laid_out.iter().map(|(name, tensor)| (*name, row_major(tensor))).collect()
}

/// The tensors of `given` in the order of `ports`, converted between types of numbers where that loses nothing
/// ([`TensorView::exactly`]). An extent with a name must be the same wherever the name occurs.
///
/// # Errors
/// [`SessionError`] that names the input, what the graph declares and what was given.
pub(crate) fn bind<'a>(ports: &[&Port], given: &[(&str, TensorView<'a>)]) -> Result<Vec<Bound<'a>>, SessionError> {
    let expected = || ports.iter().map(|port| describe(port)).collect::<Vec<_>>().join(", ");
    let known: HashSet<&str> = ports.iter().map(|port| &port.name[..]).collect();
    let mut tensors: HashMap<&str, TensorView<'a>> = HashMap::with_capacity(given.len());
    for &(name, tensor) in given {
        if !known.contains(name) {
            return Err(SessionError::UnknownInput { name: name.to_owned(), expected: expected() });
        }
        if tensors.insert(name, tensor).is_some() {
            return Err(mismatch(name, "one tensor", "two"));
        }
    }
    let mut symbols = HashMap::new();
    ports
        .iter()
        .map(|port| {
            let tensor = *tensors
                .get(&port.name[..])
                .ok_or_else(|| SessionError::MissingInput { name: port.name.clone(), expected: expected() })?;
            check_shape(port, &tensor, &mut symbols)?;
            convert(tensor, port.dtype).map_err(|found| mismatch(&port.name, describe(port), found))
        })
        .collect()
}

fn check_shape<'p>(
    port: &'p Port,
    tensor: &TensorView<'_>,
    symbols: &mut HashMap<&'p str, (usize, &'p str)>,
) -> Result<(), SessionError> {
    let shape = tensor.shape();
    if shape.len() != port.shape.len() {
        return Err(mismatch(&port.name, describe(port), found(tensor)));
    }
    for (dim, &extent) in port.shape.iter().zip(shape) {
        match dim {
            Dim::Fixed(n) if *n != extent => return Err(mismatch(&port.name, describe(port), found(tensor))),
            Dim::Fixed(_) => {}
            // Graphs carry the extents of intermediate values, which hold from one element on; a rank is in none of them.
            Dim::Symbol(symbol) if extent == 0 && !symbol.ends_with(RANK_SUFFIX) => {
                let expected = format!("{} with {symbol} of at least 1", describe(port));
                return Err(SessionError::Empty { name: port.name.clone(), expected, found: found(tensor) });
            }
            Dim::Symbol(symbol) => {
                let (bound, by) = *symbols.entry(symbol).or_insert((extent, &port.name));
                if bound != extent {
                    let expected = format!("{} with {symbol} = {bound} as in `{by}`", describe(port));
                    return Err(mismatch(&port.name, expected, found(tensor)));
                }
            }
        }
    }
    Ok(())
}

/// The tensor in the type that a graph takes; the error says what is lost.
fn convert(tensor: TensorView<'_>, dtype: Dtype) -> Result<Bound<'_>, String> {
    if tensor.dtype() == dtype {
        return Ok(Bound::Given(tensor));
    }
    if let (Dtype::F16 | Dtype::Bf16, Dtype::F32) = (tensor.dtype(), dtype) {
        let widened = widen(tensor.dtype(), tensor.data());
        let widened = widened.and_then(|values| Tensor::from_f32(tensor.shape(), values));
        return widened.map(Bound::Converted).ok_or_else(|| found(&tensor));
    }
    tensor.exactly(dtype).map(Bound::Converted).map_err(|lost| match lost {
        Lost::Type => found(&tensor),
        Lost::Value { at, value } => format!("{} with {value} at {at:?}, which {dtype} does not hold", found(&tensor)),
    })
}

/// Name, type and extents of an input or output, for messages.
pub(crate) fn describe(port: &Port) -> String {
    let extents: Vec<String> = port.shape.iter().map(Dim::to_string).collect();
    format!("{} {} [{}]", port.name, port.dtype, extents.join(", "))
}

fn found(tensor: &TensorView<'_>) -> String {
    format!("{} {:?}", tensor.dtype(), tensor.shape())
}

fn mismatch(name: &str, expected: impl Into<String>, found: impl Into<String>) -> SessionError {
    SessionError::InputMismatch { name: name.to_owned(), expected: expected.into(), found: found.into() }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    /// [`super::bind`] on views.
    fn bind_views<'a>(ports: &[Port], given: &[(&str, TensorView<'a>)]) -> Result<Vec<Bound<'a>>, SessionError> {
        super::bind(&ports.iter().collect::<Vec<_>>(), given)
    }

    /// [`bind`] on tensors; what it gives, as tensors.
    fn bind(ports: &[Port], given: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, SessionError> {
        let given = laid_out(given);
        let bound = bind_views(ports, &views(&given))?;
        Ok(bound.iter().map(|input| input.view().to_tensor()).collect())
    }

    fn port(name: &str, dtype: Dtype, shape: &[Dim]) -> Port {
        Port { name: name.into(), dtype, shape: shape.to_vec() }
    }

    fn symbol(name: &str) -> Dim {
        Dim::Symbol(name.into())
    }

    fn filled(shape: &[usize], value: f32) -> Tensor {
        Tensor::F32(ArrayD::from_elem(IxDyn(shape), value))
    }

    #[test]
    fn bind_orders_by_port_and_converts_without_loss() {
        let ports = [port("t", Dtype::I64, &[symbol("b")]), port("x", Dtype::F32, &[symbol("b"), Dim::Fixed(2)])];
        let x = Tensor::Bf16(ArrayD::from_elem(IxDyn(&[1, 2]), bf16::from_f32(0.5)));
        let t = filled(&[1], 999.0);
        let bound = bind(&ports, &[("x", &x), ("t", &t)]).unwrap();
        assert_eq!(bound[0], Tensor::I64(ArrayD::from_elem(IxDyn(&[1]), 999)));
        assert_eq!(bound[1], filled(&[1, 2], 0.5));
    }

    #[test]
    fn bind_leaves_what_has_the_graphs_type_in_place() {
        let ports = [port("x", Dtype::F32, &[Dim::Fixed(2)]), port("h", Dtype::F32, &[Dim::Fixed(2)])];
        let (x, h) = (filled(&[2], 1.0), Tensor::Bf16(ArrayD::from_elem(IxDyn(&[2]), bf16::ONE)));
        let given = [("x", x.view().unwrap()), ("h", h.view().unwrap())];
        let bound = bind_views(&ports, &given).unwrap();
        assert_eq!(bound[0].view().data().as_ptr(), given[0].1.data().as_ptr());
        assert_ne!(bound[1].view().data().as_ptr(), given[1].1.data().as_ptr());
    }

    #[test]
    fn bind_rejects_an_empty_input() {
        let ports = [port("x", Dtype::F32, &[symbol("frames"), Dim::Fixed(2)])];
        let message = bind(&ports, &[("x", &filled(&[0, 2], 1.0))]).unwrap_err().to_string();
        assert!(message.contains("frames of at least 1") && message.contains("[0, 2]"), "{message}");
    }

    #[test]
    fn bind_rejects_a_conversion_with_loss_and_names_the_first_number_that_is_lost() {
        let ports = [port("t", Dtype::I64, &[])];
        for value in [0.5, f32::NAN, f32::INFINITY, 1e19] {
            assert!(bind(&ports, &[("t", &filled(&[], value))]).is_err(), "{value}");
        }
        let mut rows = ArrayD::from_elem(IxDyn(&[2, 2]), 999.0f32);
        rows[[1, 0]] = 999.5;
        let error = bind(&[port("t", Dtype::I64, &[symbol("b"), Dim::Fixed(2)])], &[("t", &Tensor::F32(rows))]);
        let expected =
            "input `t`: expected t i64 [b, 2], found f32 [2, 2] with 999.5 at [1, 0], which i64 does not hold";
        assert_eq!(error.unwrap_err().to_string(), expected);
        let flag = Tensor::Bool(ArrayD::from_elem(IxDyn(&[]), true));
        let error = bind(&[port("x", Dtype::F32, &[])], &[("x", &flag)]).unwrap_err().to_string();
        assert_eq!(error, "input `x`: expected x f32 [], found bool []");
    }

    #[test]
    fn bind_takes_whole_timesteps_in_the_other_kind_of_number() {
        let whole = Tensor::I64(ArrayD::from_elem(IxDyn(&[1]), 999));
        let bound = bind(&[port("t", Dtype::F32, &[symbol("b")])], &[("t", &whole)]).unwrap();
        assert_eq!(bound[0], filled(&[1], 999.0));
        let bound = bind(&[port("t", Dtype::I32, &[symbol("b")])], &[("t", &filled(&[1], 999.0))]).unwrap();
        assert_eq!(bound[0], Tensor::I32(ArrayD::from_elem(IxDyn(&[1]), 999)));
    }

    #[test]
    fn bind_names_missing_unknown_and_repeated_inputs() {
        let ports = [port("x", Dtype::F32, &[])];
        let x = filled(&[], 1.0);
        let message = |given: &[(&str, &Tensor)]| bind(&ports, given).unwrap_err().to_string();
        assert_eq!(message(&[]), "input `x` is missing; the graph takes x f32 []");
        assert_eq!(message(&[("y", &x)]), "the graph has no input `y`; it takes x f32 []");
        assert_eq!(message(&[("x", &x), ("x", &x)]), "input `x`: expected one tensor, found two");
    }

    #[test]
    fn bind_rejects_wrong_extents_and_symbols_that_disagree() {
        let ports =
            [port("a", Dtype::F32, &[symbol("frames")]), port("b", Dtype::F32, &[symbol("frames"), Dim::Fixed(3)])];
        let a = filled(&[13], 0.0);
        let message = |b: &Tensor| bind(&ports, &[("a", &a), ("b", b)]).unwrap_err().to_string();
        assert_eq!(message(&filled(&[13, 4], 0.0)), "input `b`: expected b f32 [frames, 3], found f32 [13, 4]");
        assert_eq!(message(&filled(&[13], 0.0)), "input `b`: expected b f32 [frames, 3], found f32 [13]");
        let expected = "input `b`: expected b f32 [frames, 3] with frames = 13 as in `a`, found f32 [12, 3]";
        assert_eq!(message(&filled(&[12, 3], 0.0)), expected);
    }
}
