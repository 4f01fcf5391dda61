//! Weights as they are stored: the bytes of safetensors files, or random numbers.

mod check;
mod digest;
mod dummy;
mod files;
mod source;

pub use digest::WeightsDigest;
pub use dummy::DummyWeights;
pub use files::{INDEX_FILE, SINGLE_FILE, SafetensorsFolder, weight_files};
pub use source::{TensorSource, WeightFormat, read_f32};
