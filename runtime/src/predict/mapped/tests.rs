use ndarray::{ArrayD, IxDyn, arr2};
use serde_json::{Value as Json, json};

use super::read::{FORMAT, MAX_FILE, VERSION};
use super::*;
use crate::engine::session::{Dim, Port, Session};
use crate::error::{Classified, ErrorClass};
use crate::events::Event;
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
    json!({ "format": FORMAT, "version": VERSION, "slots": slots })
}

fn slots() -> [Slot; 2] {
    [Slot { aliases: vec!["alias".into()], ..Slot::linear("a", 3, 2) }, Slot::linear("b", 3, 2)]
}

fn ports(tensors: &NamedTensors) -> Vec<Port> {
    let extents = |tensor: &Tensor| tensor.shape().iter().map(|&extent| Dim::Fixed(extent)).collect();
    let port =
        |(name, tensor): (&String, &Tensor)| Port { name: name.clone(), dtype: tensor.dtype(), shape: extents(tensor) };
    tensors.iter().map(port).collect()
}

/// A resolved map whose graphs, by their names, take and give tensors like these, and sessions that give just these.
fn resolve(
    map: &Json,
    graphs: Vec<(&str, NamedTensors, NamedTensors)>,
    slots: &[Slot],
) -> Result<(ResolvedMap, Chain), PredictorError> {
    let PredictorMap { graphs: of_map, slots: slots_of_map, strength } = parse(map)?;
    let links = of_map.into_iter().zip(&graphs).map(|(map, (name, inputs, outputs))| links::Link {
        name: (*name).to_owned(),
        engine: 0,
        graph: (*name).to_owned(),
        each_slot: map.each_slot,
        inputs: ports(inputs),
        outputs: ports(outputs),
        given: map.inputs,
    });
    let resolved = ResolvedMap::new(Path::new("map.json"), &slots_of_map, strength.cond, links.collect(), Some(slots))?;
    let session = |(_, _, outputs)| -> Box<dyn Session> { Box::new(Fixed(outputs)) };
    Ok((resolved, Chain::of(graphs.into_iter().map(session).collect())))
}

fn predict(slots_of_map: &Json, outputs: NamedTensors) -> Result<(Adapter, Vec<String>), PredictorError> {
    let (resolved, mut chain) =
        resolve(&map(slots_of_map), vec![("predictor", NamedTensors::new(), outputs)], &slots())?;
    let adapter = adapter(&resolved, &mut chain, &NamedTensors::new(), &mut ())?;
    Ok((adapter, resolved.unused()))
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
    let shapes: [(&[usize], &[usize], Json, Json); 5] = [
        (&[1, 2], &[3, 1], json!({}), json!({})),
        (&[1, 1, 2], &[1, 3, 1], json!({}), json!({})),
        (&[2, 1], &[1, 3], json!({ "transposed": true }), json!({ "transposed": true })),
        (&[4, 1, 2], &[2, 3, 1], json!({ "index": 0 }), json!({ "index": 0 })),
        (&[1, 4, 1, 2], &[1, 2, 1, 3], json!({ "index": 0 }), json!({ "index": 0, "transposed": true })),
    ];
    for (down, up, mut of_down, mut of_up) in shapes {
        of_down["output"] = "d".into();
        of_up["output"] = "u".into();
        let entry = json!({ "slot": "alias", "down": of_down, "up": of_up });
        let outputs = NamedTensors::from([("d".to_owned(), counting(down)), ("u".to_owned(), counting(up))]);
        let (adapter, unused) = predict(&json!([entry]), outputs).unwrap();
        let LowRank { down, up, alpha } = adapter.layers["a"].factors().unwrap();
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
    let entry = json!({ "slot": "b", "down": { "output": "stack", "index": 1 }, "up": "ups", "alpha": 0.5 });
    let (adapter, unused) = predict(&json!([entry]), outputs).unwrap();
    assert_eq!(adapter.layers["b"].to_low_rank().down, arr2(&[[5.0, 6.0], [7.0, 8.0]]));
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
    stacked["down"] = json!({ "output": "d", "index": 1 });
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
    for version in [0, 2, -1] {
        let found = with(&|map| map["version"] = version.into());
        assert!(found.contains(&format!("`version`: expected 1, found {version}; what was version 2 is")), "{found}");
    }
    assert!(with(&|map| map["more"] = 1.into()).contains("unknown field `more`"));
    assert!(with(&|map| map["slots"][0]["down_row"] = 1.into()).contains("unknown field `down_row`"));
    let down = |map: &mut Json| map["slots"][0]["down"] = json!({ "output": "d", "index": -1 });
    assert!(with(&down).contains("map.json: not a valid predictor map"));
}

#[test]
fn predictor_map_of_the_form_that_named_one_graph_is_refused_with_what_to_write() {
    let sound = map(&json!([{ "slot": "a", "down": "d", "up": "u" }]));
    for (place, key, now) in [
        ("", "graph", r#""graphs": [{ "graph": "NAME" }]"#),
        ("/slots/0", "down_index", r#""down": { "output": "NAME", "index": N }"#),
        ("/slots/0", "up_index", r#""up": { "output": "NAME", "index": N }"#),
        ("/slots/0", "down_transposed", r#""down": { "output": "NAME", "transposed": true }"#),
        ("/slots/0", "up_transposed", r#""up": { "output": "NAME", "transposed": true }"#),
    ] {
        let mut map = sound.clone();
        map.pointer_mut(place).unwrap()[key] = "x".into();
        let found = parse(&map).unwrap_err().to_string();
        assert!(
            found.contains(&format!("unknown field `{key}`")) && found.ends_with(&format!("; write {now}")),
            "{found}"
        );
    }
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

/// Stops once so many events have come.
struct StopAfter(usize);

impl Observer for StopAfter {
    fn event(&mut self, _: &Event) {
        self.0 = self.0.saturating_sub(1);
    }
    fn cancelled(&self) -> bool {
        self.0 == 0
    }
}

fn chain_map(graphs: &Json, slots: &Json) -> Json {
    json!({ "format": FORMAT, "version": VERSION, "graphs": graphs, "slots": slots })
}

#[test]
fn graphs_that_run_for_each_slot_say_how_far_they_are_and_stop_between_slots() {
    let graphs = || vec![("each", NamedTensors::from([("x".to_owned(), counting(&[1]))]), two())];
    let slot = |name: &str| json!({ "slot": name, "down": "d", "up": "u", "values": { "x": 1 } });
    let map = chain_map(
        &json!([{ "each_slot": true, "inputs": { "x": { "per_slot": "x" } } }]),
        &json!([slot("a"), slot("b")]),
    );
    let run = |observer: &mut dyn Observer| {
        let (resolved, mut chain) = resolve(&map, graphs(), &slots()).unwrap();
        adapter(&resolved, &mut chain, &NamedTensors::new(), observer)
    };
    // A start, two steps, an end.
    let mut all = StopAfter(5);
    assert_eq!(run(&mut all).unwrap().layers.len(), 2);
    assert_eq!(all.0, 1);
    for events in [1, 2] {
        let error = run(&mut StopAfter(events)).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Cancelled, "{error}");
    }
}

#[test]
fn middle_factor_that_is_not_square_keeps_the_scale_of_alpha_over_k() {
    for (slot_in, slot_out) in [(3, 2), (2, 3)] {
        let [down, mid, up] = [counting(&[1, slot_in]), counting(&[2, 1]), counting(&[slot_out, 2])];
        let outputs = [("d", &down), ("m", &mid), ("u", &up)].map(|(name, tensor)| (name.to_owned(), tensor.clone()));
        let entry = json!({ "slot": "a", "down": "d", "mid": "m", "up": "u", "alpha": 3.0 });
        let map = chain_map(&json!([{}]), &json!([entry]));
        let slots = [Slot::linear("a", slot_out, slot_in)];
        let graph = ("predictor", NamedTensors::new(), outputs.into());
        let (resolved, mut chain) = resolve(&map, vec![graph], &slots).unwrap();
        let adapter = adapter(&resolved, &mut chain, &NamedTensors::new(), &mut ()).unwrap();
        let layer = &adapter.layers["a"];
        let floats = |tensor: &Tensor| tensor.to_f32().unwrap().into_dimensionality::<ndarray::Ix2>().unwrap();
        let expected = floats(&up).dot(&floats(&mid)).dot(&floats(&down)) * (3.0 / 2.0);
        assert_eq!(layer.delta(), expected);
        assert_eq!(layer.rank(), if slot_out < slot_in { 1 } else { 2 });
    }
}

#[test]
fn what_no_graph_could_take_is_refused_before_anything_runs() {
    let sources = [
        (json!({ "base": false }), "`base` is false"),
        (json!({ "base": true, "graph": "each" }), "`graph` says whose output is meant"),
        (json!(3), "invalid type"),
        (json!({ "constant": 3 }), "unknown field `constant`"),
        (json!({ "value": null }), "there is no source"),
    ];
    let entry = json!({ "slot": "a", "down": "d", "up": "u" });
    for (source, expected) in sources {
        let map = chain_map(&json!([{ "each_slot": true, "inputs": { "x": source } }]), &json!([entry]));
        let graph = ("each", NamedTensors::from([("x".to_owned(), counting(&[1]))]), two());
        let error = resolve(&map, vec![graph], &slots()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let many: Vec<Json> = (0..65).map(|n| json!({ "name": n.to_string() })).collect();
    let error = parse(&chain_map(&json!(many), &json!([entry]))).unwrap_err().to_string();
    assert!(error.contains("expected 1 to 64 graphs, found 65"), "{error}");
}
