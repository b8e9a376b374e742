//! Extents as polynomials over symbols, in one canonical form: equal extents that can be told equal are equal values.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A symbol: its index in the table that made it.
pub(crate) type Symbol = usize;

/// More terms than any real extent has.
const MAX_TERMS: usize = 16;

/// More factors than any real extent has.
const MAX_FACTORS: usize = 16;

/// A product of symbols in ascending order; none for 1. Ordered by degree, then by the powers of the symbols, which
/// multiplication keeps: the largest term of a product is the product of the largest terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Monomial(Vec<Symbol>);

impl Ord for Monomial {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| other.0.cmp(&self.0))
    }
}

impl PartialOrd for Monomial {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Monomial {
    /// The symbols, with repeats.
    pub(crate) fn factors(&self) -> &[Symbol] {
        &self.0
    }

    fn mul(&self, other: &Self) -> Option<Self> {
        let mut factors = [&self.0[..], &other.0].concat();
        factors.sort_unstable();
        (factors.len() <= MAX_FACTORS).then_some(Self(factors))
    }

    fn div(&self, other: &Self) -> Option<Self> {
        let mut factors = self.0.clone();
        for symbol in &other.0 {
            factors.remove(factors.iter().position(|s| s == symbol)?);
        }
        Some(Self(factors))
    }
}

/// A sum of products of symbols with integer coefficients. `None` from an operation means: overflow, or too large.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Expr(BTreeMap<Monomial, i64>);

impl From<i64> for Expr {
    fn from(n: i64) -> Self {
        Self::term(Monomial::default(), n)
    }
}

impl Expr {
    fn term(monomial: Monomial, factor: i64) -> Self {
        Self((factor != 0).then_some((monomial, factor)).into_iter().collect())
    }

    pub(crate) fn symbol(symbol: Symbol) -> Self {
        Self::term(Monomial(vec![symbol]), 1)
    }

    /// Largest first.
    pub(crate) fn terms(&self) -> impl Iterator<Item = (&Monomial, i64)> {
        self.0.iter().rev().map(|(m, &n)| (m, n))
    }

    /// The number, if it is one.
    pub(crate) fn number(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&Monomial::default()).copied(),
            _ => None,
        }
    }

    /// The symbol, if it is nothing else.
    pub(crate) fn as_symbol(&self) -> Option<Symbol> {
        match (self.0.len(), self.0.first_key_value()) {
            (1, Some((Monomial(factors), 1))) if factors.len() == 1 => Some(factors[0]),
            _ => None,
        }
    }

    /// `self + factor · monomial · other`.
    fn plus(&self, other: &Self, monomial: &Monomial, factor: i64) -> Option<Self> {
        let mut sum = self.0.clone();
        for (m, n) in &other.0 {
            let (m, n) = (m.mul(monomial)?, n.checked_mul(factor)?);
            let total = sum.get(&m).copied().unwrap_or(0).checked_add(n)?;
            if total == 0 {
                sum.remove(&m);
            } else {
                sum.insert(m, total);
            }
        }
        (sum.len() <= MAX_TERMS).then_some(Self(sum))
    }

    pub(crate) fn add(&self, other: &Self) -> Option<Self> {
        self.plus(other, &Monomial::default(), 1)
    }

    pub(crate) fn sub(&self, other: &Self) -> Option<Self> {
        self.plus(other, &Monomial::default(), -1)
    }

    pub(crate) fn mul(&self, other: &Self) -> Option<Self> {
        other.0.iter().try_fold(Self::default(), |sum, (m, &n)| sum.plus(self, m, n))
    }

    /// The quotient, if the division leaves nothing whatever the symbols are.
    pub(crate) fn div_exact(&self, other: &Self) -> Option<Self> {
        let (lead, factor) = other.0.last_key_value()?;
        let (mut rest, mut quotient) = (self.clone(), Self::default());
        // Each step takes the largest term away; the cap only guards against long divisions that do not end well.
        for _ in 0..4 * MAX_TERMS {
            let Some((m, n)) = rest.0.last_key_value() else { return Some(quotient) };
            if n.checked_rem(*factor)? != 0 {
                return None;
            }
            let (m, n) = (m.div(lead)?, n.checked_div(*factor)?);
            rest = rest.plus(other, &m, n.checked_neg()?)?;
            quotient = quotient.plus(&Self::term(m, n), &Monomial::default(), 1)?;
        }
        None
    }

    /// `(q, r)` with `self = n · q + r` and every coefficient of `r` in `0..n`.
    pub(crate) fn split_by(&self, n: i64) -> Option<(Self, Self)> {
        let (mut quotient, mut rest) = (Self::default(), Self::default());
        for (m, &factor) in &self.0 {
            let (q, r) = (factor.checked_div_euclid(n)?, factor.checked_rem_euclid(n)?);
            quotient = quotient.plus(&Self::term(m.clone(), q), &Monomial::default(), 1)?;
            rest = rest.plus(&Self::term(m.clone(), r), &Monomial::default(), 1)?;
        }
        Some((quotient, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(symbol: Symbol) -> Expr {
        Expr::symbol(symbol)
    }

    fn n(number: i64) -> Expr {
        number.into()
    }

    #[test]
    fn equal_polynomials_are_equal_whatever_the_order_of_operations() {
        let left = s(0).add(&s(1)).unwrap().mul(&s(2).add(&n(3)).unwrap()).unwrap();
        let right = s(2).mul(&s(1)).unwrap().add(&s(2).mul(&s(0)).unwrap()).unwrap();
        let right = right.add(&n(3).mul(&s(1)).unwrap()).unwrap().add(&s(0).mul(&n(3)).unwrap()).unwrap();
        assert_eq!(left, right);
        assert_eq!(left.sub(&right).unwrap().number(), Some(0));
        assert_ne!(s(0).mul(&s(0)).unwrap(), s(0));
    }

    #[test]
    fn exact_division_undoes_multiplication_and_refuses_the_rest() {
        let sum = s(0).add(&n(14).mul(&s(1)).unwrap()).unwrap();
        let other = s(2).mul(&s(1)).unwrap().sub(&n(2)).unwrap();
        let product = sum.mul(&other).unwrap();
        assert_eq!(product.div_exact(&other), Some(sum.clone()));
        assert_eq!(product.div_exact(&sum), Some(other.clone()));
        assert_eq!(product.add(&n(1)).unwrap().div_exact(&sum), None);
        assert_eq!(sum.div_exact(&n(14)), None);
        assert_eq!(sum.div_exact(&n(0)), None);
        assert_eq!(n(i64::MIN).div_exact(&n(-1)), None);
        assert_eq!(n(0).div_exact(&sum), Some(n(0)));
    }

    #[test]
    fn split_by_a_number_leaves_small_coefficients() {
        let (q, r) = n(5).mul(&s(0)).unwrap().sub(&n(3)).unwrap().split_by(2).unwrap();
        assert_eq!((q, r), (n(2).mul(&s(0)).unwrap().sub(&n(2)).unwrap(), s(0).add(&n(1)).unwrap()));
        assert_eq!(s(0).split_by(0), None);
    }

    #[test]
    fn overflow_and_growth_are_none() {
        assert_eq!(n(i64::MAX).add(&n(1)), None);
        assert_eq!(n(i64::MAX).mul(&n(2)), None);
        let many = (0..MAX_TERMS).try_fold(n(0), |sum, i| sum.add(&s(i)));
        assert!(many.is_some());
        assert_eq!(many.and_then(|m| m.add(&s(99))), None);
        assert_eq!((0..=MAX_FACTORS).try_fold(n(1), |p, i| p.mul(&s(i))), None);
    }
}
