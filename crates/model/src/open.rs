//! Opening a model: everything is read and checked but the weights.

use std::path::PathBuf;

use crate::card::OpenCard;
use crate::error::ModelError;
use crate::spec::ModelSpec;
use crate::weights::{DummyWeights, SafetensorsFolder, TensorSource, WeightsDigest};

/// Which weights a model is opened with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WeightsChoice {
    /// The folder's safetensors files.
    #[default]
    Files,
    /// Random numbers of the shapes that `config.json` gives; for benchmarks.
    Dummy {
        /// Equal seeds give equal weights.
        seed: u64,
    },
}

/// Which model to open, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelSource {
    /// Folder of the model.
    pub path: PathBuf,
    /// Where the weights come from.
    pub weights: WeightsChoice,
    /// Name that clients use; the folder's own name if `None`.
    pub served_model_name: Option<String>,
}

impl ModelSource {
    /// A folder with its own weights and its own name.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), weights: WeightsChoice::Files, served_model_name: None }
    }
}

/// A model that has been read and checked, but for its weights: what they are read into depends on the backend.
pub struct OpenModel {
    /// What it consists of.
    pub spec: ModelSpec,
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
    /// As what gives tensors by name.
    pub fn tensors(&self) -> &dyn TensorSource {
        match self {
            Self::Files(files) => files,
            Self::Dummy(dummy) => dummy,
        }
    }
}

impl OpenModel {
    /// Reads everything but the weights, which begin to be hashed.
    pub fn open(source: &ModelSource) -> Result<Self, ModelError> {
        let mut spec = ModelSpec::read(&source.path)?;
        let (weights, digest) = match source.weights {
            WeightsChoice::Files => {
                let files = SafetensorsFolder::open(&source.path)?;
                files.settle_tie(&mut spec)?;
                files.check(&spec)?;
                let digest = files.digest()?;
                (WeightsSource::Files(files), digest)
            }
            WeightsChoice::Dummy { seed } => {
                let dummy = DummyWeights::new(seed);
                (WeightsSource::Dummy(dummy), WeightsDigest::known(dummy.digest()))
            }
        };
        let card = OpenCard::read(source, &spec, digest)?;
        Ok(Self { spec, card, weights })
    }
}
