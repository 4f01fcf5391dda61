//! The flag `--dtype`.

/// The number format that a worker computes in, as users of other engines name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Dtype {
    /// What the device computes in
    #[default]
    Auto,
    /// What the CPU and the simulation compute in
    Float32,
    /// What a GPU computes in
    Bfloat16,
    /// Not computed in by any device yet
    Float16,
}

impl Dtype {
    /// What is wrong with it where a GPU computes (`on_gpu`), or the CPU does.
    pub(crate) fn problem(self, on_gpu: bool) -> Option<&'static str> {
        match (self, on_gpu) {
            (Self::Auto, _) | (Self::Float32, false) | (Self::Bfloat16, true) => None,
            (Self::Float32, true) => Some(
                "float32 given, and a GPU computes in bfloat16: use auto or bfloat16, or compute on the CPU with --device cpu",
            ),
            (Self::Bfloat16, false) => Some(
                "bfloat16 given, and the CPU computes in float32: use auto or float32; weights in bfloat16 are converted",
            ),
            (Self::Float16, _) => Some(
                "float16 given, in which no device computes yet: use auto; weights in float16 are converted",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_computes_in_one_format() {
        let good = |dtype: Dtype| [false, true].map(|on_gpu| dtype.problem(on_gpu).is_none());
        assert_eq!(good(Dtype::Auto), [true, true]);
        assert_eq!(good(Dtype::Float32), [true, false]);
        assert_eq!(good(Dtype::Bfloat16), [false, true]);
        assert_eq!(good(Dtype::Float16), [false, false]);
    }
}
