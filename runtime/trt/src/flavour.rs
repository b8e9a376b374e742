use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flavour {
    /// TensorRT-RTX, for GeForce and RTX GPUs: builds for any of them, without a GPU.
    Rtx,
    /// TensorRT, for data-center and embedded GPUs, too: builds for the GPU of the machine that it runs on.
    TensorRt,
}

impl Flavour {
    /// The name of its backend: `tensorrt-rtx`, `tensorrt`.
    pub const fn backend(self) -> &'static str {
        match self {
            Self::Rtx => "tensorrt-rtx",
            Self::TensorRt => "tensorrt",
        }
    }

    /// The name in messages.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Rtx => "TensorRT-RTX",
            Self::TensorRt => "TensorRT",
        }
    }

    /// File names of the library and of its ONNX parser, and the folder of the Python package that holds them.
    pub(crate) const fn files(self) -> Files {
        match self {
            Self::Rtx => Files {
                library: "libtensorrt_rtx.so.1",
                #[cfg(feature = "build")]
                parser: "libtensorrt_onnxparser_rtx.so.1",
                package: "tensorrt_rtx_libs",
            },
            Self::TensorRt => Files {
                library: "libnvinfer.so.11",
                #[cfg(feature = "build")]
                parser: "libnvonnxparser.so.11",
                package: "tensorrt_libs",
            },
        }
    }

    /// How to come by the library.
    pub(crate) const fn way_out(self) -> &'static str {
        match self {
            Self::Rtx => {
                "`pip install tensorrt-rtx-cu13-libs==1.7.1.116`, or in a checkout run bin/trt-check, which fetches it into vendor/"
            }
            Self::TensorRt => "install TensorRT 11.4 from NVIDIA",
        }
    }
}

/// Names of a flavour's files.
pub(crate) struct Files {
    pub(crate) library: &'static str,
    #[cfg(feature = "build")]
    pub(crate) parser: &'static str,
    pub(crate) package: &'static str,
}

/// A version of TensorRT. Its classes change their layout from one minor version to the next, and a library of another one
/// does not say so: it is called wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// As in `1.7.1`.
    pub major: u32,
    /// As in `1.7.1`.
    pub minor: u32,
    /// As in `1.7.1`.
    pub patch: u32,
}

impl Version {
    /// From the number that `getInferLibVersion` gives: 10701 is 1.7.1.
    pub const fn of_number(number: u32) -> Self {
        Self { major: number / 10_000, minor: number / 100 % 100, patch: number % 100 }
    }

    /// True if a shim compiled for `self` can call a library of version `other`.
    pub const fn fits(self, other: Self) -> bool {
        self.major == other.major && self.minor == other.minor
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What a GPU can do, as NVIDIA counts it: 8.9 for Ada.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    /// As in `8.9`.
    pub major: u32,
    /// As in `8.9`.
    pub minor: u32,
}

impl Capability {
    /// As NVIDIA's headers count: 89 for 8.9.
    pub const fn number(self) -> u32 {
        10 * self.major + self.minor
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A text is no compute capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no compute capability; expected major and minor, such as 8.9 or 12.0")]
pub struct CapabilityError(String);

impl FromStr for Capability {
    type Err = CapabilityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        match numbers {
            Some((major @ 1..=99, minor @ 0..=9)) => Ok(Self { major, minor }),
            _ => Err(CapabilityError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_is_major_and_minor() {
        let capability: Capability = "12.1".parse().unwrap();
        assert_eq!((capability.number(), capability.to_string()), (121, "12.1".to_owned()));
        for text in ["89", "8.", "8.10", "0.1", "8.9.0", ""] {
            assert!(text.parse::<Capability>().unwrap_err().to_string().contains("such as 8.9"), "{text}");
        }
    }

    #[test]
    fn version_fits_within_a_minor_version_only() {
        let version = Version::of_number(10_701);
        assert_eq!(version.to_string(), "1.7.1");
        assert!(version.fits(Version::of_number(10_702)));
        assert!(!version.fits(Version::of_number(10_600)) && !version.fits(Version::of_number(110_401)));
        assert_eq!(Version::of_number(110_401).to_string(), "11.4.1");
    }
}
