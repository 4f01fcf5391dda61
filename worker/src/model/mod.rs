//! Models, as `disagg-model` reads them, and the flag that says where their weights come from.

pub use disagg_model::*;

/// Where the numbers come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, clap::ValueEnum)]
pub enum LoadFormat {
    /// The folder's safetensors files.
    #[default]
    Auto,
    /// Random weights of the shapes that `config.json` gives; for benchmarks.
    Dummy,
}
