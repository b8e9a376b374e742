use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use v2l_search::wording::{Supply, TRT_LIBRARY};
use v2l_search::{FileName, LIBRARY_PATH, Places, Product};

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

    /// The library.
    pub const fn product(self) -> &'static Product {
        match self {
            Self::Rtx => &RTX,
            Self::TensorRt => &TENSORRT,
        }
    }

    /// File name of the library's ONNX parser, which lies beside it.
    #[cfg(feature = "build")]
    pub(crate) const fn parser(self) -> &'static str {
        match self {
            Self::Rtx => "libtensorrt_onnxparser_rtx.so.1",
            Self::TensorRt => "libnvonnxparser.so.11",
        }
    }
}

static RTX: Product = Product {
    title: Flavour::Rtx.title(),
    supply: Supply::new(
        "run `bin/dev/trt-check`, which fetches it into vendor/",
        "`pip install tensorrt-rtx-cu13-libs==1.7.1.116`",
    ),
    option: TRT_LIBRARY,
    file: FileName::Exactly("libtensorrt_rtx.so.1"),
    places: Places {
        variables: VARIABLES,
        vendored: "vendor/tensorrt/tensorrt_rtx_libs",
        package: Some("tensorrt_rtx_libs"),
        list: LIBRARY_PATH,
    },
    by_loader: true,
};

static TENSORRT: Product = Product {
    title: Flavour::TensorRt.title(),
    supply: Supply::anywhere("install TensorRT 11.4 from NVIDIA"),
    option: TRT_LIBRARY,
    file: FileName::Exactly("libnvinfer.so.11"),
    places: Places {
        variables: VARIABLES,
        vendored: "vendor/tensorrt/tensorrt_libs",
        package: Some("tensorrt_libs"),
        list: LIBRARY_PATH,
    },
    by_loader: true,
};

const VARIABLES: &[&str] = &["V2L_TRT_LIB"];

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
