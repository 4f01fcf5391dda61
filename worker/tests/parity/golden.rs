//! The reference's data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disagg_worker::backend::candle::{Weights, load_weights};
use disagg_worker::model::{ModelCard, ModelSource, ModelSpec, OpenModel, tiny};
use serde::Deserialize;

/// Folders in `tests/parity/data`.
const CASES: [&str; 12] = [
    "llama",
    "llama3-rope",
    "mistral",
    "qwen2",
    "qwen3",
    "llama-untied-head",
    "qwen2-no-window",
    "mistral-window",
    "qwen2-window",
    "qwen3-window",
    "qwen3-moe",
    "qwen3-moe-unscaled",
];

/// What transformers computed; see `golden.py`.
#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) margin: f64,
    pub(crate) distinct: usize,
    pub(crate) prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
pub(crate) struct GoldenPrompt {
    pub(crate) prompt: Vec<u32>,
    /// Greedy continuation.
    pub(crate) output: Vec<u32>,
    /// Smallest difference of the two largest logits, over the steps.
    pub(crate) min_margin: f64,
    /// Of the first drawn token.
    pub(crate) first_logits: Vec<f32>,
}

/// A model and the reference's results for it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) model: Model,
    pub(crate) golden: Golden,
}

/// A model in main memory.
pub(crate) struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) card: ModelCard,
    pub(crate) weights: Arc<Weights>,
}

impl Model {
    fn load(folder: &Path) -> Self {
        let OpenModel { spec, card, weights } = OpenModel::open(&ModelSource::of(folder)).expect("a model");
        let weights = load_weights(&spec, weights.tensors()).expect("weights");
        Self { spec, card: card.finish().expect("hashed"), weights: Arc::new(weights) }
    }
}

impl Case {
    pub(crate) fn load(name: &'static str) -> Self {
        let path = folder(name);
        let golden = std::fs::read(path.join("golden.json")).expect("golden.json");
        let golden = serde_json::from_slice(&golden).expect("as golden.py writes it");
        Self { name, model: Model::load(&path), golden }
    }

    /// The small model made on the spot, for which there is no reference.
    pub(crate) fn tiny(folder: &Path) -> Self {
        tiny::write(folder, 1).expect("written");
        let golden = Golden { margin: 0.0, distinct: 0, prompts: Vec::new() };
        Self { name: "tiny", model: Model::load(folder), golden }
    }

    pub(crate) fn all() -> Vec<Self> {
        CASES.into_iter().map(Self::load).collect()
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/data").join(name)
}

/// The folders are complete models with the small model's tokenizer. With `UPDATE_GOLDEN` set its files are written.
pub(crate) fn check_tokenizer_files() {
    for case in CASES {
        for (name, content) in tiny::tokenizer_files() {
            let path = folder(case).join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &content).expect("written");
            }
            let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
            let found =
                std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(parse(&found) == parse(&content), "{} is out of date; see golden.py", path.display());
        }
    }
}
