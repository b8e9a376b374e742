//! What ONNX Runtime alone is asked for.

use std::path::PathBuf;
use std::str::FromStr;

use super::shared::SharedWeights;

/// How ONNX Runtime is opened.
#[derive(Clone, Debug, Default)]
pub struct OrtOptions {
    /// The library; found as [`find_onnxruntime`](crate::io::library::find_onnxruntime) says if not given.
    pub library: Option<PathBuf>,
    /// In which types graphs compute. By plan, the weights are held as stored.
    pub arithmetic: Arithmetic,
    /// Time operators: an [`OrtSession`](super::OrtSession) then has `operator_times`.
    pub profile: bool,
    /// What to compute on. On a GPU all weights are device weights, whatever [`Self::device_weights`] says.
    pub provider: Provider,
    /// Which weights are device weights.
    pub device_weights: DeviceWeightChoice,
    /// Run graphs that are compiled for another backend, too, by the ONNX form that every engine holds.
    pub any_backend: bool,
    /// What engines of this process that are opened with clones of it hold together; each holds its own without.
    pub shared: Option<SharedWeights>,
}

/// In which types a graph computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// float32 throughout.
    #[default]
    Fp32,
    /// Each node in the type of the precision plan that the engine was compiled by; weights as they are stored.
    Plan,
}

/// Which weights are device weights: they stay on the device, and sessions take them as inputs.
///
/// Open sessions then take other adapters without being opened again. On the CPU that costs some of what ONNX Runtime gains by
/// repacking these weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceWeightChoice {
    /// None: all are initializers of each session.
    #[default]
    None,
    /// Those of slots.
    Slots,
    /// All, as on a GPU.
    All,
}

/// What ONNX Runtime computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by ONNX Runtime's CUDA provider. Operators for which that has no kernel still run on the processor; nothing
    /// else does.
    Cuda {
        /// Which one, counted from 0.
        device: u16,
    },
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let gpu = |number: &str| number.parse().map(|device| Self::Cuda { device });
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda { device: 0 }),
            Some(("cuda", number)) => {
                gpu(number).map_err(|_| format!("expected a number behind `cuda:`, found `{number}`"))
            }
            _ => Err(format!("expected cpu, cuda or cuda:N, found `{text}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_is_read_from_its_name() {
        assert_eq!("cpu".parse(), Ok(Provider::Cpu));
        assert_eq!("cuda".parse(), Ok(Provider::Cuda { device: 0 }));
        assert_eq!("cuda:3".parse(), Ok(Provider::Cuda { device: 3 }));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cpu:0", ""] {
            assert!(wrong.parse::<Provider>().is_err(), "{wrong}");
        }
    }
}
