//! Requests from JSON.

use super::fields::InputValue;
use super::*;
use crate::tensor::Tensor;

fn refused(text: &str) -> (String, String) {
    let error = Request::from_json(text).unwrap_err();
    (error.to_string(), error.field().unwrap_or_default().to_owned())
}

#[test]
fn json_of_a_request_is_read_as_it_is_written() {
    let request = Request {
        negative_prompt: Some("blurred".into()),
        width: Some(64),
        seed: Some(u64::MAX),
        guidance_scale: Some(-1.5),
        controls: vec![("zoom".into(), 0.5), ("pan".into(), -2.0)],
        ..Request::new("a \"paper\" boat")
    };
    let text = serde_json::to_string(&request).unwrap();
    assert_eq!(
        text,
        r#"{"prompt":"a \"paper\" boat","negative_prompt":"blurred","width":64,"guidance_scale":-1.5,"seed":18446744073709551615,"controls":{"zoom":0.5,"pan":-2.0}}"#
    );
    assert_eq!(Request::from_json(&text).unwrap(), request);
    assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
}

#[test]
fn json_with_null_says_nothing() {
    assert_eq!(Request::from_json(r#"{"width": null, "scheduler": null}"#).unwrap(), Request::default());
}

#[test]
fn json_that_is_no_request_is_refused_with_the_field() {
    for (text, message, field) in [
        (r#"{"num_frames": -1}"#, "`num_frames` is -1; expected a whole number, 0 to 4294967295", "num_frames"),
        (r#"{"num_frames": 9.0}"#, "`num_frames` is 9.0; expected a whole number", "num_frames"),
        (r#"{"num_frames": 4294967305}"#, "4294967305", "num_frames"),
        (r#"{"seed": 18446744073709551616}"#, "expected a whole number, 0 to 18446744073709551615", "seed"),
        (r#"{"guidance_scale": "6"}"#, "`guidance_scale` is \"6\"; expected a number", "guidance_scale"),
        (r#"{"fps": true}"#, "`fps` is true", "fps"),
        (r#"{"prompt": "a\u0000b"}"#, "text without NUL", "prompt"),
        (r#"{"prompt": 1}"#, "`prompt` is 1; expected text", "prompt"),
        (r#"{"controls": {"zoom": 1e39}}"#, "finite numbers in f32", "controls"),
        (r#"{"controls": {"zoom": 1, "zoom": 2}}"#, "`controls.zoom` is given twice", "controls.zoom"),
        (r#"{"controls": [1]}"#, "expected an object", "controls"),
        (r#"{"seed": 1, "seed": 1}"#, "`seed` is given twice", "seed"),
        (r#"{"image": "first.png"}"#, "there is no field `image`; expected prompt, negative_prompt, width", "image"),
        (r#"{"fps": NaN}"#, "no JSON object", ""),
        (r#"{"prompt": "\ud83d"}"#, "no JSON object", ""),
        (r#"{"fps": 1e999}"#, "no JSON object", ""),
        (r#"{"seed": 1} {}"#, "no JSON object", ""),
        ("[]", "expected an object", ""),
        ("", "no JSON object", ""),
    ] {
        let (found, about) = refused(text);
        assert!(found.contains(message) && about == field, "{text}: {found}: {about}");
    }
}

#[test]
fn first_refusal_of_several_is_said() {
    assert_eq!(refused(r#"{"fps": "a", "nonsense": 1}"#).1, "fps");
}

#[test]
fn input_of_another_kind_or_without_a_name_is_refused() {
    let mut request = Request::default();
    let zeros = |shape: &[usize]| InputValue::Tensor(Tensor::F32(ArrayD::zeros(shape)));
    request.set_input("initial_noise", zeros(&[1, 2, 3, 4, 5])).unwrap();
    assert_eq!(request.initial_noise.as_ref().map(|noise| noise.dim()), Some((1, 2, 3, 4, 5)));
    let nan = InputValue::Tensor(Tensor::F32(ArrayD::from_elem(vec![1, 2, 3], f32::NAN)));
    for (name, value, said) in [
        ("initial_noise", zeros(&[1, 2]), "the initial noise is f32 [1, 2]; expected f32 with five axes"),
        ("image", zeros(&[1]), "expected a picture"),
        ("prompt_embeds", nan, "the prompt_embeds holds NaN; expected finite numbers"),
        ("nonsense", zeros(&[1]), "there is no input `nonsense`; expected image, last_image"),
    ] {
        let error = request.set_input(name, value).unwrap_err();
        assert!(error.to_string().contains(said) && error.field() == Some(name), "{error}");
    }
}

#[test]
fn schema_has_all_fields_with_what_they_hold() {
    let schema = Request::schema();
    let fields = schema["properties"].as_object().unwrap();
    assert_eq!(fields.len(), Request::FIELDS.len());
    assert_eq!(fields["boundary_ratio"]["maximum"], 1.0);
    assert_eq!((&fields["seconds"]["exclusiveMinimum"], &fields["width"]["minimum"]), (&json!(0), &json!(1)));
    assert!(fields.values().all(|field| field["description"].as_str().is_some_and(|text| text.len() > 5)));
    assert_eq!(schema["additionalProperties"], false);
}
