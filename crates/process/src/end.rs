//! The end of a process that has used a GPU.
#![allow(unsafe_code)]

use std::io::Write as _;

/// Ends the process with this status, without the code that libraries run at a process's end.
///
/// CUDA's such code frees what a thread may still use, which crashes, and waits for ever for a GPU that does not answer.
/// There is nothing for it to do: the system takes back everything. What is buffered for standard output is written.
pub fn end_at_once(status: u8) -> ! {
    // Nobody reads it: there is nobody to tell.
    let _ = std::io::stdout().flush();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number and does not return.
    unsafe {
        libc::_exit(status.into())
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    std::process::exit(status.into())
}
