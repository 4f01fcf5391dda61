//! The model card: what a router needs to serve a model whose files only the workers read.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use disagg_core::{KvCompat, ModelFingerprint};
use disagg_engine::KvLayout;
use disagg_tokenizer::{ADDED_TOKENS_FILE, SPECIAL_TOKENS_MAP_FILE, TOKENIZER_FILE};
use disagg_tokenizer::{CONFIG_FILE as TOKENIZER_CONFIG_FILE, Files};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::config::CONFIG_FILE;
use crate::error::{ModelError, read_bounded};
use crate::open::{ModelSource, WeightsChoice};
use crate::spec::ModelSpec;
use crate::weights::WeightsDigest;

/// Of all files of a card together.
pub const CARD_BYTES_MAX: u64 = 64 << 20;

const GENERATION_FILE: &str = "generation_config.json";

/// The card's files, in the order in which they are sent and hashed. Those that a folder lacks are left out.
pub const CARD_FILES: [&str; 7] = [
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    ADDED_TOKENS_FILE,
    "chat_template.jinja",
];

/// One file of the folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CardFile {
    /// Its name in the folder.
    pub name: &'static str,
    /// Its content.
    pub bytes: Bytes,
}

/// What a worker tells of its model. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelCard {
    /// Name that clients use.
    pub served_model_name: String,
    /// Tells models apart: see [`ModelFingerprint`].
    pub fingerprint: ModelFingerprint,
    /// Longest sequence that the model is made for, in tokens; a worker may be set to less.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// When the model was read, in seconds since the Unix epoch.
    pub created_seconds: u64,
    /// `config.json` and what there is of tokenizer, chat template and generation settings.
    pub files: Vec<CardFile>,
}

/// A card whose files are read and checked, while the weights may still be being hashed.
#[derive(Debug)]
pub struct OpenCard {
    /// Of the files alone, until [`OpenCard::finish`].
    card: ModelCard,
    weights: WeightsDigest,
}

impl OpenCard {
    /// Reads and checks the card's files. `weights` stands for the weights.
    pub(crate) fn read(
        source: &ModelSource,
        spec: &ModelSpec,
        weights: WeightsDigest,
    ) -> Result<Self, ModelError> {
        let card = ModelCard::read(source, spec)?;
        card.check(&source.path)?;
        Ok(Self { card, weights })
    }

    /// Longest sequence that the model is made for, in tokens.
    pub fn max_model_len(&self) -> u32 {
        self.card.max_model_len
    }

    /// Waits until the weights are hashed.
    pub fn finish(self) -> Result<ModelCard, ModelError> {
        let fingerprint = fingerprint(&self.card.files, self.weights.finish()?);
        Ok(ModelCard { fingerprint, ..self.card })
    }
}

impl ModelCard {
    /// Reads the card's files. The fingerprint is that of the files, without weights.
    fn read(source: &ModelSource, spec: &ModelSpec) -> Result<Self, ModelError> {
        let mut files = Vec::new();
        let mut left = CARD_BYTES_MAX;
        for name in CARD_FILES {
            let path = source.path.join(name);
            // What is there and no file is refused, not passed over.
            if path.exists() {
                let bytes = read_bounded(&path, left)?;
                left -= bytes.len() as u64;
                files.push(CardFile { name, bytes: bytes.into() });
            }
        }
        // Dummy weights serve benchmarks with token ids, for which a lone config.json will do.
        if source.weights == WeightsChoice::Files && !files.iter().any(|file| file.name == TOKENIZER_FILE) {
            return Err(ModelError::Missing {
                path: source.path.clone(),
                message: format!(
                    "{TOKENIZER_FILE} is not there; other tokenizer formats have to be converted"
                ),
            });
        }
        Ok(Self {
            served_model_name: source.served_model_name.clone().unwrap_or_else(|| folder_name(&source.path)),
            fingerprint: fingerprint(&files, 0),
            max_model_len: spec.max_model_len,
            vocab_size: spec.vocab_size as u32,
            created_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            files,
        })
    }

    /// Refuses files that the router could not use: better here, by name, than a worker that nobody can talk to.
    /// `folder` is for errors.
    fn check(&self, folder: &Path) -> Result<(), ModelError> {
        let path = |name: &str| folder.join(name);
        for name in [GENERATION_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE] {
            let Some(bytes) = self.file(name) else { continue };
            let _: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)
                .map_err(|source| ModelError::Json { path: path(name), source })?;
        }
        if let Some(bytes) = self.file(GENERATION_FILE) {
            self.check_eos(&path(GENERATION_FILE), bytes)?;
        }
        if let Some(template) = self.file("chat_template.jinja")
            && std::str::from_utf8(template).is_err()
        {
            let message = "is not UTF-8".to_owned();
            return Err(ModelError::TokenizerFile { path: path("chat_template.jinja"), message });
        }
        self.check_tokenizer(folder)
    }

    /// The tokenizer with the tokens of all its files, as the router makes it.
    fn check_tokenizer(&self, folder: &Path) -> Result<(), ModelError> {
        let optional = |name| self.file(name).map(|bytes| &bytes[..]);
        let Some(tokenizer) = optional(TOKENIZER_FILE) else { return Ok(()) };
        let files = Files {
            tokenizer,
            config: optional(TOKENIZER_CONFIG_FILE),
            special_tokens_map: optional(SPECIAL_TOKENS_MAP_FILE),
            added_tokens: optional(ADDED_TOKENS_FILE),
        };
        let loaded = disagg_tokenizer::load(&files).map_err(|error| ModelError::TokenizerFile {
            path: folder.join(error.file),
            message: error.problem.to_string(),
        })?;
        // Some fine-tunes add tokens that they never use; requests with them are refused one by one.
        let tokens = loaded.tokenizer.get_vocab_size(true);
        if tokens > self.vocab_size as usize {
            tracing::warn!(
                tokens,
                vocab_size = self.vocab_size,
                "the tokenizer has more tokens than the model's embedding has rows: requests with the tokens beyond it \
                 are refused"
            );
        }
        Ok(())
    }

    /// `eos_token_id` is a token or a list of them; what is neither would make answers without an end.
    fn check_eos(&self, path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
        let config: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        let is_token =
            |value: &serde_json::Value| value.as_u64().is_some_and(|id| id < u64::from(self.vocab_size));
        let good = match config.get("eos_token_id") {
            None | Some(serde_json::Value::Null) => true,
            Some(serde_json::Value::Array(ids)) => ids.iter().all(is_token),
            Some(id) => is_token(id),
        };
        if good {
            return Ok(());
        }
        Err(ModelError::Config {
            path: path.to_owned(),
            key: "eos_token_id".to_owned(),
            message: format!(
                "{} is no token or list of tokens below vocab_size, {}",
                config["eos_token_id"], self.vocab_size
            ),
        })
    }

    /// Content of one file.
    pub fn file(&self, name: &str) -> Option<&Bytes> {
        self.files.iter().find(|file| file.name == name).map(|file| &file.bytes)
    }
}

/// Last part of the path, following links such as `.` and `latest`.
fn folder_name(path: &Path) -> String {
    let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    absolute.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// xxh3-128 over names, lengths and contents of the files, and the weights' digest.
fn fingerprint(files: &[CardFile], weights_digest: u128) -> ModelFingerprint {
    let mut hasher = Xxh3::new();
    for file in files {
        hasher.update(&(file.name.len() as u64).to_le_bytes());
        hasher.update(file.name.as_bytes());
        hasher.update(&(file.bytes.len() as u64).to_le_bytes());
        hasher.update(&file.bytes);
    }
    hasher.update(&weights_digest.to_le_bytes());
    ModelFingerprint(hasher.digest128())
}

/// What two workers must have equal to hand KV to each other: fingerprint, dtype and layout of the bytes, and block
/// size. Layers and heads follow from the fingerprint; the number of heads per worker may differ.
pub fn kv_compat(fingerprint: ModelFingerprint, layout: &KvLayout) -> KvCompat {
    let identity = format!(
        "{fingerprint} dtype={} layout={} block_size={}",
        layout.dtype.as_str(),
        KvLayout::VERSION,
        layout.block_size
    );
    KvCompat(xxh3_128(identity.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use disagg_engine::KvDtype;

    #[test]
    fn whatever_changes_the_bytes_changes_the_identity() {
        let file = |name, bytes: &'static str| CardFile { name, bytes: Bytes::from_static(bytes.as_bytes()) };
        let base = [file("config.json", "{}"), file("tokenizer.json", "ab")];
        let prints = [
            fingerprint(&base, 1),
            fingerprint(&base, 2),
            fingerprint(&base[..1], 1),
            // The bytes of both files and of what stands between them, as one file.
            fingerprint(&[file("config.json", "{}\u{e}\0\0\0\0\0\0\0tokenizer.jsonab")], 1),
            fingerprint(&[file("config.json", "{}"), file("chat_template.jinja", "ab")], 1),
        ];
        for (index, print) in prints.iter().enumerate() {
            assert!(!prints[..index].contains(print), "{index}");
        }

        let layout = KvLayout { layers: 2, kv_heads: 4, head_dim: 8, block_size: 16, dtype: KvDtype::F32 };
        let compat = kv_compat(prints[0], &layout);
        assert_ne!(compat, kv_compat(prints[1], &layout));
        assert_ne!(compat, kv_compat(prints[0], &KvLayout { block_size: 32, ..layout }));
        assert_ne!(compat, kv_compat(prints[0], &KvLayout { dtype: KvDtype::Bf16, ..layout }));
        // Half of the heads on each of two workers: the handoff converts that.
        assert_eq!(compat, kv_compat(prints[0], &KvLayout { kv_heads: 2, ..layout }));
    }
}
