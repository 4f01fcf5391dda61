//! Whether a folder has the tensors of a model's tables, and just these.
//!
//! Checked before anything large is read. A tensor too many matters as much as one too few: a model is wrong if a bias is
//! not added, and nothing else would show it. Tensors of other parts than the decoder, such as the head of a classifier,
//! change no answer; they are named in one line of the log.

use std::collections::BTreeMap;

use super::{SafetensorsFolder, TensorSource};
use crate::error::ModelError;
use crate::spec::{ModelSpec, TensorSpec};

/// Everything that answers depend on begins with one of these.
const DECODER: [&str; 2] = ["model.", "lm_head."];
/// Names of tensors that the log shows.
const NAMES_SHOWN: usize = 5;

/// Computed from the configuration; some old files have it all the same.
const NOT_NEEDED: &str = ".rotary_emb.inv_freq";

impl SafetensorsFolder {
    /// Refuses a folder that lacks a tensor, has one of another shape or dtype, or has one in a layer that the
    /// configuration does not know.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        // In order of their names, so that the same folder always gives the same message.
        let expected: BTreeMap<&str, &TensorSpec> =
            spec.tensors().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        for (name, tensor) in &expected {
            self.format(name, &tensor.shape)?;
        }
        let head = spec.own_head().name;
        // Of a tied head that is equal to the embedding nothing is lost.
        let unused = |name: &&String| !expected.contains_key(name.as_str()) && **name != head;
        let mut unused: Vec<&String> = self.names().filter(unused).collect();
        unused.sort();
        let strange = |name: &&&String| {
            DECODER.iter().any(|part| name.starts_with(part)) && !name.ends_with(NOT_NEEDED)
        };
        if let Some(name) = unused.iter().find(strange) {
            let layers = spec.layers.len();
            let message = format!(
                "config.json does not ask for it ({layers} layers, biases and norms as this architecture has them): \
                 the model would be computed without it"
            );
            return Err(self.refuse(name, message));
        }
        if !unused.is_empty() {
            let names: Vec<&str> = unused.iter().take(NAMES_SHOWN).map(|name| name.as_str()).collect();
            tracing::info!(
                tensors = unused.len(),
                ?names,
                "the files have tensors that this model does not use"
            );
        }
        Ok(())
    }

    /// Unties the head from the embedding if the files have a head of its own, as transformers does: the file knows
    /// better than `tie_word_embeddings`. Reads both, up to their first difference, if both are there.
    pub(crate) fn settle_tie(&self, spec: &mut ModelSpec) -> Result<(), ModelError> {
        let own = spec.own_head();
        let (head, embedding) = (own.name.as_str(), spec.embedding.name.as_str());
        if spec.head.is_none() && self.has(head) && self.has(embedding) && !self.equal(head, embedding)? {
            tracing::warn!(
                "config.json: tie_word_embeddings is true, but the files have an {head} that differs from {embedding}: \
                 it is used"
            );
            spec.head = Some(own);
        }
        Ok(())
    }
}
