//! The flags `--dtype` and `--kv-cache-dtype`.

use disagg_core::Dtype;
use disagg_engine::KvDtype;

/// What is wrong with `--dtype` where this model is computed in one of `computes`.
pub(crate) fn problem(dtype: Dtype, computes: &[Dtype]) -> Option<String> {
    let computes = not_among(dtype, computes)?;
    Some(format!(
        "{dtype} given, and this worker computes in {computes}: the CPU computes in float32, a GPU in float16 for models \
         published in it and in bfloat16 for all others, and weights are converted. Use auto or another --device"
    ))
}

/// What is wrong with `--kv-cache-dtype` where this model is computed in one of `computes`, and not on a CPU: that rounds
/// keys and values to whatever is asked for.
pub(crate) fn kv_problem(dtype: Dtype, computes: &[Dtype]) -> Option<String> {
    let computes = not_among(dtype, computes)?;
    Some(format!(
        "{dtype} given, and this worker keeps what it computes, in {computes}. Use auto here, and give workers on CPUs, \
         which round, the format of their peers"
    ))
}

/// The format of keys and values; where it is left open, that of `computes`.
pub(crate) fn kv_format(dtype: Dtype, computes: Dtype) -> KvDtype {
    match (dtype, computes) {
        (Dtype::Auto, Dtype::Auto | Dtype::Float32) | (Dtype::Float32, _) => KvDtype::F32,
        (Dtype::Auto, Dtype::Bfloat16) | (Dtype::Bfloat16, _) => KvDtype::Bf16,
        (Dtype::Auto, Dtype::Float16) | (Dtype::Float16, _) => KvDtype::F16,
    }
}

/// Names of all that are allowed, if `dtype` is none of them.
fn not_among(dtype: Dtype, allowed: &[Dtype]) -> Option<String> {
    if dtype == Dtype::Auto || allowed.contains(&dtype) {
        return None;
    }
    Some(allowed.iter().map(|dtype| dtype.as_str()).collect::<Vec<_>>().join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_is_not_computed_in_is_refused_by_name() {
        use Dtype::{Auto, Bfloat16, Float16, Float32};
        assert_eq!(problem(Auto, &[Float32]), None);
        assert_eq!(problem(Float16, &[Bfloat16, Float16]), None);
        for (asked, computes) in
            [(Bfloat16, Float32), (Float16, Float32), (Float32, Bfloat16), (Float16, Bfloat16)]
        {
            let refused = problem(asked, &[computes]).unwrap();
            let says = format!("{asked} given, and this worker computes in {computes}");
            assert!(refused.starts_with(&says), "{refused}");
        }
    }

    #[test]
    fn keys_and_values_have_the_format_asked_for_or_the_computed_one() {
        use Dtype::{Auto, Bfloat16, Float16, Float32};
        let formats = [(Float32, KvDtype::F32), (Bfloat16, KvDtype::Bf16), (Float16, KvDtype::F16)];
        for (dtype, format) in formats {
            assert_eq!(kv_format(Auto, dtype), format);
            for computes in [Float32, Bfloat16, Float16] {
                assert_eq!(kv_format(dtype, computes), format);
            }
        }
        assert_eq!(kv_problem(Auto, &[Bfloat16]), None);
        let problem = kv_problem(Float32, &[Bfloat16, Float16]).unwrap();
        assert!(problem.contains("float32 given") && problem.contains("bfloat16 or float16"), "{problem}");
    }
}
