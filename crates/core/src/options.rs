//! Options of a model that the resource, the command lines and the workers share.

use std::fmt;
use std::str::FromStr;

/// The number format to compute in. `auto` is what the device of each worker computes in: float32 on a CPU; on a GPU float16
/// for models published in it and bfloat16 for all others. A worker that would compute in another format than the one
/// named here says so and does not start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Dtype {
    /// What the device computes in.
    #[default]
    Auto,
    /// 32 bits: workers on CPUs.
    Float32,
    /// 16 bits, 8 of them for the exponent: workers on GPUs.
    Bfloat16,
    /// 16 bits, 5 of them for the exponent: workers on GPUs, for models published in it.
    Float16,
}

impl Dtype {
    /// Every format, the default first.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Float32, Self::Bfloat16, Self::Float16];

    /// The name used in flags and resources.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that names no [`Dtype`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a number format: write auto, float32, bfloat16 or float16")]
pub struct UnknownDtype(String);

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|dtype| dtype.as_str() == name);
        named.ok_or_else(|| UnknownDtype(name.to_owned()))
    }
}

/// `auto` reads the weights of the source. `dummy` makes random weights of the shape that the source's config states,
/// for benchmarks: it loads at once and answers nonsense. The default is `auto`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LoadFormat {
    /// Read them from the model's folder.
    #[default]
    Auto,
    /// Make random ones of the shape that the model's config states.
    Dummy,
}

impl LoadFormat {
    /// Every way to load weights, the default first.
    pub const ALL: [Self; 2] = [Self::Auto, Self::Dummy];

    /// The name used in flags and resources.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Dummy => "dummy",
        }
    }
}

impl fmt::Display for LoadFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that names no [`LoadFormat`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a way to load weights: write auto or dummy")]
pub struct UnknownLoadFormat(String);

impl FromStr for LoadFormat {
    type Err = UnknownLoadFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|format| format.as_str() == name);
        named.ok_or_else(|| UnknownLoadFormat(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_they_are_written() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        for format in LoadFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("fp8".parse::<Dtype>().unwrap_err().to_string().contains("float32, bfloat16 or float16"));
        assert!("gguf".parse::<LoadFormat>().unwrap_err().to_string().contains("auto or dummy"));
    }
}
