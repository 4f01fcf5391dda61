//! Reading a model: its configuration, its weights, and the card that the router serves it from.
//!
//! A model is a folder as `huggingface_hub` lays it out: `config.json`, tokenizer files, and one or several
//! safetensors files. Everything in it comes from outside and is checked here; the backends trust what they get.

pub mod built_in;
pub mod card;
pub mod config;
mod error;
pub mod memory;
mod rope;
pub mod tiny;
pub mod weights;

use std::path::PathBuf;

pub use built_in::BuiltIn;
pub use card::{CARD_FILES, CardFile, ModelCard, OpenCard, kv_compat};
pub use config::{Family, ModelConfig, WeightFormat};
pub use disagg_core::LoadFormat;
pub use error::ModelError;
pub use rope::RopeScaling;
pub use weights::{DummyWeights, SafetensorsFolder, Weights, WeightsDigest};

/// Which model to load, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelSource {
    /// Folder of the model.
    pub path: PathBuf,
    /// Where the weights come from.
    pub format: LoadFormat,
    /// Seed of dummy weights; without effect for [`LoadFormat::Auto`].
    pub seed: u64,
    /// Name that clients use; the folder's own name if `None`.
    pub served_model_name: Option<String>,
}

/// A model that has been read and checked, but for its weights: what they are read into depends on the backend.
pub struct OpenModel {
    /// Shapes and constants of the model.
    pub config: ModelConfig,
    /// What the router needs to serve it, but for the fingerprint, which takes as long as reading the weights.
    pub card: OpenCard,
    /// Where the weights come from.
    pub weights: WeightsSource,
}

/// Weights that are not read yet.
pub enum WeightsSource {
    /// The folder's files.
    Files(SafetensorsFolder),
    /// Random numbers.
    Dummy(DummyWeights),
}

impl WeightsSource {
    /// Reads the weights into the CPU's memory.
    pub fn load(&self, config: &ModelConfig) -> Result<Weights, ModelError> {
        match self {
            Self::Files(files) => Weights::build(config, files),
            Self::Dummy(dummy) => Weights::build(config, dummy),
        }
    }
}

impl OpenModel {
    /// Reads everything but the weights, which begin to be hashed.
    pub fn open(source: &ModelSource) -> Result<Self, ModelError> {
        let mut config = ModelConfig::read(&source.path)?;
        let (weights, digest) = match source.format {
            LoadFormat::Auto => {
                let files = SafetensorsFolder::open(&source.path)?;
                files.settle_tie(&mut config)?;
                files.check(&config)?;
                let digest = files.digest()?;
                (WeightsSource::Files(files), digest)
            }
            LoadFormat::Dummy => {
                let dummy = DummyWeights::new(source.seed);
                (WeightsSource::Dummy(dummy), WeightsDigest::known(dummy.digest()))
            }
        };
        let card = OpenCard::read(source, &config, digest)?;
        Ok(Self { config, card, weights })
    }

    /// Reads the weights into the CPU's memory. Takes long; call it off the async threads.
    pub fn load(self) -> Result<LoadedModel, ModelError> {
        let Self { config, card, weights } = self;
        let weights = weights.load(&config)?;
        Ok(LoadedModel { config, card: card.finish()?, weights })
    }
}

/// A model in the CPU's memory.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// Shapes and constants of the model.
    pub config: ModelConfig,
    /// What the router needs to serve it.
    pub card: ModelCard,
    /// The weights, as f32.
    pub weights: Weights,
}

impl LoadedModel {
    /// Reads everything. Takes as long as reading the weights takes; call it off the async threads.
    pub fn load(source: &ModelSource) -> Result<Self, ModelError> {
        OpenModel::open(source)?.load()
    }
}
