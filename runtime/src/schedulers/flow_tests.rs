use ndarray::{Array1, ArrayD};
use serde_json::{Value, json};

use super::*;
use crate::error::{Classified, ErrorClass};

struct Golden {
    file: Value,
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn array(value: &Value) -> ArrayD<f32> {
    Array1::from(floats(value)).into_dyn()
}

impl Golden {
    fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/scheduler/flow.json");
        Self { file: serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() }
    }

    fn cases(&self) -> &[Value] {
        self.file["cases"].as_array().unwrap()
    }

    fn schedule(case: &Value) -> Box<dyn Schedule> {
        let scheduler = read_for(&case["config"], None, case["sampler"].as_str()).unwrap();
        scheduler.begin(case["steps"].as_u64().unwrap() as usize).unwrap()
    }

    /// Samples by the linear model, which `model` may change; gives the sample after each step.
    fn run(&self, case: &Value, model: impl Fn(f32) -> f32) -> Vec<ArrayD<f32>> {
        let [slope, offset] = ["slope", "offset"].map(|name| array(&self.file[name]));
        let mut noises = self.file["noises"].as_array().unwrap().iter().map(array);
        let mut schedule = Self::schedule(case);
        let mut sample = array(&self.file["initial"]);
        (0..schedule.timesteps().len())
            .map(|i| {
                let prediction = (&slope * &sample + &offset).mapv(&model);
                sample = schedule.step(&prediction, i, &sample, &mut |_| noises.next().unwrap()).unwrap();
                sample.clone()
            })
            .collect()
    }
}

fn distance(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> f32 {
    let norm = |values: ArrayD<f32>| values.iter().map(|v| v * v).sum::<f32>().sqrt();
    norm(found - expected) / norm(expected.clone())
}

#[test]
fn timesteps_of_every_golden_case_are_equal() {
    let golden = Golden::read();
    for case in golden.cases() {
        let found = Golden::schedule(case).timesteps().to_vec();
        let expected: Vec<f64> = case["timesteps"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
        let class = case["config"]["_class_name"].as_str().unwrap();
        let whole = ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"].contains(&class);
        for (found, expected) in found.iter().zip(&expected) {
            // Fractions are float32, which diffusers rounds at other places for a list that it is given.
            let tolerance = if whole { 0.0 } else { 3e-7 * expected };
            assert!((found - expected).abs() <= tolerance, "{found} {expected} {} {}", case["config"], case["sampler"]);
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn trajectories_of_every_golden_case_agree() {
    let golden = Golden::read();
    let mut worst: f32 = 0.0;
    for case in golden.cases() {
        let found = golden.run(case, |v| v);
        for pair in case["samples"].as_array().unwrap() {
            let (done, expected) = (pair[0].as_u64().unwrap() as usize, array(&pair[1]));
            let off = distance(&found[done - 1], &expected);
            assert!(
                off <= 1e-6,
                "{off:e} after {done} steps: {} {} {}",
                case["config"],
                case["sampler"],
                case["steps"]
            );
            worst = worst.max(off);
        }
    }
    assert!(golden.cases().len() > 100 && worst > 0.0);
}

#[test]
fn wrong_predictions_leave_the_trajectory() {
    let golden = Golden::read();
    for case in golden.cases().iter().filter(|case| case["steps"] == 8) {
        let expected = array(&case["samples"].as_array().unwrap().last().unwrap()[1]);
        let found = golden.run(case, |v| v * 1.001);
        assert!(distance(found.last().unwrap(), &expected) > 1e-5, "{}", case["config"]);
    }
}

#[test]
fn schedule_that_begins_again_gives_the_same_samples() {
    let file = json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0});
    for sampler in samplers().filter(|sampler| read_for(&file, None, Some(sampler)).is_ok()) {
        let mut schedule = read_for(&file, None, Some(sampler)).unwrap().begin(3).unwrap();
        let mut run = |steps: usize| {
            let mut sample = Array1::from(vec![0.5f32, -1.0]).into_dyn();
            for i in 0..steps {
                let prediction = sample.mapv(|x| 0.3 * x + 0.1);
                sample = schedule.step(&prediction, i, &sample, &mut |shape| ArrayD::ones(shape)).unwrap();
            }
            sample
        };
        let whole = run(3);
        run(2);
        assert_eq!(run(3), whole, "{sampler}");
    }
}

#[test]
fn steps_at_a_boundary_are_those_of_the_experts() {
    // Wan 2.2 hands over from one expert to the other at a timestep.
    let above = |shift: f64, steps: usize, boundary: f64| {
        let scheduler =
            read_for(&json!({"_class_name": "FlowMatchEulerDiscreteScheduler"}), None, Some("euler_simple"));
        let schedule = scheduler.unwrap().shifted(shift).unwrap().begin(steps).unwrap();
        schedule.timesteps().iter().filter(|&&t| t >= boundary).count()
    };
    assert_eq!([4, 8, 20, 40].map(|steps| above(5.0, steps, 875.0)), [2, 4, 9, 17]);
    assert_eq!([4, 8, 20, 40].map(|steps| above(12.0, steps, 875.0)), [3, 6, 13, 26]);
    assert_eq!([4, 8, 20, 40].map(|steps| above(5.0, steps, 900.0)), [2, 3, 8, 15]);
}

#[test]
fn request_names_a_scheduler_by_sampler_or_class() {
    let file = json!({"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "use_flow_sigmas": true,
        "prediction_type": "flow_prediction"});
    let timesteps = |asked| read_for(&file, None, asked).unwrap().begin(4).unwrap().timesteps().to_vec();
    assert_eq!(timesteps(None), [999.0, 937.0, 833.0, 625.0]);
    assert_eq!(timesteps(Some("unipc_wan")), [999.0, 937.0, 833.0, 624.0]);
    // The shift goes along, whatever its key is called.
    assert_eq!(timesteps(Some("FlowMatchEulerDiscreteScheduler")), timesteps(Some("euler")));
    assert_eq!(timesteps(Some("dpmpp_2m_wan")), [1000.0, 937.0, 833.0, 625.0]);
    let refused = |name| read_for(&file, None, Some(name)).unwrap_err();
    for name in ["ddim", "DDIMScheduler", "Euler", ""] {
        let error = refused(name);
        assert!(matches!(error, SchedulerError::Unknown { .. }), "{error}");
        assert!(error.to_string().contains("unipc, unipc_wan, euler, euler_simple, dpmpp_2m"), "{error}");
    }
    let diffusion = json!({"_class_name": "DDIMScheduler"});
    assert!(matches!(read_for(&diffusion, None, Some("unipc")), Err(SchedulerError::Unknown { .. })));
    assert!(read(&diffusion, Some("euler")).unwrap_err().to_string().contains("cogvideox_ddim, cogvideox_dpm, ddim"));
}

#[test]
fn file_of_another_kind_is_refused_with_the_classes_of_this_one() {
    let file = |name: &str| json!({"_class_name": name});
    assert!(check_kind(&file("DDIMScheduler"), Kind::Diffusion).is_ok());
    assert!(check_kind(&file("UniPCMultistepScheduler"), Kind::Flow).is_ok());
    // A file without a class could be of either kind.
    for kind in [Kind::Diffusion, Kind::Flow] {
        assert!(check_kind(&json!({}), kind).unwrap_err().to_string().contains("`_class_name` is missing"));
    }
    for (name, kind, supported) in [
        (
            "FlowMatchEulerDiscreteScheduler",
            Kind::Diffusion,
            "CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DDIMScheduler",
        ),
        ("DDIMScheduler", Kind::Flow, "UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler"),
        ("HeunDiscreteScheduler", Kind::Flow, "UniPCMultistepScheduler"),
    ] {
        let error = check_kind(&file(name), kind).unwrap_err();
        assert!(
            matches!(error, SchedulerError::Unsupported { .. }) && error.to_string().contains(supported),
            "{error}"
        );
    }
}

#[test]
fn shift_is_for_flows_and_sensible() {
    let flow = json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0});
    let scheduler = read(&flow, None).unwrap();
    assert_eq!((scheduler.shift(), scheduler.shifted(7.0).unwrap().shift()), (Some(3.0), Some(7.0)));
    for shift in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e5] {
        let error = scheduler.shifted(shift).unwrap_err();
        assert!(matches!(error, SchedulerError::Shift { .. }) && error.class() == ErrorClass::Usage, "{error}");
    }
    let ddim = read(&json!({"_class_name": "DDIMScheduler"}), None).unwrap();
    assert_eq!(ddim.shift(), None);
    assert!(matches!(ddim.shifted(3.0), Err(SchedulerError::NoShift)));
}

#[test]
fn options_that_would_change_the_result_are_refused_by_name() {
    let uni = json!({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true, "prediction_type": "flow_prediction"});
    let dpm = json!({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true,
        "prediction_type": "flow_prediction"});
    let euler = json!({"_class_name": "FlowMatchEulerDiscreteScheduler"});
    let lcm = json!({"_class_name": "FlowMatchLCMScheduler"});
    for (file, key, value) in [
        (&uni, "use_flow_sigmas", json!(false)),
        (&uni, "prediction_type", json!("epsilon")),
        (&uni, "solver_order", json!(3)),
        (&uni, "solver_type", json!("bh1")),
        (&uni, "lower_order_final", json!(false)),
        (&uni, "predict_x0", json!(false)),
        (&uni, "shift_terminal", json!(0.1)),
        (&uni, "final_sigmas_type", json!("sigma_min")),
        (&uni, "flow_shift", json!(0)),
        (&uni, "num_train_timesteps", json!(1)),
        (&dpm, "solver_type", json!("heun")),
        (&dpm, "algorithm_type", json!("sde-dpmsolver++")),
        (&dpm, "use_flow_sigmas", json!(null)),
        (&dpm, "use_beta_sigmas", json!(true)),
        (&dpm, "use_exponential_sigmas", json!(true)),
        (&euler, "use_dynamic_shifting", json!(true)),
        (&euler, "stochastic_sampling", json!(true)),
        (&euler, "shift", json!("x")),
        (&lcm, "scale_factors", json!([2])),
        (&lcm, "use_beta_sigmas", json!(true)),
    ] {
        let mut changed = file.clone();
        changed[key] = value;
        let error = read(&changed, None).unwrap_err();
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
        assert!(read(file, None).is_ok());
    }
}

#[test]
fn every_step_count_gives_levels_that_fall_to_zero() {
    for class in CLASSES.iter().filter(|class| class.kind == scheduler::Kind::Flow) {
        let scheduler = (class.read)(&json!({"flow_shift": 3.0})).unwrap();
        for steps in (1..=1000).step_by(37).chain([1000]) {
            let schedule = scheduler.begin(steps).unwrap();
            assert_eq!(schedule.timesteps().len(), steps);
            assert!(schedule.timesteps().windows(2).all(|w| w[0] >= w[1]), "{} {steps}", class.sampler);
        }
        assert!(matches!(scheduler.begin(0), Err(SchedulerError::Steps { .. })));
        assert!(matches!(scheduler.begin(1001), Err(SchedulerError::Steps { .. })));
    }
}
