//! The files that the tensors of a model name.

use crate::fields::{Malformed, fields};

/// True for a part of a path by which ONNX Runtime or OpenVINO take a tensor for an address in the process's own memory, as in
/// `*/_ORT_MEM_ADDR_/*` and `*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*`.
pub fn is_address(part: &str) -> bool {
    part.starts_with("_ORT_") && part.ends_with("MEM_ADDR_")
}

/// How deep messages may lie in each other, as other parsers have it.
const DEEPEST: usize = 100;

/// Where messages lie in messages, and what they are (onnx.proto3).
const INSIDE: &[(Message, u64, Message)] = {
    use Message::*;
    &[
        (Model, 7, Graph),
        (Model, 20, Training),
        (Model, 25, Function),
        (Training, 1, Graph),
        (Training, 2, Graph),
        (Function, 7, Node),
        (Function, 11, Attribute),
        (Graph, 1, Node),
        (Graph, 5, Tensor),
        (Graph, 15, Sparse),
        (Node, 5, Attribute),
        (Attribute, 5, Tensor),
        (Attribute, 6, Graph),
        (Attribute, 10, Tensor),
        (Attribute, 11, Graph),
        (Attribute, 22, Sparse),
        (Attribute, 23, Sparse),
        (Sparse, 1, Tensor),
        (Sparse, 2, Tensor),
    ]
};

/// Field numbers of `TensorProto` and of the entries of its external data.
mod field {
    pub(super) const NAME: u64 = 8;
    pub(super) const EXTERNAL_DATA: u64 = 13;
    pub(super) const DATA_LOCATION: u64 = 14;
    pub(super) const KEY: u64 = 1;
    pub(super) const VALUE: u64 = 2;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
}

/// A tensor whose data lie outside the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The tensor's name; that of an attribute may be empty.
    pub tensor: String,
    /// Every place that it names; none if it names none.
    pub locations: Vec<String>,
}

/// Every tensor of an ONNX model whose data lie, or may be taken to lie, outside of it: initializers and attributes, of the graph, of the graphs in
/// it, and of functions. What another parser might read differently counts.
///
/// # Errors
/// [`Malformed`] if the bytes are no protobuf message, or graphs lie deeper in each other than any real model's.
pub fn external_data(model: &[u8]) -> Result<Vec<External>, Malformed> {
    let mut found = Vec::new();
    walk(Message::Model, model, 0, &mut found)?;
    Ok(found)
}

fn walk(kind: Message, message: &[u8], depth: usize, found: &mut Vec<External>) -> Result<(), Malformed> {
    if kind == Message::Tensor {
        found.extend(external(message)?);
        return Ok(());
    }
    if depth > DEEPEST {
        return Err(Malformed);
    }
    for field in fields(message) {
        let field = field?;
        let inside = INSIDE.iter().filter(|(outer, ..)| *outer == kind);
        for (_, number, inner) in inside {
            if let Some(payload) = field.of(*number, message) {
                walk(*inner, payload, depth + 1, found)?;
            }
        }
    }
    Ok(())
}

fn external(tensor: &[u8]) -> Result<Option<External>, Malformed> {
    let (mut name, mut locations, mut outside) = (String::new(), Vec::new(), false);
    for field in fields(tensor) {
        let field = field?;
        if let Some(bytes) = field.of(field::NAME, tensor) {
            name = text(bytes);
        }
        if let Some(entry) = field.of(field::EXTERNAL_DATA, tensor) {
            outside = true;
            location(entry, &mut locations)?;
        }
        // Others cut the number to 32 bits.
        outside |= field.number == field::DATA_LOCATION && field.wire == 0 && field.value as u32 != 0;
    }
    Ok(outside.then_some(External { tensor: name, locations }))
}

/// Adds what an entry of a tensor's external data says of its location. Of several keys and values others take the last; here all count.
fn location(entry: &[u8], locations: &mut Vec<String>) -> Result<(), Malformed> {
    let (mut is_location, mut values) = (false, Vec::new());
    for field in fields(entry) {
        let field = field?;
        is_location |= field.of(field::KEY, entry) == Some(b"location");
        values.extend(field.of(field::VALUE, entry).map(text));
    }
    if is_location {
        locations.append(&mut values);
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with a length below 128.
    fn part(number: u8, payload: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(payload.len()).unwrap()], payload].concat()
    }

    /// As [`part`], for fields from 16 on.
    fn far(number: u8, payload: &[u8]) -> Vec<u8> {
        [&[(number << 3 | 2) | 0x80, number >> 4, u8::try_from(payload.len()).unwrap()], payload].concat()
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        part(13, &[part(1, key.as_bytes()), part(2, value.as_bytes())].concat())
    }

    fn tensor(location: &str) -> Vec<u8> {
        [part(8, b"w"), entry("location", location), entry("offset", "64"), vec![14 << 3, 1]].concat()
    }

    fn expected(location: &str) -> Vec<External> {
        vec![External { tensor: "w".into(), locations: vec![location.into()] }]
    }

    #[test]
    fn external_data_finds_a_tensor_wherever_a_model_may_hold_one() {
        let tensor = tensor("x");
        let in_attribute = |attribute: Vec<u8>| part(7, &part(1, &part(5, &attribute)));
        let places = [
            part(7, &part(5, &tensor)),
            part(7, &part(15, &part(1, &tensor))),
            part(7, &part(15, &part(2, &tensor))),
            in_attribute(part(5, &tensor)),
            in_attribute(part(10, &tensor)),
            in_attribute(part(6, &part(5, &tensor))),
            in_attribute(part(11, &part(5, &tensor))),
            in_attribute(far(22, &part(1, &tensor))),
            in_attribute(far(23, &part(2, &tensor))),
            far(20, &part(1, &part(5, &tensor))),
            far(20, &part(2, &part(5, &tensor))),
            far(25, &part(7, &part(5, &part(5, &tensor)))),
            far(25, &part(11, &part(5, &tensor))),
        ];
        for (index, model) in places.iter().enumerate() {
            assert_eq!(external_data(model).unwrap(), expected("x"), "place {index}");
        }
    }

    #[test]
    fn external_data_counts_what_parsers_may_read_differently() {
        let model = |tensor: &[u8]| external_data(&part(7, &part(5, tensor))).unwrap();
        // Only one of the two fields.
        assert_eq!(model(&[part(8, b"w"), entry("location", "x")].concat()), expected("x"));
        assert_eq!(model(&[part(8, b"w"), vec![14 << 3, 1]].concat())[0].locations, [""; 0]);
        // The number 1 with bits above the 32nd.
        assert_eq!(model(&[14 << 3, 0x81, 0x80, 0x80, 0x80, 0x10]).len(), 1);
        // The value before the key; two values; two keys.
        let both = part(13, &[part(2, b"a"), part(1, b"location"), part(2, b"b")].concat());
        assert_eq!(model(&both)[0].locations, ["a", "b"]);
        let keys = part(13, &[part(1, b"offset"), part(1, b"location"), part(2, b"a")].concat());
        assert_eq!(model(&keys)[0].locations, ["a"]);
        // Two graphs, which others merge.
        let twice = [part(7, b""), part(7, &part(5, &tensor("x")))].concat();
        assert_eq!(external_data(&twice).unwrap(), expected("x"));
    }

    #[test]
    fn external_data_of_a_model_that_holds_its_own_are_none() {
        let own = [part(8, b"w"), part(9, b"1234"), vec![14 << 3, 0]].concat();
        assert_eq!(external_data(&part(7, &part(5, &own))), Ok(vec![]));
        assert_eq!(external_data(b""), Ok(vec![]));
    }

    #[test]
    fn external_data_of_damaged_bytes_are_an_error_and_of_nested_graphs_no_overflow() {
        let model = part(7, &part(5, &tensor("x")));
        for length in 1..model.len() {
            assert_eq!(external_data(&model[..length]), Err(Malformed), "{length}");
        }
        let mut nested = Vec::new();
        for _ in 0..10_000 {
            let mut outer = Vec::new();
            for number in [6_u8, 5, 1] {
                let mut length = nested.len();
                outer = vec![number << 3 | 2];
                while length >= 0x80 {
                    outer.push(length as u8 | 0x80);
                    length >>= 7;
                }
                outer.push(length as u8);
                outer.append(&mut nested);
                nested = std::mem::take(&mut outer);
            }
            drop(outer);
        }
        let mut length = nested.len();
        let mut model = vec![7 << 3 | 2];
        while length >= 0x80 {
            model.push(length as u8 | 0x80);
            length >>= 7;
        }
        model.push(length as u8);
        model.extend(nested);
        assert_eq!(external_data(&model), Err(Malformed));
    }
}
