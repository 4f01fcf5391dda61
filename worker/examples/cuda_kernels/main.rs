//! Checks every CUDA kernel against float64 on the CPU, in both formats of storage: random numbers, ragged shapes, page
//! boundaries, outputs filled with NaN before, memory that no kernel may read filled with NaN too. Drawing of tokens is
//! checked against the engine's sampling, and whole decode steps with overlapping launches against others without. Ends
//! with an error if a bound does not hold.
//!
//!     cargo run --profile ci -p disagg-worker --example cuda_kernels            # everything
//!     compute-sanitizer --tool racecheck .../cuda_kernels small [NAME]          # small shapes, for the sanitizer
//!
//! Without a GPU it says why it does nothing; with `DISAGG_REQUIRE_GPU` set that is an error.
#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub)]
#![allow(clippy::cast_possible_wrap, reason = "sizes of a test")]
#![allow(clippy::many_single_char_names, clippy::type_complexity, reason = "m, n, k; lists of cases")]

mod attention;
mod chain;
mod elementwise;
#[path = "../support/gpu.rs"]
mod gpu;
mod products;
mod sampling;
mod support;

use std::process::ExitCode;

use disagg_worker::cuda::format::Format;
use support::Gpu;

fn main() -> ExitCode {
    if let Some(code) = gpu::missing() {
        return code;
    }
    let mut arguments = std::env::args().skip(1).peekable();
    let small = arguments.next_if(|argument| argument == "small").is_some();
    let only = arguments.next();
    let mut good = true;
    for (head_dim, format) in [(128, Format::Bf16), (64, Format::Bf16), (128, Format::F16), (64, Format::F16)]
    {
        // f16 differs from bf16 in single instructions, so one head size has all the shapes.
        let small = small || (head_dim, format) == (64, Format::F16);
        let mut gpu = Gpu::open(head_dim, format, small);
        let groups: [(&str, fn(&mut Gpu)); 6] = [
            ("elementwise", elementwise::check),
            ("products", products::check),
            ("decode", attention::check_decode),
            ("prefill", attention::check_prefill),
            ("chain", chain::check),
            ("sampling", sampling::check),
        ];
        for (name, check) in groups {
            // Logits are float in either format, and have no heads.
            let again = name == "sampling" && (head_dim, format) != (128, Format::Bf16);
            if only.as_deref().is_none_or(|only| only == name) && !again {
                check(&mut gpu);
            }
        }
        good &= gpu.failed == 0;
    }
    println!("{}", if good { "all bounds hold" } else { "SOME BOUNDS DO NOT HOLD" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
