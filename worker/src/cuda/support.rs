//! Which GPUs and drivers the kernels can be used with, as decisions on numbers alone.

/// Oldest driver, as the CUDA version that it is for: launches with attributes (`cuLaunchKernelEx`) and what cudarc binds.
const DRIVER_MIN: (i32, i32) = (12, 0);

/// Which kernels a GPU gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernels {
    /// Those that use Hopper's own instructions, where there are such, and the general ones.
    Hopper,
    /// Those written for compute capability 8.0 and later: correct everywhere, slower than a newer GPU could be.
    General,
}

/// The kernels for a GPU of this compute capability; or in one sentence why there are none.
///
/// `driver` is the CUDA version that the driver is for and `nvrtc` that of the compiler, each as (major, minor).
pub fn kernels_for(capability: (i32, i32), driver: (i32, i32), nvrtc: (i32, i32)) -> Result<Kernels, String> {
    let text = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    if driver < DRIVER_MIN {
        return Err(format!(
            "the NVIDIA driver is for CUDA {}; {} or later is needed",
            text(driver),
            text(DRIVER_MIN)
        ));
    }
    if nvrtc.0 > driver.0 {
        return Err(format!(
            "NVRTC is of CUDA {} and the NVIDIA driver is for CUDA {}, which cannot load what it compiles; \
             update the driver or install NVRTC of CUDA {}",
            text(nvrtc),
            text(driver),
            driver.0
        ));
    }
    // What each compiler knows: 8.x for long, 9.0 from 11.8 on, 10.x and 12.0 from 12.8 on.
    let compiler = match capability {
        (major, _) if major < 8 => {
            return Err(format!(
                "this GPU has compute capability {}; 8.0 or later is needed",
                text(capability)
            ));
        }
        (major, _) if major > 9 => (12, 8),
        _ => (11, 8),
    };
    if nvrtc < compiler {
        return Err(format!(
            "this GPU has compute capability {}, which NVRTC of CUDA {} does not know; CUDA {} or later is needed",
            text(capability),
            text(nvrtc),
            text(compiler)
        ));
    }
    Ok(if capability == (9, 0) { Kernels::Hopper } else { Kernels::General })
}

/// What a user can do about an error that CUDA names in `cause`.
pub fn advice(cause: &str) -> Option<&'static str> {
    const ADVICE: [(&str, &str); 5] = [
        (
            "OUT_OF_MEMORY",
            "the GPU's memory is full: lower --gpu-memory-utilization, --max-num-batched-tokens or --max-num-seqs, or \
             end what else runs on this GPU",
        ),
        (
            "ILLEGAL_ADDRESS",
            "a kernel read or wrote memory that is not its own, which is a bug in it; this worker cannot go on and has to \
             be started again",
        ),
        (
            "DEVICE_UNAVAILABLE",
            "another process has the GPU to itself, or the driver lost it; see `nvidia-smi`",
        ),
        ("ECC_UNCORRECTABLE", "the GPU's memory is damaged; see `nvidia-smi -q -d ECC`"),
        ("LAUNCH_FAILED", "a kernel failed; this worker cannot go on and has to be started again"),
    ];
    // 719 and the like name the context's last error: all later calls report it too.
    ADVICE.iter().find(|(name, _)| cause.contains(name)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: (i32, i32) = (13, 0);

    #[test]
    fn hopper_gets_its_own_kernels_and_others_the_general_ones() {
        for (capability, kernels) in [
            ((8, 0), Kernels::General),
            ((8, 6), Kernels::General),
            ((8, 9), Kernels::General),
            ((9, 0), Kernels::Hopper),
            ((10, 0), Kernels::General),
            ((12, 0), Kernels::General),
        ] {
            assert_eq!(kernels_for(capability, DRIVER, DRIVER), Ok(kernels), "{capability:?}");
        }
    }

    #[test]
    fn each_refusal_names_what_is_there_and_what_is_needed() {
        for (capability, driver, nvrtc, words) in [
            ((7, 5), DRIVER, DRIVER, ["7.5", "8.0"]),
            ((9, 0), (11, 8), (11, 8), ["11.8", "12.0"]),
            ((9, 0), (12, 4), (13, 0), ["13.0", "12.4"]),
            ((10, 0), (12, 8), (12, 6), ["12.6", "12.8"]),
        ] {
            let why = kernels_for(capability, driver, nvrtc).expect_err("is refused");
            assert!(words.iter().all(|word| why.contains(word)), "{why}");
        }
    }

    #[test]
    fn an_older_compiler_with_a_newer_driver_is_fine() {
        assert_eq!(kernels_for((9, 0), (13, 0), (12, 4)), Ok(Kernels::Hopper));
    }

    #[test]
    fn full_memory_says_what_to_lower() {
        let advice = advice("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        assert!(advice.is_some_and(|advice| advice.contains("--gpu-memory-utilization")));
        assert_eq!(super::advice("DriverError(CUDA_ERROR_INVALID_VALUE, \"invalid argument\")"), None);
    }
}
