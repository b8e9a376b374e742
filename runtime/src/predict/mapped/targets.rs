//! A slot that a map changes: its factors, and what becomes of them.

use ndarray::{Array2, ArrayD, Axis, Ix1, Ix2};

use super::super::error::PredictorError;
use super::super::outputs::shape_defect;
use super::factors::{Factor, Floats, Form};
use super::wires::Run;
use crate::lora::adapter::LowRank;

/// Largest rank of a predicted update.
const MAX_RANK: usize = 4096;

/// A slot to be changed, and where its factors are.
pub(super) struct Target {
    /// The slot's own name, whatever the map calls it.
    pub(super) name: String,
    /// What the map calls it.
    pub(super) called: String,
    /// Features in and out; `None` where no model says them.
    pub(super) features: Option<[usize; 2]>,
    /// The runs for this slot alone, the first first.
    pub(super) runs: Vec<Run>,
    pub(super) factors: Factors,
}

/// `ΔW = (alpha / k) · times · scale · up · mid · down`.
#[derive(Debug)]
pub(super) struct Factors {
    /// `[k', in]`.
    pub(super) down: Factor,
    /// `[out, k]`.
    pub(super) up: Factor,
    /// `[k, k']`, or a diagonal `[k]`.
    pub(super) mid: Option<Factor>,
    pub(super) scale: Option<Factor>,
    pub(super) times: f32,
    /// k if not given.
    pub(super) alpha: Option<f32>,
}

impl Factors {
    /// Each with what it may be.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Factor, Form)> {
        let outer = [(&self.down, Form::Matrix), (&self.up, Form::Matrix)];
        let mid = self.mid.iter().map(|mid| (mid, Form::Middle));
        outer.into_iter().chain(mid).chain(self.scale.iter().map(|scale| (scale, Form::Number)))
    }
}

impl Target {
    /// Checks what is known before anything runs: constants against the slot and against each other.
    ///
    /// # Errors
    /// [`PredictorError::Shape`].
    pub(super) fn check_constants(&self) -> Result<(), PredictorError> {
        let Factors { down, up, mid, scale, .. } = &self.factors;
        let known = |factor: &Factor, form| factor.known(form, &self.called);
        let (down, up) = (known(down, Form::Matrix)?, known(up, Form::Matrix)?);
        let mid = mid.as_ref().map(|mid| known(mid, Form::Middle)).transpose()?.flatten();
        scale.as_ref().map(|scale| known(scale, Form::Number)).transpose()?;
        self.check(down.as_deref(), mid.as_deref(), up.as_deref())
    }

    /// The update that the factors are. Everything is f32.
    ///
    /// The middle factor goes into the outer factor of fewer features, `up` if both have as many. Scale and strength go into `up`.
    ///
    /// # Errors
    /// [`PredictorError::Shape`], [`PredictorError::NotFinite`].
    pub(super) fn update(&self, floats: &Floats) -> Result<LowRank, PredictorError> {
        let Factors { down: at_down, up: at_up, mid: at_mid, scale: at_scale, times, alpha } = &self.factors;
        let (down, up) = (self.matrix(at_down, floats)?, self.matrix(at_up, floats)?);
        let mid = at_mid.as_ref().map(|mid| mid.read(floats, Form::Middle, &self.called)).transpose()?;
        self.check(Some(down.shape()), mid.as_ref().map(ArrayD::shape), Some(up.shape()))?;
        at_down.check_finite(&down, &self.called)?;
        at_up.check_finite(&up, &self.called)?;
        if let (Some(at), Some(mid)) = (at_mid, &mid) {
            at.check_finite(mid, &self.called)?;
        }
        let mut times = *times;
        if let Some(at) = at_scale {
            let scale = at.read(floats, Form::Number, &self.called)?;
            at.check_finite(&scale, &self.called)?;
            times *= scale.first().copied().unwrap_or(1.0);
        }
        let k = up.ncols();
        let (down, mut up) = match mid {
            Some(mid) => folded(down, &mid, up),
            None => (down, up),
        };
        up *= times;
        if [&down, &up].into_iter().flatten().any(|value| !value.is_finite()) {
            return Err(PredictorError::NotFinite {
                what: format!("the product of the factors of slot `{}`", self.called),
            });
        }
        let rank = down.nrows();
        // `alpha / k`, in the terms of another rank where the middle factor is not square.
        let alpha = alpha.map_or(rank as f32, |alpha| alpha * (rank as f32 / k as f32));
        Ok(LowRank { down, up, alpha })
    }

    /// A factor in row-major order.
    fn matrix(&self, factor: &Factor, floats: &Floats) -> Result<Array2<f32>, PredictorError> {
        let values = factor.read(floats, Form::Matrix, &self.called)?.into_dimensionality::<Ix2>();
        let matrix = values.map_err(|error| shape_defect(&error))?;
        Ok(if matrix.is_standard_layout() { matrix } else { matrix.as_standard_layout().into_owned() })
    }

    /// Checks the extents that are known: of a middle factor none if there is none.
    fn check(&self, down: Option<&[usize]>, mid: Option<&[usize]>, up: Option<&[usize]>) -> Result<(), PredictorError> {
        let [inner, out] = match self.features {
            Some(features) => features.map(Some),
            None => [None, None],
        };
        let is =
            |found: usize, expected: Option<usize>| found != 0 && expected.is_none_or(|expected| expected == found);
        let is_rank = |rank: usize| (1..=MAX_RANK).contains(&rank);
        let (rows, columns) = match (mid, &self.factors.mid) {
            (Some(&[k]), _) => (Some(k), Some(k)),
            (Some(&[k, other]), _) => (Some(k), Some(other)),
            // Without a middle factor the two share their rank.
            (_, None) => (down.map(|down| down[0]), up.map(|up| up[1])),
            _ => (None, None),
        };
        let fits = down.is_none_or(|down| is(down[1], inner) && is_rank(down[0]) && is(down[0], columns))
            && up.is_none_or(|up| is(up[0], out) && is_rank(up[1]) && is(up[1], rows));
        if fits {
            return Ok(());
        }
        let [inner, out] =
            [(inner, "in"), (out, "out")].map(|(n, name)| n.map_or_else(|| name.to_owned(), |n| n.to_string()));
        let with_mid = self.factors.mid.is_some();
        let expected = if with_mid {
            format!("down [k', {inner}], mid [k, k'] or a diagonal [k], and up [{out}, k], k and k' of 1 to {MAX_RANK}")
        } else {
            format!("down [rank, {inner}] and up [{out}, rank] of one rank of 1 to {MAX_RANK}")
        };
        let shown = |name: &str, found: Option<&[usize]>, factor: &Factor| {
            let found = found.map_or_else(|| "not known yet".to_owned(), |found| format!("{found:?}"));
            format!("{name} {found}{}", if factor.transposed { " (transposed)" } else { "" })
        };
        let Factors { down: at_down, up: at_up, mid: at_mid, .. } = &self.factors;
        let middle = at_mid.as_ref().map_or_else(String::new, |at| format!(", {}", shown("mid", mid, at)));
        Err(PredictorError::Shape {
            what: format!("the predictor's factors of slot `{}`", self.called),
            expected,
            found: format!("{}{middle} and {}", shown("down", down, at_down), shown("up", up, at_up)),
        })
    }
}

/// `mid` multiplied into the one of the two that has fewer features.
fn folded(down: Array2<f32>, mid: &ArrayD<f32>, up: Array2<f32>) -> (Array2<f32>, Array2<f32>) {
    let into_up = up.nrows() <= down.ncols();
    let mid = mid.view();
    match (mid.clone().into_dimensionality::<Ix1>(), mid.into_dimensionality::<Ix2>()) {
        (Ok(diagonal), _) if into_up => (down, up * diagonal),
        (Ok(diagonal), _) => (down * diagonal.insert_axis(Axis(1)), up),
        (_, Ok(matrix)) if into_up => (down, up.dot(&matrix)),
        (_, Ok(matrix)) => (matrix.dot(&down), up),
        _ => (down, up),
    }
}
