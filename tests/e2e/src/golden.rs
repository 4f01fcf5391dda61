//! Golden data: small models, and what Hugging Face transformers says on them (`tests/parity`).

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A model folder with prompts and their greedy continuations.
#[derive(Clone, Debug)]
pub struct Golden {
    /// The model folder.
    pub model: PathBuf,
    /// Shortest first.
    pub prompts: Vec<GoldenPrompt>,
}

/// One prompt.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct GoldenPrompt {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// The greedy continuation, whatever end-of-sequence tokens it has.
    pub output: Vec<u32>,
    /// Smallest distance, over all steps, between the two largest logits.
    pub min_margin: f64,
}

#[derive(Deserialize)]
struct File {
    prompts: Vec<GoldenPrompt>,
}

impl Golden {
    /// The data of one case, for example `llama`. Panics when it cannot tell right from wrong: outputs must vary, and
    /// no step may hang on rounding.
    pub fn load(case: &str) -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../parity/data").join(case);
        let path = model.join("golden.json");
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file: File =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(file.prompts.len() >= 8, "{} has few prompts", path.display());
        for prompt in &file.prompts {
            let distinct: std::collections::BTreeSet<_> = prompt.output.iter().collect();
            assert!(distinct.len() >= 16 && prompt.min_margin > 1e-3, "{} has a weak prompt", path.display());
        }
        Self { model, prompts: file.prompts }
    }

    /// Text of token ids, decoded at once by the model's tokenizer.
    pub fn text(&self, tokens: &[u32]) -> String {
        let tokenizer =
            tokenizers::Tokenizer::from_file(self.model.join("tokenizer.json")).expect("tokenizer.json");
        tokenizer.decode(tokens, true).expect("known tokens")
    }
}
