//! A worker of disaggregated serving: prefills, decodes, or both.

pub mod backend;
pub mod model;
