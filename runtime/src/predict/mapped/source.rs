//! How a map says where something comes from: a string is the name of an output, an object says more.

use std::fmt;
use std::marker::PhantomData;

use indexmap::IndexMap;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;

/// Where a matrix, or a number of a slot's update, comes from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FactorSource {
    pub(super) output: Option<String>,
    pub(super) graph: Option<String>,
    pub(super) tensor: Option<String>,
    pub(super) index: Option<usize>,
    #[serde(default)]
    pub(super) transposed: bool,
}

/// What a slot's update is multiplied by.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "FactorSource")]
pub(super) enum ScaleSource {
    Number(f64),
    At(FactorSource),
}

/// Where an input of a graph comes from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InputSource {
    output: Option<String>,
    graph: Option<String>,
    tensor: Option<String>,
    input: Option<String>,
    value: Option<Json>,
    per_slot: Option<String>,
    base: Option<BaseSource>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum BaseSource {
    Own(bool),
    Slot(String),
}

/// The one source that a map gives.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// An output, and the graph that has it where the map says so.
    Output(&'a str, Option<&'a str>),
    /// `FILE:KEY`.
    Tensor(&'a str),
    /// A tensor of the request.
    Input(&'a str),
    /// A literal.
    Value(&'a Json),
    /// A literal that each slot has of its own.
    PerSlot(&'a str),
    /// The base's weight of a slot; `None`: of the slot that the graph runs for.
    Base(Option<&'a str>),
}

impl FactorSource {
    /// The one source.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn origin(&self) -> Result<Origin<'_>, String> {
        let found = [output(&self.output, &self.graph), tensor(&self.tensor)];
        one(&["output", "tensor"], found, self.graph.as_ref())
    }
}

impl InputSource {
    /// The value of the slot that it is, if it is one.
    pub(super) fn per_slot(&self) -> Option<&str> {
        self.per_slot.as_deref()
    }

    /// The one source.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn origin(&self) -> Result<Origin<'_>, String> {
        let base = match &self.base {
            Some(BaseSource::Own(false)) => {
                return Err("`base` is false; expected true, or the name of a slot".to_owned());
            }
            Some(BaseSource::Own(true)) => Some(Origin::Base(None)),
            Some(BaseSource::Slot(slot)) => Some(Origin::Base(Some(slot))),
            None => None,
        };
        let found = [
            output(&self.output, &self.graph),
            tensor(&self.tensor),
            self.input.as_deref().map(Origin::Input),
            self.value.as_ref().map(Origin::Value),
            self.per_slot.as_deref().map(Origin::PerSlot),
            base,
        ];
        one(&["output", "tensor", "input", "value", "per_slot", "base"], found, self.graph.as_ref())
    }
}

fn output<'a>(name: &'a Option<String>, graph: &'a Option<String>) -> Option<Origin<'a>> {
    name.as_deref().map(|name| Origin::Output(name, graph.as_deref()))
}

fn tensor(name: &Option<String>) -> Option<Origin<'_>> {
    name.as_deref().map(Origin::Tensor)
}

/// The only one of the sources that there is.
fn one<'a, const N: usize>(
    keys: &[&str; N],
    found: [Option<Origin<'a>>; N],
    graph: Option<&String>,
) -> Result<Origin<'a>, String> {
    let keys_of = |wanted: &dyn Fn(usize) -> bool| {
        let named: Vec<String> = (0..N).filter(|&at| wanted(at)).map(|at| format!("`{}`", keys[at])).collect();
        named.join(", ")
    };
    let given: Vec<Origin<'a>> = found.iter().flatten().copied().collect();
    match given[..] {
        [output @ Origin::Output(..)] => Ok(output),
        [other] if graph.is_none() => Ok(other),
        [_] => Err("`graph` says whose output is meant, and there is no `output`; leave it out".to_owned()),
        [] => Err(format!("there is no source; expected one of {}", keys_of(&|_| true))),
        _ => Err(format!("two sources: {}; leave one of them out", keys_of(&|at| found[at].is_some()))),
    }
}

/// What a map may write shorter than as an object.
pub(super) trait Short: Sized {
    /// What may stand there, for messages.
    const EXPECTED: &'static str;
    /// What the name of an output means.
    fn of_output(name: String) -> Self;
    /// What a number means, if it may stand there.
    fn of_number(_: f64) -> Option<Self> {
        None
    }
}

impl Short for FactorSource {
    const EXPECTED: &'static str = "the name of an output, or an object";
    fn of_output(name: String) -> Self {
        Self { output: Some(name), ..Self::default() }
    }
}

impl Short for InputSource {
    const EXPECTED: &'static str = FactorSource::EXPECTED;
    fn of_output(name: String) -> Self {
        Self { output: Some(name), ..Self::default() }
    }
}

impl Short for ScaleSource {
    const EXPECTED: &'static str = "a number, the name of an output, or an object";
    fn of_output(name: String) -> Self {
        Self::At(FactorSource::of_output(name))
    }
    fn of_number(number: f64) -> Option<Self> {
        Some(Self::Number(number))
    }
}

impl From<FactorSource> for ScaleSource {
    fn from(source: FactorSource) -> Self {
        Self::At(source)
    }
}

/// A source as it is written: short, or as an object.
#[derive(Clone, Debug)]
pub(super) struct Written<T>(pub(super) T);

impl<'de, T: Short + Deserialize<'de>> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Either(PhantomData)).map(Self)
    }
}

struct Either<T>(PhantomData<T>);

impl<'de, T: Short + Deserialize<'de>> Visitor<'de> for Either<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
        Ok(T::of_output(name.to_owned()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        T::of_number(number).ok_or_else(|| E::invalid_type(Unexpected::Float(number), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_f64(number as f64)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_f64(number as f64)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// An object whose keys differ: JSON itself would take the last of two.
pub(super) fn distinct<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<IndexMap<String, T>, D::Error> {
    deserializer.deserialize_map(Distinct(PhantomData))
}

struct Distinct<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Distinct<T> {
    type Value = IndexMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = IndexMap::new();
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            if found.contains_key(&key) {
                return Err(A::Error::custom(format!("`{key}` comes twice")));
            }
            found.insert(key, value);
        }
        Ok(found)
    }
}
