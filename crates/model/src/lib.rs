//! What a model is: data that the backends compute from.
//!
//! A model is a folder as `huggingface_hub` lays it out: `config.json`, tokenizer files, and one or several safetensors
//! files. Everything in it comes from outside and is checked here; the backends trust what they get.
//!
//! [`ModelSpec`] is what `config.json` says, with one table of tensors for each layer; `family` has one file for each
//! family that is supported, and that file is the only place where its tensors are listed. All else is derived from the
//! tables: what a folder must hold ([`SafetensorsFolder::check`]), how many parameters there are and what they take
//! ([`ModelSpec::parameters`], [`memory`]), and how weights are brought into a backend ([`load`]).
//!
//! Weights stay the bytes of their files here ([`TensorSource`]). What they are kept as is each backend's choice.
//!
//! Invariant of this crate: it knows no backend, no network and no async runtime.

pub mod built_in;
pub mod card;
pub mod config;
mod error;
mod family;
pub mod load;
pub mod memory;
mod open;
mod rope;
mod spec;
pub mod tiny;
pub mod weights;

pub use built_in::BuiltIn;
pub use card::{CARD_FILES, CardFile, ModelCard, OpenCard, kv_compat};
pub use error::ModelError;
pub use family::Family;
pub use open::{ModelSource, OpenModel, WeightsChoice, WeightsSource};
pub use rope::{Rope, RopeScaling};
pub use spec::{ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, Slot, TensorSpec};
pub use weights::{DummyWeights, SafetensorsFolder, TensorSource, WeightFormat, WeightsDigest};
