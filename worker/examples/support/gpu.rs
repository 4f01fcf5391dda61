//! What the CUDA examples share.

use std::process::ExitCode;

/// How to end where there is no GPU, having said why; `None` where there is one. With `DISAGG_REQUIRE_GPU` set, a missing
/// GPU is an error.
pub(crate) fn missing() -> Option<ExitCode> {
    let why = disagg_worker::cuda::available().err()?;
    println!("not run: {why}");
    let required = std::env::var_os("DISAGG_REQUIRE_GPU").is_some();
    Some(if required { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
