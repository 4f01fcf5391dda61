//! The flags `--dtype` and `--kv-cache-dtype`.

use disagg_engine::KvDtype;

/// A number format, as users of other engines name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Dtype {
    /// What the device computes in
    #[default]
    Auto,
    /// What the CPU and the simulation compute in
    Float32,
    /// What a GPU computes in, unless the model is published in float16
    Bfloat16,
    /// What a GPU computes in if the model is published in float16
    Float16,
}

impl Dtype {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    /// What is wrong with it where this model is computed in one of `computes`.
    pub(crate) fn problem(self, computes: &[Self]) -> Option<String> {
        let computes = self.not_among(computes)?;
        Some(format!(
            "{} given, and this worker computes in {computes}: the CPU computes in float32, a GPU in float16 for models \
             published in it and in bfloat16 for all others, and weights are converted. Use auto or another --device",
            self.as_str()
        ))
    }

    /// What is wrong with keys and values in it where this model is computed in one of `computes`, and not on a CPU: that
    /// rounds them to whatever is asked for.
    pub(crate) fn kv_problem(self, computes: &[Self]) -> Option<String> {
        let computes = self.not_among(computes)?;
        Some(format!(
            "{} given, and this worker keeps what it computes, in {computes}. Use auto here, and give workers on CPUs, \
             which round, the format of their peers",
            self.as_str()
        ))
    }

    /// The format of keys and values; where it is left open, that of `computes`.
    pub(crate) fn kv(self, computes: Self) -> KvDtype {
        match (self, computes) {
            (Self::Auto, Self::Auto | Self::Float32) | (Self::Float32, _) => KvDtype::F32,
            (Self::Auto, Self::Bfloat16) | (Self::Bfloat16, _) => KvDtype::Bf16,
            (Self::Auto, Self::Float16) | (Self::Float16, _) => KvDtype::F16,
        }
    }

    /// Names of all that are allowed, if this is none of them.
    fn not_among(self, allowed: &[Self]) -> Option<String> {
        if self == Self::Auto || allowed.contains(&self) {
            return None;
        }
        Some(allowed.iter().map(|dtype| dtype.as_str()).collect::<Vec<_>>().join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_is_not_computed_in_is_refused_by_name() {
        use Dtype::{Auto, Bfloat16, Float16, Float32};
        assert_eq!(Auto.problem(&[Float32]), None);
        assert_eq!(Float16.problem(&[Bfloat16, Float16]), None);
        for (asked, computes) in
            [(Bfloat16, Float32), (Float16, Float32), (Float32, Bfloat16), (Float16, Bfloat16)]
        {
            let problem = asked.problem(&[computes]).unwrap();
            let says = format!("{} given, and this worker computes in {}", asked.as_str(), computes.as_str());
            assert!(problem.starts_with(&says), "{problem}");
        }
    }

    #[test]
    fn keys_and_values_have_the_format_asked_for_or_the_computed_one() {
        use Dtype::{Auto, Bfloat16, Float16, Float32};
        let formats = [(Float32, KvDtype::F32), (Bfloat16, KvDtype::Bf16), (Float16, KvDtype::F16)];
        for (dtype, format) in formats {
            assert_eq!(Auto.kv(dtype), format);
            for computes in [Float32, Bfloat16, Float16] {
                assert_eq!(dtype.kv(computes), format);
            }
        }
        assert_eq!(Auto.kv_problem(&[Bfloat16]), None);
        let problem = Float32.kv_problem(&[Bfloat16, Float16]).unwrap();
        assert!(problem.contains("float32 given") && problem.contains("bfloat16 or float16"), "{problem}");
    }
}
