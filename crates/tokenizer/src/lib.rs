//! A model's tokenizer, made from the files of its folder as `AutoTokenizer` of Hugging Face transformers makes it.
//!
//! `tokenizer.json` is not the whole story: `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`
//! may name tokens that it lacks, and change the flags of those that it has. A tokenizer made from `tokenizer.json`
//! alone cuts such tokens into pieces, and nobody notices but the model. Worker and router both use this crate: the
//! worker refuses a folder before it loads anything, the router tokenizes with the same rules.

mod declared;

use std::collections::BTreeMap;

use serde::Deserialize;
use tokenizers::Tokenizer;

use declared::Declared;

/// The vocabulary, and the pipeline from text to token ids and back.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Named special tokens, added tokens, and the chat template of older folders.
pub const CONFIG_FILE: &str = "tokenizer_config.json";
/// Named special tokens of older folders.
pub const SPECIAL_TOKENS_MAP_FILE: &str = "special_tokens_map.json";
/// Added tokens of older folders, with their ids.
pub const ADDED_TOKENS_FILE: &str = "added_tokens.json";

/// The bytes of the tokenizer's files. All but `tokenizer.json` may be missing from a folder.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// `tokenizer.json`
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`
    pub config: Option<&'a [u8]>,
    /// `special_tokens_map.json`
    pub special_tokens_map: Option<&'a [u8]>,
    /// `added_tokens.json`
    pub added_tokens: Option<&'a [u8]>,
}

/// A tokenizer with every token that the folder declares.
#[derive(Debug)]
pub struct Loaded {
    /// Encodes and decodes. Neither cuts nor pads, whatever `tokenizer.json` says: some files keep that from training.
    pub tokenizer: Tokenizer,
    /// Special tokens by name, such as `bos_token`: variables of chat templates.
    pub named: BTreeMap<String, String>,
}

/// The files do not make a tokenizer. The message, with the file before it, names the key and what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct Error {
    /// Which of the files.
    pub file: &'static str,
    /// Key and rule.
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Not the JSON that it should be.
    #[error("{0}")]
    Json(serde_json::Error),
    /// The tokenizers crate refuses it.
    #[error("is no tokenizer that we know: {0}")]
    Tokenizer(tokenizers::Error),
    /// A key has a value of the wrong form.
    #[error("{key}: {value} is not {wanted}")]
    Form {
        /// The key, with those above it.
        key: String,
        /// What stands there.
        value: String,
        /// What should stand there.
        wanted: &'static str,
    },
    /// A declared id is not the one that the token gets: the vocabulary has the token under another id, or has another
    /// token there, or ends before it.
    #[error(
        "{key}: token {token:?} is declared with id {declared}, but {} in this vocabulary; correct the id, or remove the \
         entry", match actual { Some(id) => format!("gets id {id}"), None => "is not added".to_owned() }
    )]
    Id {
        /// The key, with those above it.
        key: String,
        /// The token's text.
        token: String,
        /// By the file.
        declared: u32,
        /// By the vocabulary; added tokens that it lacks follow its end, in the order of their declared ids. None if
        /// another token has been declared with this id elsewhere.
        actual: Option<u32>,
    },
}

/// Makes the tokenizer. Takes up to seconds for a large vocabulary: not for async threads.
pub fn load(files: &Files<'_>) -> Result<Loaded, Error> {
    let mut tokenizer = Tokenizer::from_bytes(files.tokenizer)
        .map_err(|error| Error { file: TOKENIZER_FILE, problem: Problem::Tokenizer(error) })?;
    let own = own_added_tokens(files.tokenizer)?;
    check_ids(&tokenizer, &own)?;
    let declared = Declared::read(files, &own)?;
    let failed = |error| Error { file: CONFIG_FILE, problem: Problem::Tokenizer(error) };
    // In this order transformers adds them too, and the order decides the ids of those that the vocabulary lacks.
    tokenizer.add_tokens(declared.added.values().cloned()).map_err(failed)?;
    let missing = declared.missing_specials(&tokenizer);
    tokenizer.add_tokens(missing).map_err(failed)?;
    check_ids(&tokenizer, &declared.ids)?;
    tokenizer.set_encode_special_tokens(declared.split_special_tokens);
    let failed = |error| Error { file: TOKENIZER_FILE, problem: Problem::Tokenizer(error) };
    tokenizer.with_truncation(None).map_err(failed)?;
    tokenizer.with_padding(None);
    Ok(Loaded { tokenizer, named: declared.named_texts() })
}

/// An id that some file declares for a token.
#[derive(Debug)]
struct DeclaredId {
    file: &'static str,
    key: String,
    token: tokenizers::AddedToken,
    id: u32,
}

/// Refuses the first declared id that is not the token's.
fn check_ids(tokenizer: &Tokenizer, declared: &[DeclaredId]) -> Result<(), Error> {
    for DeclaredId { file, key, token, id } in declared {
        let actual = tokenizer.token_to_id(&token.content);
        // Tokens without text are not added at all, and can never come out of a text.
        if actual != Some(*id) && !token.content.is_empty() {
            let problem =
                Problem::Id { key: key.clone(), token: token.content.clone(), declared: *id, actual };
            return Err(Error { file, problem });
        }
    }
    Ok(())
}

/// `added_tokens` of `tokenizer.json`.
fn own_added_tokens(json: &[u8]) -> Result<Vec<DeclaredId>, Error> {
    #[derive(Deserialize)]
    struct Own {
        #[serde(default)]
        added_tokens: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        id: u32,
        #[serde(flatten)]
        token: tokenizers::AddedToken,
    }
    let own: Own = serde_json::from_slice(json)
        .map_err(|error| Error { file: TOKENIZER_FILE, problem: Problem::Json(error) })?;
    let entry =
        |Entry { id, token }| DeclaredId { file: TOKENIZER_FILE, key: "added_tokens".to_owned(), token, id };
    Ok(own.added_tokens.into_iter().map(entry).collect())
}
