//! The router: OpenAI HTTP in front of the workers.
//!
//! Invariant of this crate: the router reads no model and runs none. All it knows of a model is the card that workers
//! serve; all it knows of a worker is what the worker says on its own connection. Losing a worker never blocks a
//! request that does not run on it.
//!
//! A request passes, in order: `endpoints` (admission, body), `openai` (parsed once into a valid type), `serving` (a
//! worker is waited for), `prepare` (token ids), `routing` (where it goes), `upstream` (one attempt on one worker),
//! `text` (token ids to text), and back through `serving` and `openai` as an answer. `workers` runs beside all this.

mod app;
mod args;
mod config;
mod endpoints;
mod failure;
#[doc(hidden)]
pub mod fuzz;
mod generation;
mod kubernetes;
mod metrics;
mod model;
mod openai;
#[cfg(test)]
mod parity;
mod prepare;
mod routing;
mod server;
mod serving;
mod settings;
mod text;
mod text_pool;
mod upstream;
mod wire;
mod workers;

pub use args::{ConnectionArgs, RouterArgs};
pub use failure::failure;
pub use server::{Listeners, run, serve};
