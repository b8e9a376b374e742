use ndarray::{ArrayD, IxDyn, arr2};
use serde_json::{Value as Json, json};

use super::read::{FORMAT, MAX_FILE};
use super::*;
use crate::engine::session::{Dim, Port};
use crate::lora::adapter::LowRank;
use crate::predict::video2lora::tests::Fixed;

/// The numbers 1, 2, ….
fn counting(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::F32(ArrayD::from_shape_vec(IxDyn(shape), (1..=count).map(|n| n as f32).collect()).unwrap())
}

fn parse(map: &Json) -> Result<PredictorMap, PredictorError> {
    PredictorMap::parse(Path::new("map.json"), map.to_string().as_bytes())
}

fn map(slots: &Json) -> Json {
    json!({ "format": FORMAT, "version": 1, "slots": slots })
}

fn slots() -> [Slot; 2] {
    [Slot { aliases: vec!["alias".into()], ..Slot::linear("a", 3, 2) }, Slot::linear("b", 3, 2)]
}

fn predict(slots_of_map: &Json, outputs: NamedTensors) -> Result<(Adapter, Vec<String>), PredictorError> {
    let PredictorMap { version, slots: of_map, strength, .. } = parse(&map(slots_of_map))?;
    let port = |(name, tensor): (&String, &Tensor)| Port {
        name: name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.shape().iter().map(|&extent| Dim::Fixed(extent)).collect(),
    };
    let stage = stages::Stage {
        name: "predictor".to_owned(),
        engine: 0,
        graph: "predictor".to_owned(),
        each_slot: false,
        inputs: Vec::new(),
        outputs: outputs.iter().map(port).collect(),
        given: IndexMap::new(),
    };
    let plan = Plan::new(Path::new("map.json"), version, &of_map, strength, vec![stage], Some(&slots()))?;
    let mut chain = Chain::of(vec![Box::new(Fixed(outputs))]);
    let adapter = adapter(&plan, &mut chain, &NamedTensors::new(), &mut ())?;
    Ok((adapter, plan.unused()))
}

fn message(slots_of_map: &Json, outputs: NamedTensors) -> String {
    predict(slots_of_map, outputs).unwrap_err().to_string()
}

fn two() -> NamedTensors {
    [("d", [1, 2]), ("u", [3, 1])].map(|(name, shape)| (name.to_owned(), counting(&shape))).into()
}

#[test]
fn mapped_predictor_finds_factors_upright_transposed_batched_and_stacked() {
    let expected = (arr2(&[[1.0, 2.0]]), arr2(&[[1.0], [2.0], [3.0]]));
    let shapes: [(&[usize], &[usize], Json); 5] = [
        (&[1, 2], &[3, 1], json!({})),
        (&[1, 1, 2], &[1, 3, 1], json!({})),
        (&[2, 1], &[1, 3], json!({ "down_transposed": true, "up_transposed": true })),
        (&[4, 1, 2], &[2, 3, 1], json!({ "down_index": 0, "up_index": 0 })),
        (&[1, 4, 1, 2], &[1, 2, 1, 3], json!({ "down_index": 0, "up_index": 0, "up_transposed": true })),
    ];
    for (down, up, more) in shapes {
        let mut entry = json!({ "slot": "alias", "down": "d", "up": "u" });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let outputs = NamedTensors::from([("d".to_owned(), counting(down)), ("u".to_owned(), counting(up))]);
        let (adapter, unused) = predict(&json!([entry]), outputs).unwrap();
        let LowRank { down, up, alpha } = &adapter.layers["a"];
        assert_eq!((down, up, *alpha), (&expected.0, &expected.1, 1.0), "{entry}");
        assert!(unused.is_empty());
    }
}

#[test]
fn mapped_predictor_takes_the_row_and_alpha_that_the_map_names_and_lists_the_rest() {
    let mut outputs = two();
    outputs.insert("stack".to_owned(), counting(&[2, 2, 2]));
    outputs.insert("ups".to_owned(), counting(&[3, 2]));
    outputs.insert("steps".to_owned(), Tensor::I64(ArrayD::zeros(IxDyn(&[1]))));
    let entry = json!({ "slot": "b", "down": "stack", "down_index": 1, "up": "ups", "alpha": 0.5 });
    let (adapter, unused) = predict(&json!([entry]), outputs).unwrap();
    assert_eq!(adapter.layers["b"].down, arr2(&[[5.0, 6.0], [7.0, 8.0]]));
    assert_eq!(adapter.layers["b"].scale(), 0.25);
    assert_eq!(unused, ["d", "u", "steps"]);
}

#[test]
fn mapped_predictor_names_what_does_not_fit() {
    let entry = |slot: &str, down: &str, up: &str| json!({ "slot": slot, "down": down, "up": up });
    let has = |found: String, parts: &[&str]| {
        assert!(parts.iter().all(|part| found.contains(part)), "{found}");
    };
    has(message(&json!([entry("c", "d", "u")]), two()), &["map.json", "no slot `c`"]);
    has(message(&json!([entry("a", "x", "u")]), two()), &["slot `a`", "no output `x`", "it has: d, u"]);
    has(message(&json!([entry("a", "d", "u"), entry("alias", "d", "u")]), two()), &["slot `a` comes twice"]);
    has(message(&json!([]), two()), &["`slots` is empty"]);
    has(
        message(&json!([entry("a", "u", "d")]), two()),
        &["slot `a`", "expected down [rank, 2] and up [3, rank]", "found down [3, 1] and up [1, 2]"],
    );
    let mut stacked = entry("a", "d", "u");
    stacked["down_index"] = 1.into();
    has(message(&json!([stacked]), two()), &["output `d`", "expected more than 1 matrices", "found [1, 2]"]);
    let mut alpha = entry("a", "d", "u");
    alpha["alpha"] = json!(1e300);
    assert!(predict(&json!([alpha]), two()).is_err());
    let mut integers = two();
    integers.insert("d".to_owned(), Tensor::I64(ArrayD::zeros(IxDyn(&[1, 2]))));
    has(message(&json!([entry("a", "d", "u")]), integers), &["output `d`", "floating-point", "found i64"]);
    let mut undefined = two();
    undefined.insert("u".to_owned(), Tensor::F32(ArrayD::from_elem(IxDyn(&[3, 1]), f32::NAN)));
    has(message(&json!([entry("a", "d", "u")]), undefined), &["output `u`, slot `a`, holds NaN or infinity"]);
}

#[test]
fn predictor_map_refuses_other_files_versions_and_unknown_keys() {
    let sound = map(&json!([{ "slot": "a", "down": "d", "up": "u" }]));
    assert!(parse(&sound).is_ok());
    let with = |change: &dyn Fn(&mut Json)| {
        let mut map = sound.clone();
        change(&mut map);
        parse(&map).unwrap_err().to_string()
    };
    assert!(with(&|map| map["format"] = "v2l-pipeline".into()).contains("expected \"v2l-predictor-map\""));
    assert!(with(&|map| map["version"] = 3.into()).contains("`version`: expected 1 or 2, found 3"));
    assert!(with(&|map| map["more"] = 1.into()).contains("unknown field `more`"));
    assert!(with(&|map| map["slots"][0]["down_row"] = 1.into()).contains("unknown field `down_row`"));
    assert!(with(&|map| map["slots"][0]["down_index"] = (-1).into()).contains("map.json: no sound predictor map"));
}

#[test]
fn predictor_map_is_read_up_to_its_largest_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("map.json");
    assert!(matches!(PredictorMap::read(&path), Err(PredictorError::MapFile { .. })));
    std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
    let error = PredictorMap::read(&path).unwrap_err().to_string();
    assert!(error.contains("expected a predictor map of at most 16777216 bytes"), "{error}");
}
