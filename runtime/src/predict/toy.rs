//! A kind of predictor for tests: it reads a prompt, named tensors and the base's pristine weights, and runs no network. What
//! a new kind needs is this file, and a line in the registry.

use indexmap::IndexMap;
use ndarray::{Array2, Axis, Ix2};

use super::error::PredictorError;
use super::inputs::{Input, Inputs};
use super::key::{Key, KeyParts};
use super::kind::{Entry, Predicted, Predictor};
use crate::components::HYPERNETWORK;
use crate::engine::manifest::{Slot, slots_by_name};
use crate::error::Error;
use crate::lora::adapter::{Adapter, LowRank};
use crate::tensor::Tensor;

pub(super) const ENTRY: Entry = Entry {
    kind: "toy",
    reads: &[Input::Prompt, Input::Tensors],
    open: |engine, _| {
        let slot = engine.manifest().attributes["slot"].as_str().unwrap_or_default().to_owned();
        Ok(Box::new(Toy { slot }))
    },
};

/// For one slot: `down` is the mean of the slot's rows, `up` the tensor `style` `[out, 1]` times the prompt's length.
struct Toy {
    slot: String,
}

impl Predictor for Toy {
    fn kind(&self) -> &'static str {
        ENTRY.kind
    }

    fn reads(&self) -> &'static [Input] {
        ENTRY.reads
    }

    fn check_backbone(&self, slots: &[Slot]) -> Result<(), Error> {
        let (slot, expected) = (self.slot.clone(), "a slot".to_owned());
        let found = slots_by_name(slots).contains_key(&self.slot[..]);
        let lacks = PredictorError::Backbone { slot, expected, found: "none".to_owned() };
        if found { Ok(()) } else { Err(lacks.into()) }
    }

    fn key(&self, inputs: &mut Inputs<'_>) -> Result<Key, Error> {
        let mut parts = KeyParts::new("toy 1");
        parts.add(inputs.prompt()?);
        for (name, tensor) in inputs.tensors()? {
            parts.add(name);
            parts.add_elements(tensor);
        }
        let (own, base) = (inputs.engine(HYPERNETWORK)?, inputs.base()?);
        parts.add_engines(&[&own, &base], inputs.options());
        Ok(parts.key())
    }

    fn predict(&mut self, inputs: &mut Inputs<'_>) -> Result<Predicted, Error> {
        let (prompt, base) = (inputs.prompt()?, inputs.base()?);
        let misfit = |what: &str| PredictorError::Shape {
            what: what.to_owned(),
            expected: "a matrix of floats".to_owned(),
            found: "something else".to_owned(),
        };
        let matrix = |tensor: Option<Tensor>, what: &str| -> Result<Array2<f32>, PredictorError> {
            let values = tensor.and_then(Tensor::into_f32).and_then(|a| a.into_dimensionality::<Ix2>().ok());
            values.ok_or_else(|| misfit(what))
        };
        let weight = matrix(base.weight(&format!("{}.weight", self.slot))?.to_tensor(), "weight")?;
        let up = matrix(inputs.tensors()?.get("style").cloned(), "style")? * prompt.len() as f32;
        let down = weight.mean_axis(Axis(0)).ok_or_else(|| misfit("weight"))?.insert_axis(Axis(0));
        let layers = IndexMap::from([(self.slot.clone(), LowRank { down, up, alpha: 1.0 }.into())]);
        Ok(Predicted { adapter: Adapter { name: "predicted".to_owned(), layers }, tokens: None })
    }
}

mod tests {
    use std::path::Path;

    use ndarray::{ArrayD, IxDyn};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::components::TRANSFORMER;
    use crate::error::ErrorClass;
    use crate::generator::{Generator, Options, PredictOptions, PredictionCacheOptions};
    use crate::lora::adapter::AdapterFormat;
    use crate::media::clip::Clip;
    use crate::options::OpenOptions;
    use crate::predict::{Prediction, Source};
    use crate::tensor::{Dtype, NamedTensors};
    use crate::testing::engines;

    /// An engine without graphs.
    fn write_engine(path: &Path, tensors: &NamedTensors, slots: Vec<Slot>, (component, attributes): (&str, Value)) {
        let manifest = engines::manifest(tensors, Dtype::F32, vec![], slots);
        let manifest = crate::engine::manifest::Manifest { component: component.into(), attributes, ..manifest };
        engines::write(path, tensors, &manifest);
    }

    /// An engine directory of a transformer with one slot `a`, `[2, 3]`, and of a predictor with these attributes.
    fn directory(attributes: Value) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let weight = ArrayD::from_shape_vec(IxDyn(&[2, 3]), vec![1.0, 2.0, 3.0, 5.0, 6.0, 7.0]).unwrap();
        let weights = NamedTensors::from([("a.weight".to_owned(), Tensor::F32(weight))]);
        let path = |name: &str| folder.path().join(name);
        write_engine(&path("t.engine"), &weights, vec![Slot::linear("a", 2, 3)], (TRANSFORMER, Value::Null));
        write_engine(&path("h.engine"), &NamedTensors::new(), vec![], (HYPERNETWORK, attributes));
        let pipeline = json!({ "format": "v2l-pipeline", "version": 1, "components": {
            "transformer": { "engine": "t.engine" }, "hypernetwork": { "engine": "h.engine" },
        }});
        std::fs::write(path("pipeline.json"), pipeline.to_string()).unwrap();
        folder
    }

    fn style() -> NamedTensors {
        let style = ArrayD::from_shape_vec(IxDyn(&[2, 1]), vec![0.5, -1.0]).unwrap();
        NamedTensors::from([("style".to_owned(), Tensor::F32(style))])
    }

    fn source(tensors: &NamedTensors) -> Source<'_> {
        Source { prompt: Some("fire"), tensors: Some(tensors), ..Source::default() }
    }

    fn predict(generator: &mut Generator, source: &Source<'_>) -> Result<Prediction, Error> {
        generator.predict_from(source, &PredictOptions::default(), &mut ())
    }

    #[test]
    fn predictor_of_a_new_kind_reads_prompt_tensors_and_pristine_weights_through_the_facade() {
        let folder = directory(json!({ "kind": "toy", "slot": "a" }));
        let mut generator = Generator::without_text(folder.path(), &Options::default()).unwrap();
        let tensors = style();
        let prediction = predict(&mut generator, &source(&tensors)).unwrap();
        let layer = prediction.adapter.layers["a"].to_low_rank();
        assert_eq!(layer.down, ndarray::arr2(&[[3.0, 4.0, 5.0]]));
        assert_eq!(layer.up, ndarray::arr2(&[[2.0], [-4.0]]));
        assert!(prediction.tokens.is_none() && prediction.cached.is_none());
        let path = folder.path().join("light.safetensors");
        let error = prediction.save(&path, AdapterFormat::Light).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Usage);
        assert!(error.to_string().contains("kind `toy`") && !path.exists(), "{error}");
        prediction.save(folder.path().join("kohya.safetensors"), AdapterFormat::Kohya).unwrap();
    }

    #[test]
    fn predictor_of_a_new_kind_is_kept_by_the_prediction_cache() {
        let folder = directory(json!({ "kind": "toy", "slot": "a" }));
        let cache = PredictionCacheOptions { folder: folder.path().join("cache"), bytes: 1 << 20 };
        let options = Options { prediction_cache: Some(cache), ..Options::default() };
        let mut generator = Generator::without_text(folder.path(), &options).unwrap();
        let tensors = style();
        let first = predict(&mut generator, &source(&tensors)).unwrap();
        let second = predict(&mut generator, &source(&tensors)).unwrap();
        assert_eq!((first.cached, second.cached), (Some(false), Some(true)));
        assert_eq!(first.adapter, second.adapter);
        let other = predict(&mut generator, &Source { prompt: Some("rain"), ..source(&tensors) }).unwrap();
        assert_eq!(other.cached, Some(false));
    }

    #[test]
    fn predictor_is_refused_what_it_does_not_read_and_what_it_lacks() {
        let folder = directory(json!({ "kind": "toy", "slot": "a" }));
        let mut generator = Generator::without_text(folder.path(), &Options::default()).unwrap();
        let (tensors, clip) = (style(), Clip::Pixels(ndarray::Array5::zeros([1, 3, 1, 2, 2])));
        let engine = generator.directory().engine(HYPERNETWORK).unwrap();
        assert_eq!(serde_json::to_value(super::super::reads(&engine)).unwrap(), json!(["prompt", "tensors"]));
        let mut refused = |source: &Source<'_>| {
            let error = predict(&mut generator, source).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Usage, "{error}");
            error.to_string()
        };
        let unread = refused(&Source { reference: Some(&clip), ..source(&tensors) });
        assert!(unread.contains("`toy` reads a prompt and named tensors, and was given a reference"), "{unread}");
        let lacks = refused(&Source { prompt: None, ..source(&tensors) });
        assert!(lacks.contains("needs a prompt"), "{lacks}");
    }

    #[test]
    fn directory_whose_predictor_is_of_no_known_kind_or_for_another_model_is_refused() {
        let error = |attributes: Value| {
            let folder = directory(attributes);
            let mut generator = Generator::without_text(folder.path(), &Options::default()).unwrap();
            let error = generator.open_predictor().unwrap_err();
            (error.class(), error.to_string())
        };
        let (class, message) = error(json!({ "kind": "prompt3effect" }));
        assert_eq!(class, ErrorClass::Unsupported);
        assert!(message.contains("h.engine") && message.contains("\"prompt3effect\""), "{message}");
        assert!(message.contains("video2lora, prompt2effect, lofa, toy"), "{message}");
        let (class, message) = error(Value::Null);
        assert_eq!(class, ErrorClass::BadModel);
        assert!(message.contains("no `kind`"), "{message}");
        let (class, message) = error(json!({ "kind": "toy", "slot": "b" }));
        assert_eq!(class, ErrorClass::BadAdapter);
        assert!(message.contains("slot `b`"), "{message}");
    }

    #[test]
    fn predictor_without_a_directory_is_told_so() {
        let (tensors, options) = (style(), OpenOptions::default());
        let mut observer = ();
        let mut inputs = Inputs::new(source(&tensors), &options, None, &mut observer);
        let error = Toy { slot: "a".to_owned() }.predict(&mut inputs).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(PredictorError::NoDirectory)), "{error}");
    }
}
