//! A scheduler for tests: flow matching by Adams–Bashforth's method of second order, which remembers the last velocity. What a
//! new scheduler needs is this file, its `mod` line and a line of `CLASSES`.

use ndarray::ArrayD;
use serde::Deserialize;

use super::diffusion::out_of_range;
use super::scheduler::{Class, Draw, Kind, Schedule, Scheduler, SchedulerError, check_count, check_step};

pub(super) const CLASS: Class = Class {
    names: &["ToyFlowScheduler"],
    sampler: "toy",
    kind: Kind::Flow,
    read: |value| Ok(Box::new(Toy::read(value)?)),
};

/// From noise level 1 to 0 in equal steps; the model is told the level times `scale`, and predicts a velocity.
#[derive(Debug, Deserialize)]
struct Toy {
    #[serde(default = "training_steps")]
    scale: f64,
}

const MOST_STEPS: usize = 1000;

fn training_steps() -> f64 {
    MOST_STEPS as f64
}

impl Toy {
    fn read(value: &serde_json::Value) -> Result<Self, SchedulerError> {
        let toy = Self::deserialize(value)?;
        if toy.scale > 0.0 { Ok(toy) } else { Err(out_of_range("scale", toy.scale, "more than 0")) }
    }
}

impl Scheduler for Toy {
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError> {
        check_count(steps, MOST_STEPS)?;
        let timesteps = (0..steps).map(|i| (1.0 - i as f64 / steps as f64) * self.scale).collect();
        Ok(Box::new(Steps { timesteps, last: None }))
    }
}

struct Steps {
    timesteps: Vec<f64>,
    last: Option<ArrayD<f32>>,
}

impl Schedule for Steps {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        2.0
    }

    fn scale_input(&self, sample: ArrayD<f32>, _index: usize) -> ArrayD<f32> {
        sample / 2.0
    }

    fn step(
        &mut self,
        prediction: &ArrayD<f32>,
        index: usize,
        sample: &ArrayD<f32>,
        _draw: &mut Draw<'_>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        let steps = self.timesteps.len();
        check_step(steps, prediction, index, sample)?;
        let velocity = match self.last.replace(prediction.clone()).filter(|_| index > 0) {
            Some(last) => prediction * 1.5 - last * 0.5,
            None => prediction.clone(),
        };
        Ok(sample - velocity / steps as f32)
    }
}

mod tests {
    use ndarray::arr1;
    use serde_json::json;

    use super::super::read;
    use super::*;

    #[test]
    fn scheduler_of_a_new_class_is_found_by_its_class_or_by_its_name_and_checks_its_keys() {
        let config = json!({ "_class_name": "ToyFlowScheduler", "scale": 1000.0 });
        let by_class = read(&config, None).unwrap().begin(4).unwrap();
        assert_eq!(by_class.timesteps(), [1000.0, 750.0, 500.0, 250.0]);
        let by_name = read(&json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "scale": 1.0 }), Some("toy"))
            .unwrap()
            .begin(2)
            .unwrap();
        assert_eq!(by_name.timesteps(), [1.0, 0.5]);
        let wrong = json!({ "_class_name": "ToyFlowScheduler", "scale": 0.0 });
        assert!(matches!(read(&wrong, None), Err(SchedulerError::OutOfRange { key: "scale", .. })));
        let unknown = read(&json!({ "_class_name": "OtherScheduler" }), None).unwrap_err().to_string();
        assert!(unknown.contains("OtherScheduler") && unknown.contains("ToyFlowScheduler"), "{unknown}");
    }

    #[test]
    fn schedule_of_second_order_remembers_one_video_and_not_the_next() {
        let scheduler = read(&json!({ "_class_name": "ToyFlowScheduler", "scale": 1.0 }), None).unwrap();
        // dx/ds = 2s backwards from x(1) = 1: the method is exact for velocities that are linear in s, but for its first step.
        let run = || {
            let mut schedule = scheduler.begin(4).unwrap();
            let silent = &mut |_: &[usize]| panic!("no noise is drawn here");
            let mut sample = arr1(&[1.0f32]).into_dyn();
            for (index, level) in schedule.timesteps().to_vec().into_iter().enumerate() {
                sample = schedule.step(&arr1(&[2.0 * level as f32]).into_dyn(), index, &sample, silent).unwrap();
            }
            assert!(matches!(
                schedule.step(&sample, 4, &sample, silent),
                Err(SchedulerError::Step { index: 4, steps: 4 })
            ));
            sample[[0]]
        };
        assert_eq!(run(), run());
        assert!((run() + 0.0625).abs() < 1e-6, "{}", run());
    }
}
