//! Strengths of adapters, which guidance may see one by one.

/// What an adapter's update is multiplied by, in the prediction for the prompt and in the one for the negative prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strength {
    /// For the prompt, and for a video without guidance.
    pub cond: f32,
    /// For the negative prompt.
    pub uncond: f32,
}

impl Strength {
    /// True if both predictions see the same adapter, so that one set of weights serves both.
    pub fn is_even(self) -> bool {
        self.cond.to_bits() == self.uncond.to_bits()
    }

    /// Both strengths, multiplied.
    #[must_use]
    pub fn times(self, factor: f32) -> Self {
        Self { cond: self.cond * factor, uncond: self.uncond * factor }
    }
}

impl From<f32> for Strength {
    fn from(strength: f32) -> Self {
        Self { cond: strength, uncond: strength }
    }
}

impl Default for Strength {
    fn default() -> Self {
        Self::from(1.0)
    }
}
