use crate::{Builder, DataType, Value};

/// Sinusoidal embedding of a timestep (diffusers' `Timesteps`): `timestep` `[B]` of any number type to f32 `[B, dim]`.
///
/// Frequencies are `exp(−ln(10000) · j / (dim/2 − shift))`; cosines come first if `flip_sin_to_cos`.
pub fn timestep_sinusoid(b: &mut Builder, timestep: &Value, dim: usize, flip_sin_to_cos: bool, shift: f32) -> Value {
    let half = dim / 2;
    // The exponent is rounded as PyTorch rounds it; at t = 999 one ulp of a frequency is 6e-5 of an angle.
    let exponent = |j: usize| -(10000f64.ln() as f32) * j as f32 / (half as f32 - shift);
    let frequencies: Vec<f32> = (0..half).map(|j| f64::from(exponent(j)).exp() as f32).collect();
    let frequencies = b.floats(&[1, half], &frequencies);
    b.in_fp32(|b| {
        let timestep = b.cast(timestep, DataType::Float);
        let timestep = b.unsqueeze(&timestep, &[1]);
        let angles = b.op("Mul", &[&timestep, &frequencies]);
        let (sin, cos) = (b.op("Sin", &[&angles]), b.op("Cos", &[&angles]));
        if flip_sin_to_cos { b.concat(&[&cos, &sin], -1) } else { b.concat(&[&sin, &cos], -1) }
    })
}
