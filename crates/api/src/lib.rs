//! What a user writes, and how it is checked: the router's settings and, behind the feature `crd`, the
//! `DisaggDeployment` resource.
//!
//! Invariant of this crate: it only describes and validates. Nothing here does I/O, and operator, router and CLI get
//! their opinion of what is valid from here alone. Without the feature `crd` it needs no Kubernetes crate. The router
//! has some all the same, to watch its cluster; the worker has none.

#[cfg(feature = "crd")]
pub mod crd;
pub mod kubernetes;
pub mod last_words;
pub mod settings;

#[cfg(feature = "crd")]
pub use crd::DisaggDeployment;

pub use disagg_core::FallbackPolicy;
pub use settings::{RouterSettings, SettingsError, SettingsErrors};
