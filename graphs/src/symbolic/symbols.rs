//! The symbols of one graph: what they stand for, how small and large they can be, what they are called.

use std::collections::{HashMap, HashSet};

use super::expr::{Expr, Symbol};
use crate::Dim;

/// Longer names are not worth having: a derived extent is given a number instead.
const MAX_NAME: usize = 120;

/// What a symbol stands for. No symbol is ever negative.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Meaning {
    /// An extent that the model names.
    Declared(String),
    /// An extent of which nothing is known; no two are the same.
    Open(usize),
    /// Quotient rounded down.
    Quotient(Expr, i64),
    Remainder(Expr, i64),
    /// Operands in ascending order of their names.
    Larger(Expr, Expr),
    Smaller(Expr, Expr),
}

struct Entry {
    name: String,
    /// How it is written inside of an expression.
    inner: String,
    low: i64,
    high: Option<i64>,
    meaning: Meaning,
}

/// Symbols by number.
pub(crate) struct Symbols {
    /// What an extent that the model names is at least.
    least: i64,
    entries: Vec<Entry>,
    known: HashMap<Meaning, Symbol>,
    names: HashSet<String>,
    open: usize,
    equal: Vec<(Expr, Expr)>,
}

impl Symbols {
    pub(crate) fn new(least: i64) -> Self {
        Self { least, entries: Vec::new(), known: HashMap::new(), names: HashSet::new(), open: 0, equal: Vec::new() }
    }

    /// The extent that the model calls `name`.
    pub(crate) fn declared(&mut self, name: &str) -> Expr {
        let inner = if is_plain(name) {
            name.to_owned()
        } else if name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'{' | b'}' | b'#')) {
            format!("{{{name}}}")
        } else {
            format!("{{#{}}}", self.entries.len())
        };
        self.intern(Meaning::Declared(name.to_owned()), name.to_owned(), inner, self.least, None)
    }

    pub(crate) fn is_declared(&self, name: &str) -> bool {
        self.known.contains_key(&Meaning::Declared(name.to_owned()))
    }

    /// An extent like no other.
    pub(crate) fn open(&mut self) -> Expr {
        self.open += 1;
        let name = self.unused(format!("unk__{}", self.open));
        self.intern(Meaning::Open(self.open), name.clone(), name, 0, None)
    }

    /// Notes that a run in which these two extents differ fails (or broadcasts one of them).
    pub(crate) fn must_equal(&mut self, a: &Expr, b: &Expr) {
        if a != b {
            self.equal.push((a.clone(), b.clone()));
        }
    }

    /// What [`Self::must_equal`] noted, in order.
    pub(crate) fn equalities(&self) -> &[(Expr, Expr)] {
        &self.equal
    }

    pub(crate) fn meaning(&self, symbol: Symbol) -> &Meaning {
        &self.entries[symbol].meaning
    }

    /// The model's own name of the symbol, if it has one.
    pub(crate) fn declared_name(&self, symbol: Symbol) -> Option<&str> {
        match &self.entries[symbol].meaning {
            Meaning::Declared(name) => Some(name),
            _ => None,
        }
    }

    /// `⌊a / n⌋`.
    pub(crate) fn floor_div(&mut self, a: &Expr, n: i64) -> Option<Expr> {
        if n <= 0 {
            return None;
        }
        let (quotient, rest) = a.split_by(n)?;
        if self.high(&rest).is_some_and(|high| high < n) {
            return Some(quotient);
        }
        if let Some(Meaning::Quotient(inner, m)) = rest.as_symbol().map(|s| self.entries[s].meaning.clone()) {
            return self.floor_div(&inner, m.checked_mul(n)?)?.add(&quotient);
        }
        if let Some(odd) = self.made_even(&rest).filter(|_| n == 2) {
            return self.floor_div(&odd.add(&1.into())?, 2)?.add(&quotient);
        }
        let name = self.bounded(format!("{}//{n}", self.factor(&rest)))?;
        let (low, high) = (self.low(&rest)? / n, self.high(&rest).map(|h| h / n));
        self.intern(Meaning::Quotient(rest, n), name.clone(), format!("({name})"), low, high).add(&quotient)
    }

    /// `x`, if `e` is `x + x mod 2`, which is half of `x + 1` rounded down, doubled.
    fn made_even(&self, e: &Expr) -> Option<Expr> {
        let mut symbols = e.terms().filter(|(_, n)| *n == 1).filter_map(|(m, _)| match m.factors() {
            [symbol] => Some(*symbol),
            _ => None,
        });
        symbols.find_map(|symbol| match &self.entries[symbol].meaning {
            Meaning::Remainder(x, 2) if e.sub(&Expr::symbol(symbol)).as_ref() == Some(x) => Some(x.clone()),
            _ => None,
        })
    }

    /// `a mod n`, never negative.
    pub(crate) fn modulo(&mut self, a: &Expr, n: i64) -> Option<Expr> {
        if n <= 0 {
            return None;
        }
        let (_, rest) = a.split_by(n)?;
        if self.high(&rest).is_some_and(|high| high < n) {
            return Some(rest);
        }
        let name = self.bounded(format!("{}%{n}", self.factor(&rest)))?;
        Some(self.intern(Meaning::Remainder(rest, n), name.clone(), format!("({name})"), 0, Some(n - 1)))
    }

    /// The larger of two that are not both negative.
    pub(crate) fn larger(&mut self, a: &Expr, b: &Expr) -> Option<Expr> {
        if self.at_least(a, b) {
            return Some(a.clone());
        }
        if self.at_least(b, a) {
            return Some(b.clone());
        }
        let low = self.low(a).max(self.low(b)).filter(|low| *low >= 0)?;
        let high = self.high(a).zip(self.high(b)).map(|(x, y)| x.max(y));
        let [a, b] = self.in_order(a, b);
        let name = self.bounded(format!("max({},{})", self.text(&a), self.text(&b)))?;
        Some(self.intern(Meaning::Larger(a, b), name.clone(), name, low, high))
    }

    /// The smaller of two that are not negative.
    pub(crate) fn smaller(&mut self, a: &Expr, b: &Expr) -> Option<Expr> {
        if self.at_least(a, b) {
            return Some(b.clone());
        }
        if self.at_least(b, a) {
            return Some(a.clone());
        }
        let low = self.low(a)?.min(self.low(b)?);
        if low < 0 {
            return None;
        }
        let high = self.high(a).into_iter().chain(self.high(b)).min();
        let [a, b] = self.in_order(a, b);
        let name = self.bounded(format!("min({},{})", self.text(&a), self.text(&b)))?;
        Some(self.intern(Meaning::Smaller(a, b), name.clone(), name, low, high))
    }

    /// True if `a ≥ b` for certain.
    pub(crate) fn at_least(&self, a: &Expr, b: &Expr) -> bool {
        a.sub(b).and_then(|d| self.low(&d)).is_some_and(|low| low >= 0)
    }

    /// A number that `e` is never below.
    pub(crate) fn low(&self, e: &Expr) -> Option<i64> {
        // `a·b − a` is bounded as `a · (b − 1)`, which says more.
        let common = e.terms().next().filter(|_| e.terms().count() > 1).into_iter().flat_map(|(m, _)| m.factors());
        for &s in common {
            let rest = e.div_exact(&Expr::symbol(s)).and_then(|rest| self.low(&rest));
            if let Some(low) = rest.filter(|low| *low >= 0) {
                return low.checked_mul(self.entries[s].low);
            }
        }
        let mut sum = 0i64;
        for (monomial, n) in e.terms() {
            let mut bound = n;
            for &s in monomial.factors() {
                let entry = &self.entries[s];
                bound = bound.checked_mul(if n > 0 { entry.low } else { entry.high? })?;
            }
            sum = sum.checked_add(bound)?;
        }
        Some(sum)
    }

    /// A number that `e` is never above.
    pub(crate) fn high(&self, e: &Expr) -> Option<i64> {
        self.low(&Expr::from(0).sub(e)?)?.checked_neg()
    }

    /// The extent as a model writes it; `None` if it is too long or may be negative.
    pub(crate) fn dim(&self, e: &Expr) -> Option<Dim> {
        if let Some(n) = e.number() {
            return usize::try_from(n).ok().map(Dim::Fixed);
        }
        if let Some(s) = e.as_symbol() {
            return Some(Dim::Symbol(self.entries[s].name.clone()));
        }
        self.low(e).filter(|low| *low >= 0)?;
        let mut text = self.text(e);
        while self.names.contains(&text) {
            text = format!("({text})");
        }
        (text.len() <= MAX_NAME).then_some(Dim::Symbol(text))
    }

    fn text(&self, e: &Expr) -> String {
        if let Some(s) = e.as_symbol() {
            return self.entries[s].inner.clone();
        }
        let mut text = String::new();
        for (monomial, n) in e.terms() {
            if n < 0 {
                text.push('-');
            } else if !text.is_empty() {
                text.push('+');
            }
            let symbols = monomial.factors().iter().map(|&s| self.entries[s].inner.clone());
            let number = (n.unsigned_abs() != 1 || monomial.factors().is_empty()).then(|| n.unsigned_abs().to_string());
            text += &number.into_iter().chain(symbols).collect::<Vec<_>>().join("*");
        }
        if text.is_empty() { "0".to_owned() } else { text }
    }

    /// The text, in parentheses unless it is one symbol.
    fn factor(&self, e: &Expr) -> String {
        let text = self.text(e);
        if e.as_symbol().is_some() { text } else { format!("({text})") }
    }

    fn in_order(&self, a: &Expr, b: &Expr) -> [Expr; 2] {
        if self.text(a) <= self.text(b) { [a.clone(), b.clone()] } else { [b.clone(), a.clone()] }
    }

    fn bounded(&self, name: String) -> Option<String> {
        (name.len() <= MAX_NAME).then_some(name)
    }

    fn unused(&self, mut name: String) -> String {
        while self.names.contains(&name) {
            name.push('_');
        }
        name
    }

    fn intern(&mut self, meaning: Meaning, name: String, inner: String, low: i64, high: Option<i64>) -> Expr {
        if let Some(&symbol) = self.known.get(&meaning) {
            return Expr::symbol(symbol);
        }
        let symbol = self.entries.len();
        // A model may call one of its extents what a derived one would be called.
        let name = self.unused(name);
        self.names.insert(name.clone());
        self.known.insert(meaning.clone(), symbol);
        self.entries.push(Entry { name, inner, low, high, meaning });
        Expr::symbol(symbol)
    }
}

fn is_plain(name: &str) -> bool {
    let start = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    start && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(symbols: &Symbols, e: &Expr) -> String {
        symbols.dim(e).unwrap().to_string()
    }

    #[test]
    fn names_are_stable_and_say_what_is_meant() {
        let mut s = Symbols::new(1);
        let (h, text) = (s.declared("height"), s.declared("text_length"));
        let half = s.floor_div(&h.sub(&2.into()).unwrap(), 2).unwrap().add(&1.into()).unwrap();
        assert_eq!(named(&s, &half), "height//2");
        assert_eq!(named(&s, &half.mul(&2.into()).unwrap()), "2*(height//2)");
        let quarter = s.floor_div(&half, 2).unwrap();
        assert_eq!(quarter, s.floor_div(&h, 4).unwrap());
        let sum = text.add(&h.mul(&half).unwrap().mul(&14.into()).unwrap()).unwrap();
        assert_eq!(named(&s, &sum), "14*height*(height//2)+text_length");
        assert_eq!(named(&s, &text.sub(&1.into()).unwrap()), "text_length-1");
        assert_eq!(s.dim(&text.sub(&2.into()).unwrap()), None);
    }

    #[test]
    fn remainders_of_remainders_vanish() {
        let mut s = Symbols::new(1);
        let t = s.declared("t");
        let odd = s.modulo(&t, 2).unwrap();
        let doubled = t.mul(&2.into()).unwrap().sub(&odd).unwrap();
        assert_eq!(s.modulo(&doubled, 2).unwrap(), odd);
        assert_eq!(s.low(&doubled), Some(1));
        assert_eq!(s.low(&doubled.mul(&t).unwrap()), Some(1));
        assert_eq!(s.modulo(&6.into(), 4).unwrap().number(), Some(2));
        assert_eq!(s.floor_div(&odd, 2).unwrap().number(), Some(0));
        let half = s.floor_div(&t.add(&odd).unwrap(), 2).unwrap();
        assert_eq!((named(&s, &half), s.low(&half)), ("(t+1)//2".to_owned(), Some(1)));
    }

    #[test]
    fn larger_and_smaller_are_decided_where_bounds_allow() {
        let mut s = Symbols::new(1);
        let (a, b) = (s.declared("a"), s.declared("b"));
        assert_eq!(s.larger(&a, &0.into()), Some(a.clone()));
        assert_eq!(s.smaller(&a, &1.into()), Some(1.into()));
        let larger = s.larger(&b, &a).unwrap();
        assert_eq!(Some(larger.clone()), s.larger(&a, &b));
        assert_eq!(named(&s, &larger), "max(a,b)");
        assert_ne!(s.open(), s.open());
    }

    #[test]
    fn extents_of_the_model_never_share_a_name_with_derived_ones() {
        let mut s = Symbols::new(1);
        let taken: Vec<Expr> = ["a//2", "2*a", "unk__1", "höhe", "x y"].map(|n| s.declared(n)).to_vec();
        let a = s.declared("a");
        let others = [s.floor_div(&a, 2).unwrap(), a.mul(&2.into()).unwrap(), s.open()];
        let mut names: Vec<String> = taken.iter().chain(&others).map(|e| named(&s, e)).collect();
        assert_eq!(names[0..5], ["a//2", "2*a", "unk__1", "höhe", "x y"]);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 8);
        assert!(named(&s, &taken[3].add(&a).unwrap()).is_ascii());
        assert_eq!(named(&s, &taken[0].add(&1.into()).unwrap()), "{a//2}+1");
    }
}
