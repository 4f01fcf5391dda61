//! One target under libFuzzer, which keeps every input that reaches new code: `make fuzz-coverage`.
//!
//! `DISAGG_FUZZ_TARGET` names the target; the arguments are libFuzzer's.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<disagg_fuzz::Target> = OnceLock::new();

fuzz_target!(init: choose(), |bytes: &[u8]| {
    let target = TARGET.get().expect("libFuzzer begins with `init`");
    target(bytes);
});

/// Ends the process with a list of the targets when none of them is named.
fn choose() {
    let name = std::env::var("DISAGG_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = disagg_fuzz::target(&name) else {
        let names: Vec<_> = disagg_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        #[allow(clippy::print_stderr)]
        {
            eprintln!("DISAGG_FUZZ_TARGET is {name:?}; it must be one of {}", names.join(", "));
        }
        std::process::exit(2);
    };
    TARGET.get_or_init(|| target);
    // libfuzzer-sys has made every panic end the process, also those that a target expects and catches. Without its
    // hook a panic that leaves the target still ends it.
    drop(std::panic::take_hook());
}
