//! Fields of a request: how they are read from JSON, checked, and described by a JSON schema.
//!
//! Fields are declared once, in [`request`](super), by the macro of this file. All else about them is made of that.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::error::RequestError;
use crate::media::video::Frames;
use crate::tensor::Tensor;
use ndarray::{Array5, ArrayD, Ix5};

/// A field of a request.
#[derive(Debug)]
pub struct Field {
    /// Its name in JSON and in [`Request`](super::Request).
    pub name: &'static str,
    /// What messages call it.
    pub title: &'static str,
    /// What it means.
    pub about: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What only some models have that it is about.
    pub needs: Needs,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Text without NUL.
    Text,
    /// A whole number from this one on.
    Integer(u64),
    /// A number between two, both of which will do.
    Number(f64, f64),
    /// A number above 0.
    Positive,
    /// Numbers by name.
    Numbers,
}

/// What a model must have for a field to mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// A scheduler with a shift.
    Shift,
    /// Two transformers.
    TwoTransformers,
    /// Training with noise on the image.
    NoisyImage,
    /// Control tokens.
    Controls,
}

/// A tensor or picture that stands beside the fields.
#[derive(Debug)]
pub struct Input {
    /// Its name.
    pub name: &'static str,
    /// What messages call it.
    pub title: &'static str,
    /// What it means, with its shape.
    pub about: &'static str,
    /// True for a picture, false for numbers.
    pub is_picture: bool,
}

/// What an input is given as.
#[derive(Clone, Debug)]
pub enum InputValue {
    /// Pictures.
    Frames(Frames),
    /// Numbers.
    Tensor(Tensor),
}

/// What an input of a request can be.
pub(super) trait InputType: Sized {
    const IS_PICTURE: bool;
    fn read(title: &str, value: InputValue) -> Result<Self, RequestError>;
}

/// Numbers in f32, finite.
fn floats(title: &str, value: InputValue, expected: &'static str) -> Result<ArrayD<f32>, RequestError> {
    let InputValue::Tensor(tensor) = value else { return Err(wrong_input(title, "a picture".to_owned(), expected)) };
    let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
    let array = tensor.into_f32().ok_or_else(|| wrong_input(title, found, expected))?;
    match array.iter().find(|number| !number.is_finite()) {
        None => Ok(array),
        Some(&number) => Err(RequestError::Infinite { title: title.to_owned(), number }),
    }
}

fn wrong_input(title: &str, found: String, expected: &'static str) -> RequestError {
    RequestError::Input { title: title.to_owned(), found, expected }
}

impl InputType for Option<Frames> {
    const IS_PICTURE: bool = true;

    fn read(title: &str, value: InputValue) -> Result<Self, RequestError> {
        match value {
            InputValue::Frames(frames) => Ok(Some(frames)),
            InputValue::Tensor(tensor) => {
                let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
                Err(wrong_input(title, found, "a picture"))
            }
        }
    }
}

impl InputType for Option<Array5<f32>> {
    const IS_PICTURE: bool = false;

    fn read(title: &str, value: InputValue) -> Result<Self, RequestError> {
        const EXPECTED: &str = "f32 with five axes";
        let array = floats(title, value, EXPECTED)?;
        let found = format!("f32 {:?}", array.shape());
        array.into_dimensionality::<Ix5>().map(Some).map_err(|_| wrong_input(title, found, EXPECTED))
    }
}

impl InputType for Option<ArrayD<f32>> {
    const IS_PICTURE: bool = false;

    fn read(title: &str, value: InputValue) -> Result<Self, RequestError> {
        floats(title, value, "f32 [1, tokens, width]").map(Some)
    }
}

/// What a field of a request can be.
pub(super) trait FieldType: Sized {
    /// The field from JSON; what was expected, if it is something else.
    fn read(value: Value) -> Result<Self, String>;

    /// Nothing was said.
    fn is_absent(&self) -> bool;

    /// The number, of a field that holds one.
    fn number(&self) -> Option<f64> {
        None
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}

impl FieldType for String {
    fn read(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) if text.contains('\0') => Err("text without NUL".to_owned()),
            Value::String(text) => Ok(text),
            _ => Err("text".to_owned()),
        }
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl FieldType for u64 {
    fn read(value: Value) -> Result<Self, String> {
        value.as_u64().ok_or_else(|| format!("a whole number, 0 to {}", Self::MAX))
    }

    fn is_absent(&self) -> bool {
        false
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*self)
    }
}

impl FieldType for usize {
    fn read(value: Value) -> Result<Self, String> {
        // More than any machine could make; it keeps sums of what follows from overflowing.
        const MOST: u64 = u32::MAX as u64;
        let number = value.as_u64().filter(|number| *number <= MOST).and_then(|number| Self::try_from(number).ok());
        number.ok_or_else(|| format!("a whole number, 0 to {MOST}"))
    }

    fn is_absent(&self) -> bool {
        false
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*self as u64)
    }
}

impl FieldType for f64 {
    fn read(value: Value) -> Result<Self, String> {
        value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| "a number".to_owned())
    }

    fn is_absent(&self) -> bool {
        false
    }

    fn number(&self) -> Option<f64> {
        Some(*self)
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(*self)
    }
}

impl FieldType for Vec<(String, f32)> {
    fn read(value: Value) -> Result<Self, String> {
        let expected = || "an object of finite numbers in f32, their names without NUL".to_owned();
        let Value::Object(entries) = value else { return Err(expected()) };
        let one = |(name, value): (String, Value)| {
            let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
            number.filter(|_| !name.contains('\0')).map(|number| (name, number)).ok_or_else(expected)
        };
        entries.into_iter().map(one).collect()
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        self.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

impl<T: FieldType> FieldType for Option<T> {
    fn read(value: Value) -> Result<Self, String> {
        if value.is_null() { Ok(None) } else { T::read(value).map(Some) }
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(T::number)
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Some(value) => value.write(serializer),
            None => serializer.serialize_none(),
        }
    }
}

impl Field {
    /// Reads a value of the field.
    pub(super) fn read<T: FieldType>(&self, value: Value) -> Result<T, RequestError> {
        let found = shown(&value);
        let wrong = |expected: String| RequestError::Field { field: self.name, found, expected };
        T::read(value).map_err(wrong)
    }

    /// Refuses a number that is out of range.
    pub(super) fn check(&self, value: &impl FieldType) -> Result<(), RequestError> {
        let Some(number) = value.number() else { return Ok(()) };
        let (good, expected) = match self.kind {
            Kind::Number(low, high) => ((low..=high).contains(&number), format!("{low} to {high}")),
            // Which shifts there are is the scheduler's to say.
            Kind::Positive if self.needs == Needs::Shift => return Ok(()),
            Kind::Positive => (number > 0.0 && number.is_finite(), "more than 0".to_owned()),
            _ => return Ok(()),
        };
        match good {
            true => Ok(()),
            false => Err(RequestError::part(self.title, number.to_string(), expected)),
        }
    }

    /// What a JSON schema says of it.
    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Text => json!({ "type": "string" }),
            Kind::Integer(least) => json!({ "type": "integer", "minimum": least }),
            Kind::Number(low, high) => json!({ "type": "number", "minimum": low, "maximum": high }),
            Kind::Positive => json!({ "type": "number", "exclusiveMinimum": 0 }),
            Kind::Numbers => json!({ "type": "object", "additionalProperties": { "type": "number" } }),
        };
        schema["description"] = self.about.trim().into();
        schema
    }
}

/// A value in a message: as JSON has it, but not all of a long one.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("…".chars()).collect() }
}

/// The JSON schema of a request of these fields, with these inputs beside it; `defaults` are by the names of fields.
pub(super) fn schema<'a>(
    fields: impl Iterator<Item = &'a Field>,
    inputs: impl Iterator<Item = &'a Input>,
    defaults: &Map<String, Value>,
) -> Value {
    let properties: Map<String, Value> = fields
        .map(|field| {
            let mut schema = field.schema();
            if let Some(default) = defaults.get(field.name) {
                schema["default"] = default.clone();
            }
            (field.name.to_owned(), schema)
        })
        .collect();
    let inputs: Map<String, Value> = inputs.map(|input| (input.name.to_owned(), input.about.trim().into())).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Request",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "inputs": inputs,
    })
}

/// Takes a value by its name.
type Take<'t> = dyn FnMut(&str, Value) -> Result<(), RequestError> + 't;

/// Reads a JSON object, name by name, until one is refused.
pub(super) fn read(text: &str, take: &mut Take<'_>) -> Result<(), RequestError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = read_from(&mut deserializer, take)?;
    deserializer.end()?;
    read
}

/// [`read`] from anywhere.
pub(super) fn read_from<'de, D: Deserializer<'de>>(
    deserializer: D,
    take: &mut Take<'_>,
) -> Result<Result<(), RequestError>, D::Error> {
    struct Names<'a, 't>(&'a mut Take<'t>);

    impl<'de> Visitor<'de> for Names<'_, '_> {
        type Value = Result<(), RequestError>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut seen, mut read) = (Vec::new(), Ok(()));
            while let Some(name) = map.next_key::<String>()? {
                if read.is_err() {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let Once(value) = map.next_value()?;
                read = match value {
                    _ if seen.contains(&name) => Err(RequestError::Twice { name: name.clone() }),
                    Err(inner) => Err(RequestError::Twice { name: format!("{name}.{inner}") }),
                    Ok(value) => (self.0)(&name, value),
                };
                seen.push(name);
            }
            Ok(read)
        }
    }

    deserializer.deserialize_map(Names(take))
}

/// A value, or the name that an object in it has twice.
struct Once(Result<Value, String>);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Once;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Once, E> {
                Ok(Once(Ok(value.into())))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Once, E> {
                Ok(Once(Ok(value.into())))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Once, E> {
                Ok(Once(Ok(value.into())))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Once, E> {
                Ok(Once(Ok(value.into())))
            }

            fn visit_str<E>(self, value: &str) -> Result<Once, E> {
                Ok(Once(Ok(value.into())))
            }

            fn visit_unit<E>(self) -> Result<Once, E> {
                Ok(Once(Ok(Value::Null)))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Once, A::Error> {
                // No field holds a list: it is refused whatever is in it.
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Once(Ok(Value::Array(Vec::new()))))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
                let (mut object, mut twice) = (Map::new(), None);
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if object.insert(name.clone(), value).is_some() {
                        twice = Some(name);
                    }
                }
                Ok(Once(twice.map_or(Ok(Value::Object(object)), Err)))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// Names in a message.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Declares a request: its fields, which JSON holds, and its inputs, which stand beside it.
macro_rules! request {
    (
        $(#[$about:meta])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                pub $field:ident: $ty:ty = ($title:literal, $kind:expr, $needs:ident),
            )*
        }
        beside {
            $(
                $(#[doc = $input_doc:literal])+
                pub $input:ident: $input_ty:ty = $input_title:literal,
            )*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[serde(
                    skip_serializing_if = "fields::FieldType::is_absent",
                    serialize_with = "fields::FieldType::write"
                )]
                pub $field: $ty,
            )*
            $(
                $(#[doc = $input_doc])+
                #[serde(skip)]
                pub $input: $input_ty,
            )*
        }

        impl $name {
            /// Its fields, in their order.
            pub const FIELDS: &[fields::Field] = &[$(fields::Field {
                name: stringify!($field),
                title: $title,
                about: concat!($($doc),+),
                kind: $kind,
                needs: fields::Needs::$needs,
            }),*];

            /// Tensors and pictures that stand beside them.
            pub const INPUTS: &[fields::Input] = &[$(fields::Input {
                name: stringify!($input),
                title: $input_title,
                about: concat!($($input_doc),+),
                is_picture: <$input_ty as fields::InputType>::IS_PICTURE,
            }),*];

            /// Sets a field from JSON; null stands for nothing.
            ///
            /// # Errors
            /// [`RequestError`], with the field, if there is no such field or it holds something else.
            pub fn set(&mut self, name: &str, value: serde_json::Value) -> Result<(), RequestError> {
                let mut fields = Self::FIELDS.iter();
                $(
                    let Some(field) = fields.next() else { return Ok(()) };
                    if name == field.name {
                        self.$field = field.read(value)?;
                        return Ok(());
                    }
                )*
                let expected = fields::listed(Self::FIELDS.iter().map(|field| field.name));
                Err(RequestError::UnknownField { name: name.to_owned(), expected })
            }

            /// Sets an input.
            ///
            /// # Errors
            /// [`RequestError`] if there is no such input or it is something else.
            pub fn set_input(&mut self, name: &str, value: fields::InputValue) -> Result<(), RequestError> {
                match name {
                    $(stringify!($input) => self.$input = fields::InputType::read($input_title, value)?,)*
                    _ => return Err(Self::unknown_input(name)),
                }
                Ok(())
            }

            /// What to say of a name that is no input's.
            pub fn unknown_input(name: &str) -> RequestError {
                let expected = fields::listed(Self::INPUTS.iter().map(|input| input.name));
                RequestError::UnknownInput { name: name.to_owned(), expected }
            }

            /// Refuses numbers that are out of range, and those for which `lacks` has a reason why this model has no such thing.
            pub(crate) fn check_fields(
                &self,
                lacks: impl Fn(fields::Needs, f64) -> Option<&'static str>,
            ) -> Result<(), RequestError> {
                use fields::FieldType;
                let mut fields = Self::FIELDS.iter();
                $(
                    let Some(field) = fields.next() else { return Ok(()) };
                    field.check(&self.$field)?;
                    if let Some((number, reason)) = self.$field.number().and_then(|n| Some((n, lacks(field.needs, n)?))) {
                        let expected = format!("none, because {reason}");
                        return Err(RequestError::part(field.title, number.to_string(), expected));
                    }
                )*
                Ok(())
            }

            /// The fields alone.
            pub(crate) fn without_inputs(&self) -> Self {
                Self { $($field: self.$field.clone(),)* ..Self::default() }
            }
        }
    };
}
pub(super) use request;
