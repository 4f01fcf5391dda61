//! What the children get of our environment: what they need, by name. A token or a key that was meant for another program,
//! or for us, such as `HF_TOKEN` (models are downloaded before any child is started), is in no child's environment.

use std::ffi::{OsStr, OsString};

/// For every child. A `*` stands for any end.
const EVERYWHERE: [&str; 18] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "XDG_*",
    "NO_COLOR",
    // Logs, backtraces and the allocator.
    "RUST_*",
    "MALLOC_*",
    "GLIBC_TUNABLES",
    "TOKIO_WORKER_THREADS",
    // Sanitizers and profilers.
    "*SAN_OPTIONS",
    "LLVM_PROFILE_FILE",
    // The loader: CUDA's libraries are found by it.
    "LD_*",
    "DYLD_*",
    // Flags of the router and of workers.
    "DISAGG_*",
];

/// For workers, which compute.
const WORKERS: [&str; 6] = ["CUDA_*", "NVIDIA_*", "NVRTC_*", "CUBLAS*", "RAYON_*", "OMP_*"];

/// Flags that would make no sense for several workers at once.
const NOWHERE: [&str; 2] = ["DISAGG_ADVERTISE", "DISAGG_METRICS_LISTEN"];

/// Of `ours`, what the router or a worker gets.
pub(super) fn of_child(
    is_worker: bool,
    ours: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let needs = |name: &OsStr| {
        let Some(name) = name.to_str() else { return false };
        let any_of = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, name));
        !any_of(&NOWHERE) && (any_of(&EVERYWHERE) || (is_worker && any_of(&WORKERS)))
    };
    ours.into_iter().filter(|(name, _)| needs(name)).collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => name.starts_with(start) && name.ends_with(end),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_get_what_they_need_and_no_secret() {
        let names = |is_worker| -> Vec<String> {
            let ours = [
                "PATH",
                "LC_ALL",
                "RUST_LOG",
                "ASAN_OPTIONS",
                "DISAGG_MAX_IN_FLIGHT",
                "DISAGG_ADVERTISE",
                "DISAGG_METRICS_LISTEN",
                "CUDA_HOME",
                "CUBLASLT_LOG_LEVEL",
                "HF_TOKEN",
                "HF_TOKEN_PATH",
                "OPENAI_API_KEY",
                "AWS_SECRET_ACCESS_KEY",
                "KUBECONFIG",
                "PATHS",
            ];
            let ours = ours.map(|name| (OsString::from(name), OsString::from("value")));
            of_child(is_worker, ours).into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
        };
        let router = ["PATH", "LC_ALL", "RUST_LOG", "ASAN_OPTIONS", "DISAGG_MAX_IN_FLIGHT"];
        assert_eq!(names(false), router);
        assert_eq!(names(true), [&router[..], &["CUDA_HOME", "CUBLASLT_LOG_LEVEL"]].concat());
    }
}
