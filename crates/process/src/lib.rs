//! What every process that runs for months begins with: how its allocator is set up, where it logs, how it
//! listens, how it reads files that others have written; and how it ends.
//!
//! Invariant of this crate: it knows nothing of what the processes do.

mod end;
mod failure;
pub mod file;
mod listen;
mod log;
pub mod malloc;

pub use end::end_at_once;
pub use failure::{Failure, one_line};
pub use listen::listen;
pub use log::log_to_stderr;
