use ndarray::{ArrayD, IxDyn};
use serde_json::{Value, json};

use super::cogvideox_ddim::CogVideoxDdim;
use super::ddim::Ddim;
use super::diffusion::Config;
use super::*;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/scheduler/cases.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// The noise of schedulers that draw none.
fn silent(_: &[usize]) -> ArrayD<f32> {
    panic!("no noise is drawn here")
}

fn array(values: &[f32]) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap()
}

/// A file of `CogVideoXDDIMScheduler` with these keys.
fn cogvideox(keys: &Value) -> Value {
    let mut file = json!({"_class_name": "CogVideoXDDIMScheduler"});
    for (key, value) in keys.as_object().unwrap() {
        file[key] = value.clone();
    }
    file
}

/// What the class of a configuration reads from it, and its cumulative alphas.
fn tables(value: &Value) -> (Config, Vec<f64>) {
    if value["_class_name"] == "DDIMScheduler" {
        let Ddim { config, alphas, .. } = Ddim::read(value).unwrap();
        (config, alphas)
    } else {
        let CogVideoxDdim { config, alphas } = CogVideoxDdim::read(value).unwrap();
        (config, alphas)
    }
}

#[test]
fn timesteps_of_every_golden_case_are_equal() {
    for case in fixture()["cases"].as_array().unwrap() {
        let (config, _) = tables(&case["config"]);
        for (steps, expected) in case["timesteps"].as_object().unwrap() {
            let expected: Vec<i64> = expected.as_array().unwrap().iter().map(|t| t.as_i64().unwrap()).collect();
            assert_eq!(config.timesteps(steps.parse().unwrap()).unwrap(), expected, "{}", case["config"]);
        }
    }
}

#[test]
fn alphas_of_every_golden_case_agree() {
    for case in fixture()["cases"].as_array().unwrap() {
        let (config, alphas) = tables(&case["config"]);
        for pair in case["alphas_cumprod"].as_array().unwrap() {
            let (index, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
            let found = alphas[index];
            assert!((found - expected).abs() <= 1e-7, "{index}: {found} {expected} {}", case["config"]);
        }
        assert!((config.final_alpha(&alphas) - case["final_alpha_cumprod"].as_f64().unwrap()).abs() <= 1e-7);
    }
}

#[test]
fn four_steps_of_every_golden_case_agree() {
    let fixture = fixture();
    let mut compared = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let schedule = read(&case["config"], None).unwrap().begin(4);
        let mut sample = array(&floats(&fixture["initial"]));
        let Some(expected) = case["samples"].as_array() else {
            assert!(matches!(schedule, Err(SchedulerError::Undefined { .. })), "{}", case["config"]);
            continue;
        };
        let mut schedule = schedule.unwrap();
        for i in 0..schedule.timesteps().len() {
            let output = array(&floats(&fixture["model_outputs"][i]));
            sample = schedule.step(&output, i, &sample, &mut silent).unwrap();
            let expected = floats(&expected[i]);
            let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            for (found, expected) in sample.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-6 * largest, "{found} {expected} {}", case["config"]);
            }
        }
        compared += 1;
    }
    assert!(compared > 20);
}

#[test]
fn published_schedule_has_the_official_alphas() {
    let value = json!({"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": true,
        "clip_sample": false, "timestep_spacing": "trailing"});
    let (_, alphas) = tables(&value);
    assert!((alphas[19] - 0.981_010_5).abs() < 1e-6 && (alphas[499] - 0.242_358_99).abs() < 1e-6);
    assert_eq!(alphas[999], 0.0);
    let schedule = read(&value, None).unwrap().begin(50).unwrap();
    assert_eq!((schedule.timesteps()[0], schedule.timesteps()[49]), (999.0, 19.0));
}

#[test]
fn class_name_and_sampler_decide_class_and_defaults() {
    // The classes' default betas and shifts differ, and so do their steps.
    let first = |value: &Value, sampler| {
        let mut schedule = read(value, sampler).unwrap().begin(4).unwrap();
        schedule.step(&array(&[1.0]), 1, &array(&[0.5]), &mut silent).unwrap()[0]
    };
    let class = |name: &str| json!({"_class_name": name});
    let [ddim, cogvideox] = ["DDIMScheduler", "CogVideoXDDIMScheduler"].map(|name| first(&class(name), None));
    assert_ne!(ddim, cogvideox);
    // Without a step before it, this one's step is of first order; its factors are not DDIM's.
    let mut dpm = read(&class("CogVideoXDPMScheduler"), None).unwrap().begin(4).unwrap();
    let dpm = dpm.step(&array(&[1.0]), 1, &array(&[0.5]), &mut |shape| ArrayD::zeros(shape)).unwrap()[0];
    assert!(dpm != cogvideox && dpm != ddim);
    assert_eq!(first(&class("CogVideoXDDIMScheduler"), Some("ddim")), ddim);
    assert_eq!(first(&class("DDIMScheduler"), Some("cogvideox_ddim")), cogvideox);
}

#[test]
fn unknown_class_is_refused_with_the_classes_there_are() {
    for name in ["HeunDiscreteScheduler", "EulerDiscreteScheduler", "ddimscheduler", ""] {
        let error = read(&json!({"_class_name": name}), None).unwrap_err();
        assert!(matches!(error, SchedulerError::Unsupported { key: "_class_name", .. }), "{error}");
        assert!(error.to_string().contains("CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DDIMScheduler"), "{error}");
    }
    for value in [json!({"_class_name": 1}), json!({"_class_name": null}), json!({}), json!({"beta_end": 0.012})] {
        for sampler in [None, Some("ddim")] {
            let error = read(&value, sampler).unwrap_err();
            assert!(matches!(error, SchedulerError::Unsupported { key: "_class_name", .. }), "{value}: {error}");
        }
        assert!(matches!(read_for(&value, None, Some("ddim")), Err(SchedulerError::Unsupported { .. })), "{value}");
    }
    assert!(read(&json!({"_class_name": "HeunDiscreteScheduler"}), Some("ddim")).is_err());
    let error = read(&cogvideox(&json!({})), Some("euler")).unwrap_err();
    assert!(
        error.to_string().contains("`sampler` is euler, supported: cogvideox_ddim, cogvideox_dpm, ddim"),
        "{error}"
    );
}

#[test]
fn unsupported_options_are_refused_by_name() {
    for (key, value) in [
        ("beta_schedule", json!("squaredcos_cap_v2")),
        ("prediction_type", json!("flow_prediction")),
        ("timestep_spacing", json!("karras")),
        ("thresholding", json!(true)),
        ("trained_betas", json!([0.1, 0.2])),
    ] {
        let error = read(&cogvideox(&json!({ key: value })), None).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
    for config in [json!({"num_train_timesteps": 0}), json!({"beta_end": 1.5}), json!({"beta_start": "x"})] {
        assert!(read(&cogvideox(&config), None).is_err(), "{config}");
    }
}

#[test]
fn option_of_the_files_own_class_is_refused_where_that_class_or_one_that_needs_it_samples() {
    let file = json!({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true,
        "prediction_type": "flow_prediction", "solver_order": 3});
    for sampler in [None, Some("dpmpp_2m")] {
        for error in [read(&file, sampler), read_for(&file, None, sampler)].map(Result::unwrap_err) {
            assert!(error.to_string().contains("`solver_order` is 3, supported: 2"), "{sampler:?}: {error}");
        }
    }
    // As diffusers' `from_config` takes it.
    for sampler in ["dpmpp_2m_wan", "euler", "unipc"] {
        assert!(read(&file, Some(sampler)).is_ok() && read_for(&file, None, Some(sampler)).is_ok(), "{sampler}");
    }
    let mut file = file;
    file["use_karras_sigmas"] = json!(true);
    let error = read_for(&file, None, Some("euler")).unwrap_err().to_string();
    assert!(error.contains("`use_karras_sigmas` is true"), "{error}");
    assert!(read_for(&json!({"_class_name": "HeunDiscreteScheduler"}), None, Some("euler")).is_err());
}

#[test]
fn null_where_diffusers_has_another_default_is_refused_by_name() {
    // diffusers takes `clip_sample: null` for false where a file without the key means true, and fails on others.
    for (class, keys) in [
        ("CogVideoXDDIMScheduler", &diffusion::NEVER_NULL[..]),
        ("CogVideoXDPMScheduler", &["snr_shift_scale"]),
        ("DDIMScheduler", &diffusion::NEVER_NULL),
        ("UniPCMultistepScheduler", flow_unipc::OPTIONS.never_null),
        ("DPMSolverMultistepScheduler", flow_dpm::OPTIONS.never_null),
    ] {
        for key in keys {
            let error = read(&json!({"_class_name": class, *key: null}), None).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is null")), "{class}: {error}");
        }
    }
    let file = json!({"trained_betas": null, "thresholding": null});
    assert!(read(&cogvideox(&file), None).is_ok());
    // A key that the class does not have may be anything.
    for class in ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"] {
        assert!(read(&json!({"_class_name": class, "prediction_type": null}), None).is_ok(), "{class}");
    }
    assert!(read(&json!({"_class_name": "DDIMScheduler", "snr_shift_scale": null}), None).is_ok());
}

/// Samples of `CogVideoXDPMScheduler` with the noise that diffusers' steps used.
#[test]
fn cogvideox_dpm_trajectories_of_every_golden_case_agree() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/scheduler/cogvideox_dpm.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let [initial, slope, offset] = ["initial", "slope", "offset"].map(|name| array(&floats(&golden[name])));
    let norm = |values: &ArrayD<f32>| values.iter().map(|v| v * v).sum::<f32>().sqrt();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let steps = case["steps"].as_u64().unwrap() as usize;
        let mut config = golden["published"].clone();
        config.as_object_mut().unwrap().extend(case["change"].as_object().unwrap().clone());
        let mut schedule = read(&config, None).unwrap().begin(steps).unwrap();
        let timesteps: Vec<f64> = case["timesteps"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
        assert_eq!(schedule.timesteps(), timesteps, "{} {steps}", case["change"]);
        // Twice: a schedule that begins again has forgotten the video before.
        for _ in 0..2 {
            let mut sample = initial.clone();
            for i in 0..steps {
                let prediction = &slope * &sample + &offset;
                let mut draw = |_: &[usize]| array(&floats(&golden["noises"][i]));
                sample = schedule.step(&prediction, i, &sample, &mut draw).unwrap();
                for pair in case["samples"].as_array().unwrap().iter().filter(|pair| pair[0] == i + 1) {
                    let expected = array(&floats(&pair[1]));
                    let off = norm(&(&sample - &expected)) / norm(&expected);
                    assert!(off <= 2e-6, "{off:e} after {} steps of {steps}: {}", i + 1, case["change"]);
                }
            }
        }
    }
}

#[test]
fn cogvideox_dpm_draws_once_in_each_step_but_the_last_of_a_published_schedule() {
    let published = json!({"_class_name": "CogVideoXDPMScheduler", "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": true, "timestep_spacing": "trailing", "snr_shift_scale": 1.0});
    let mut schedule = read(&published, None).unwrap().begin(4).unwrap();
    let (mut sample, mut drawn) = (array(&[0.5, -1.0]), Vec::new());
    for i in 0..4 {
        let mut draw = |shape: &[usize]| {
            drawn.push(i);
            ArrayD::ones(shape)
        };
        sample = schedule.step(&array(&[0.1, 0.2]), i, &sample, &mut draw).unwrap();
    }
    assert_eq!(drawn, [0, 1, 2]);
    let epsilon = json!({"_class_name": "CogVideoXDPMScheduler", "rescale_betas_zero_snr": true,
        "timestep_spacing": "trailing"});
    assert!(matches!(read(&epsilon, None).unwrap().begin(4), Err(SchedulerError::Undefined { .. })));
    let error = schedule.step(&array(&[0.1]), 0, &sample, &mut silent).unwrap_err();
    assert!(matches!(error, SchedulerError::Shape { .. }));
    let error = schedule.step(&sample, 4, &sample, &mut silent).unwrap_err();
    assert!(matches!(error, SchedulerError::Step { index: 4, steps: 4 }));
}

#[test]
fn begin_refuses_no_steps_and_too_many() {
    let scheduler = read(&cogvideox(&json!({})), None).unwrap();
    assert!(matches!(scheduler.begin(0), Err(SchedulerError::Steps { found: 0, max: 1000 })));
    assert!(matches!(scheduler.begin(1001), Err(SchedulerError::Steps { .. })));
    assert!(scheduler.begin(1000).is_ok());
}

#[test]
fn every_step_count_gives_that_many_timesteps_in_range() {
    for spacing in ["trailing", "leading", "linspace"] {
        let scheduler = read(&cogvideox(&json!({"timestep_spacing": spacing})), None).unwrap();
        for steps in 1..=1000 {
            let schedule = scheduler.begin(steps).unwrap();
            assert_eq!(schedule.timesteps().len(), steps);
            assert!(schedule.timesteps().windows(2).all(|w| w[0] > w[1]));
        }
    }
}

#[test]
fn step_refuses_shapes_that_differ_and_steps_beyond_the_last() {
    let mut schedule = read(&cogvideox(&json!({})), None).unwrap().begin(4).unwrap();
    let error = schedule.step(&array(&[1.0]), 0, &array(&[1.0, 2.0]), &mut silent).unwrap_err();
    assert!(matches!(error, SchedulerError::Shape { .. }));
    let error = schedule.step(&array(&[1.0]), 4, &array(&[1.0]), &mut silent).unwrap_err();
    assert!(matches!(error, SchedulerError::Step { index: 4, steps: 4 }));
}
