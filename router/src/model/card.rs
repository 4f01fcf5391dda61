//! The model card as it comes over gRPC: in parts, bounded, and checked before anything is made of it.

use std::collections::BTreeMap;

use disagg_core::ModelFingerprint;
use disagg_proto::limits::{
    CARD_BYTES_MAX, CARD_FILE_NAME_BYTES_MAX, CARD_FILES_MAX, SERVED_MODEL_NAME_BYTES_MAX,
};
use disagg_proto::v1;

/// A worker's card cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CardError {
    /// The first part must be the header.
    #[error("the first part of the card is not its header")]
    NoHeader,
    /// A header in a later part.
    #[error("the card has a second header")]
    SecondHeader,
    /// A field of the header is unusable.
    #[error("the card's {field} is {value}; it must be {rule}")]
    BadHeader {
        /// Name on the wire.
        field: &'static str,
        /// What came.
        value: String,
        /// What is allowed.
        rule: String,
    },
    /// A payload for no announced file, or beyond its announced size.
    #[error("file {name:?} was not announced, or is longer than announced")]
    Unannounced {
        /// As sent.
        name: String,
    },
    /// The stream ended early.
    #[error("file {name:?} has {got} of {size} bytes")]
    Short {
        /// Which file.
        name: String,
        /// Bytes that came.
        got: usize,
        /// Bytes announced.
        size: u64,
    },
    /// A file that every card needs.
    #[error("the card has no {0}")]
    MissingFile(&'static str),
    /// A text file that is not text.
    #[error("{name} is not UTF-8")]
    NotText {
        /// Which file.
        name: &'static str,
    },
    /// A JSON file that is not a JSON object.
    #[error("{name} is not valid JSON: {source}")]
    Json {
        /// Which file.
        name: &'static str,
        /// Where it went wrong.
        source: serde_json::Error,
    },
    /// The files do not make a tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] disagg_tokenizer::Error),
}

/// A complete card.
#[derive(Debug)]
pub(crate) struct Card {
    pub served_model_name: String,
    pub fingerprint: ModelFingerprint,
    pub max_model_len: u32,
    pub vocab_size: u32,
    pub created: u64,
    files: BTreeMap<String, Vec<u8>>,
}

impl Card {
    /// The bytes of a file of the model's folder.
    pub(crate) fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// A file as text.
    pub(crate) fn text(&self, name: &'static str) -> Result<Option<&str>, CardError> {
        let bytes = self.file(name);
        bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| CardError::NotText { name })).transpose()
    }

    /// A file as JSON.
    pub(crate) fn json(&self, name: &'static str) -> Result<Option<serde_json::Value>, CardError> {
        let bytes = self.file(name);
        bytes
            .map(|b| serde_json::from_slice(b).map_err(|source| CardError::Json { name, source }))
            .transpose()
    }
}

/// Puts a card together from its parts, refusing what the header did not announce.
#[derive(Debug, Default)]
pub(crate) struct CardAssembler {
    announced: Option<(Card, BTreeMap<String, u64>)>,
}

impl CardAssembler {
    /// Takes the next part.
    pub(crate) fn push(&mut self, part: v1::ModelCardPart) -> Result<(), CardError> {
        match (&mut self.announced, part.header) {
            (None, Some(header)) => {
                self.announced = Some(check_header(header)?);
                Ok(())
            }
            (None, None) => Err(CardError::NoHeader),
            (Some(_), Some(_)) => Err(CardError::SecondHeader),
            (Some((card, sizes)), None) => {
                let unannounced = || CardError::Unannounced { name: part.file.clone() };
                let size = sizes.get(&part.file).ok_or_else(unannounced)?;
                let file = card.files.get_mut(&part.file).ok_or_else(unannounced)?;
                if file.len() as u64 + part.payload.len() as u64 > *size {
                    return Err(unannounced());
                }
                file.extend_from_slice(&part.payload);
                Ok(())
            }
        }
    }

    /// The card, once the stream has ended.
    pub(crate) fn finish(self) -> Result<Card, CardError> {
        let (card, sizes) = self.announced.ok_or(CardError::NoHeader)?;
        for (name, size) in sizes {
            let got = card.files.get(&name).map_or(0, Vec::len);
            if got as u64 != size {
                return Err(CardError::Short { name, got, size });
            }
        }
        Ok(card)
    }
}

fn check_header(header: v1::ModelCardHeader) -> Result<(Card, BTreeMap<String, u64>), CardError> {
    let bad = |field, value: &dyn ToString, rule: &str| {
        Err(CardError::BadHeader { field, value: value.to_string(), rule: rule.to_owned() })
    };
    let name_bytes = header.served_model_name.len();
    if !(1..=SERVED_MODEL_NAME_BYTES_MAX).contains(&name_bytes) {
        let rule = format!("1 to {SERVED_MODEL_NAME_BYTES_MAX} bytes long");
        return bad("served_model_name", &name_bytes, &rule);
    }
    let Some(fingerprint) = header.model_fingerprint else {
        return bad("model_fingerprint", &"absent", "present");
    };
    if header.max_model_len < 2 {
        return bad("max_model_len", &header.max_model_len, "at least 2");
    }
    if header.vocab_size == 0 {
        return bad("vocab_size", &0, "over 0");
    }
    if header.files.len() > CARD_FILES_MAX as usize {
        return bad("files", &header.files.len(), &format!("at most {CARD_FILES_MAX}"));
    }
    let bytes = header.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.size));
    if bytes > CARD_BYTES_MAX {
        return bad("files", &bytes, &format!("at most {} MiB in all", CARD_BYTES_MAX >> 20));
    }
    let named = |file: &v1::ModelCardFile| (1..=CARD_FILE_NAME_BYTES_MAX).contains(&file.name.len());
    if !header.files.iter().all(named) {
        let rule = format!("names of 1 to {CARD_FILE_NAME_BYTES_MAX} bytes");
        return bad("files", &"a name of wrong length", &rule);
    }
    let sizes: BTreeMap<String, u64> =
        header.files.iter().map(|file| (file.name.clone(), file.size)).collect();
    if sizes.len() != header.files.len() {
        return bad("files", &"a name twice", "each file once");
    }
    let card = Card {
        served_model_name: header.served_model_name,
        fingerprint: crate::wire::fingerprint(fingerprint),
        max_model_len: header.max_model_len,
        vocab_size: header.vocab_size,
        created: header.created,
        files: sizes.keys().map(|name| (name.clone(), Vec::new())).collect(),
    };
    Ok((card, sizes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(files: &[(&str, u64)]) -> v1::ModelCardPart {
        let files =
            files.iter().map(|(name, size)| v1::ModelCardFile { name: (*name).to_owned(), size: *size });
        v1::ModelCardPart {
            header: Some(v1::ModelCardHeader {
                served_model_name: "m".to_owned(),
                model_fingerprint: Some(v1::Hash128 { high: 1, low: 2 }),
                kv_compat: None,
                max_model_len: 64,
                block_size: 4,
                vocab_size: 300,
                created: 0,
                files: files.collect(),
            }),
            ..Default::default()
        }
    }

    fn part(file: &str, payload: &str) -> v1::ModelCardPart {
        v1::ModelCardPart { header: None, file: file.to_owned(), payload: payload.to_owned().into() }
    }

    fn assemble(parts: impl IntoIterator<Item = v1::ModelCardPart>) -> Result<Card, CardError> {
        let mut assembler = CardAssembler::default();
        for part in parts {
            assembler.push(part)?;
        }
        assembler.finish()
    }

    #[test]
    fn files_come_in_parts() {
        let card = assemble([header(&[("a", 5), ("b", 0)]), part("a", "he"), part("a", "llo")]).unwrap();
        assert_eq!(card.file("a").unwrap(), b"hello");
        assert_eq!(card.file("b").unwrap(), b"");
        assert_eq!(card.file("c"), None);
    }

    #[test]
    fn what_was_not_announced_is_refused() {
        assert!(matches!(assemble([]), Err(CardError::NoHeader)));
        assert!(matches!(assemble([part("a", "x")]), Err(CardError::NoHeader)));
        assert!(matches!(assemble([header(&[]), header(&[])]), Err(CardError::SecondHeader)));
        assert!(matches!(
            assemble([header(&[("a", 1)]), part("b", "x")]),
            Err(CardError::Unannounced { .. })
        ));
        assert!(matches!(
            assemble([header(&[("a", 1)]), part("a", "xy")]),
            Err(CardError::Unannounced { .. })
        ));
        assert!(matches!(
            assemble([header(&[("a", 3)]), part("a", "xy")]),
            Err(CardError::Short { got: 2, .. })
        ));
    }

    #[test]
    fn a_card_has_bounds() {
        let huge = assemble([header(&[("a", u64::MAX), ("b", u64::MAX)])]);
        assert!(huge.unwrap_err().to_string().contains("at most 64 MiB"));
        assert!(
            assemble([header(&[("a", 1), ("a", 1)])]).unwrap_err().to_string().contains("each file once")
        );
        let names: Vec<String> = (0..33).map(|n| n.to_string()).collect();
        let files: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 0)).collect();
        assert!(assemble([header(&files)]).unwrap_err().to_string().contains("at most 32"));
    }
}
