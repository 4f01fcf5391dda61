//! The gRPC services that routers and decode workers call.

mod generate;
mod prefill;
mod watch;
mod worker;

pub use prefill::PrefillService;
pub use worker::WorkerService;
