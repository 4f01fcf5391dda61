//! Models, as `disagg-model` reads them, and the option that says where their weights come from.

pub use disagg_core::LoadFormat;
pub use disagg_model::*;
