//! Checks every CUDA kernel against float64 on the CPU: random numbers, ragged shapes, page boundaries, outputs filled
//! with NaN before, memory that no kernel may read filled with NaN too. Ends with an error if a bound does not hold.
//! (`sample.cu` is checked by `cuda_check`, against the engine's sampling.)
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_kernels            # everything
//!     compute-sanitizer --tool racecheck .../cuda_kernels small [NAME]          # small shapes, for the sanitizer
//!
//! Without a GPU it says why it does nothing; with `DISAGG_REQUIRE_GPU` set that is an error.
#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub)]
#![allow(clippy::cast_possible_wrap, reason = "sizes of a test")]
#![allow(clippy::many_single_char_names, clippy::type_complexity, reason = "m, n, k; lists of cases")]

mod attention;
mod elementwise;
mod products;
mod support;

use std::process::ExitCode;

use support::Gpu;

fn main() -> ExitCode {
    if let Err(why) = disagg_worker::cuda::available() {
        println!("not run: {why}");
        return if std::env::var_os("DISAGG_REQUIRE_GPU").is_some() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    let mut arguments = std::env::args().skip(1).peekable();
    let small = arguments.next_if(|argument| argument == "small").is_some();
    let only = arguments.next();
    let mut good = true;
    for head_dim in [128, 64] {
        let mut gpu = Gpu::open(head_dim, small);
        let groups: [(&str, fn(&mut Gpu)); 4] = [
            ("elementwise", elementwise::check),
            ("products", products::check),
            ("decode", attention::check_decode),
            ("prefill", attention::check_prefill),
        ];
        for (name, check) in groups {
            if only.as_deref().is_none_or(|only| only == name) {
                check(&mut gpu);
            }
        }
        good &= gpu.failed == 0;
    }
    println!("{}", if good { "all bounds hold" } else { "SOME BOUNDS DO NOT HOLD" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
