//! What the router knows of a model: the card that workers serve, and what is made of it.

mod card;
mod defaults;
mod least_tokens;
mod template;
mod tokenizer;

#[cfg(test)]
#[path = "../../tests/router/support/tokenizer.rs"]
#[allow(unreachable_pub)] // shared with the integration tests
mod tokenizer_json;

use disagg_core::ModelFingerprint;
use disagg_tokenizer::CONFIG_FILE as TOKENIZER_CONFIG_FILE;
use disagg_tokenizer::{ADDED_TOKENS_FILE, SPECIAL_TOKENS_MAP_FILE, TOKENIZER_FILE};

pub(crate) use card::{Card, CardAssembler, CardError};
pub(crate) use defaults::SamplingDefaults;
pub(crate) use template::{ChatTemplate, FUNCTIONS, Render, TemplateError, TemplateValue};
pub(crate) use tokenizer::TextTokenizer;

/// One generation of a model: everything needed to turn a request into token ids, and token ids into text.
pub(crate) struct Model {
    /// The name that clients put into `model`.
    pub name: String,
    /// What makes two generations different.
    pub fingerprint: ModelFingerprint,
    /// Prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Seconds since the Unix epoch at which a worker loaded it.
    pub created: u64,
    /// Text to token ids and back.
    pub tokenizer: TextTokenizer,
    /// Conversations to text; absent for models that have no template. A template that does not parse is an error of
    /// chat requests alone: completions need none.
    pub template: Result<Option<ChatTemplate>, TemplateError>,
    /// Tokens that end the text by the model's own rules.
    pub eos_token_ids: Vec<u32>,
    /// What the model's makers advise where a request says nothing.
    pub sampling: SamplingDefaults,
}

impl Model {
    /// Builds everything from the card. Takes up to seconds for a large vocabulary: not for async threads.
    pub(crate) fn from_card(card: &Card) -> Result<Self, CardError> {
        let config = card.json("config.json")?;
        let generation = card.json("generation_config.json")?;
        let tokenizer_config = card.json(TOKENIZER_CONFIG_FILE)?;
        let loaded = disagg_tokenizer::load(&disagg_tokenizer::Files {
            tokenizer: card.file(TOKENIZER_FILE).ok_or(CardError::MissingFile(TOKENIZER_FILE))?,
            config: card.file(TOKENIZER_CONFIG_FILE),
            special_tokens_map: card.file(SPECIAL_TOKENS_MAP_FILE),
            added_tokens: card.file(ADDED_TOKENS_FILE),
        })?;
        let specials = loaded.named;
        let tokenizer = TextTokenizer::new(loaded.tokenizer);
        let eos = specials.get("eos_token").and_then(|token| tokenizer.id(token));
        let template = ChatTemplate::source(card.text("chat_template.jinja")?, tokenizer_config.as_ref())
            .map(|source| ChatTemplate::new(&source, specials))
            .transpose();
        if let Err(error) = &template {
            tracing::error!(
                model = card.served_model_name,
                %error,
                "the model's chat template does not parse: chat requests are refused, completions are served"
            );
        }
        Ok(Self {
            name: card.served_model_name.clone(),
            fingerprint: card.fingerprint,
            max_model_len: card.max_model_len,
            vocab_size: card.vocab_size,
            created: card.created,
            eos_token_ids: defaults::eos_token_ids(
                generation.as_ref(),
                config.as_ref(),
                eos,
                card.vocab_size,
            ),
            sampling: SamplingDefaults::from_generation_config(generation.as_ref()),
            tokenizer,
            template,
        })
    }

    /// What `system_fingerprint` shows: it changes when the model does.
    pub(crate) fn system_fingerprint(&self) -> String {
        format!("fp_{:.12}", self.fingerprint.to_string())
    }
}

/// The tokenizer of unit tests.
#[cfg(test)]
pub(crate) mod test_tokenizer {
    use super::TextTokenizer;
    pub(crate) use super::tokenizer_json::{BOS, EOS, byte_token, tokenizer_json};

    /// Byte-level, adds no begin-of-text token.
    pub(crate) fn byte_level() -> TextTokenizer {
        TextTokenizer::from_json(tokenizer_json(false).as_bytes()).unwrap()
    }

    /// Byte-level, puts a begin-of-text token first.
    pub(crate) fn byte_level_with_bos() -> TextTokenizer {
        TextTokenizer::from_json(tokenizer_json(true).as_bytes()).unwrap()
    }
}
