//! The tokens that a folder's files declare beside `tokenizer.json`, by the rules of transformers 5
//! (`PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`).
//!
//! 1. `added_tokens_decoder` of `tokenizer_config.json` lists tokens with ids and flags. If it is there,
//!    `special_tokens_map.json` and `added_tokens.json` are not looked at. Otherwise the map's entries replace those of
//!    the config, and `added_tokens.json` lists tokens with ids; a token of `tokenizer.json` wins over one of its id.
//! 2. All of these are added in the order of their ids. A token that `tokenizer.json` has with other flags takes the
//!    declared flags. The ids themselves are not used: a token that the vocabulary lacks comes after its end. That is
//!    why an id that does not come out as declared is refused (see [`super::Problem::Id`]).
//! 3. Special tokens that are only named (`bos_token`, … and any other key that ends in `_token`), and then those of
//!    `extra_special_tokens` or of its former name `additional_special_tokens`, are added after them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use tokenizers::{AddedToken, Tokenizer};

use super::{ADDED_TOKENS_FILE, CONFIG_FILE, DeclaredId, Error, Files, Problem, SPECIAL_TOKENS_MAP_FILE};

/// Names that transformers knows itself, in the order in which it adds their tokens.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const NAME_END: &str = "_token";
const DECODER: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
/// What [`EXTRA`] was called before transformers 5.
const ADDITIONAL: &str = "additional_special_tokens";
const TOKEN_FORM: &str = "a token: a string, or an object with content";

/// What the files declare, with the conflicts between them settled.
#[derive(Debug)]
pub(super) struct Declared {
    /// Tokens that have an id somewhere, by it.
    pub(super) added: BTreeMap<u32, AddedToken>,
    /// The ids that are promised.
    pub(super) ids: Vec<DeclaredId>,
    /// Text that spells a special token is cut like any other text.
    pub(super) split_special_tokens: bool,
    /// Special tokens by name, in the order in which they are added.
    named: Vec<(String, AddedToken)>,
    /// Special tokens without a name.
    extra: Vec<AddedToken>,
}

impl Declared {
    /// Reads the files. `own` are the added tokens of `tokenizer.json`.
    pub(super) fn read(files: &Files<'_>, own: &[DeclaredId]) -> Result<Self, Error> {
        let config = File::read(CONFIG_FILE, files.config)?;
        let has_decoder = config.fields.position(DECODER).is_some();
        // Once the config lists its tokens, the older files count no more.
        let older = |file, bytes: Option<_>| File::read(file, bytes.filter(|_| !has_decoder));
        let map = older(SPECIAL_TOKENS_MAP_FILE, files.special_tokens_map)?;
        let mut names = Names::read(&config)?;
        names.replace_by(&map)?;

        let mut ids = config.added_tokens_decoder()?;
        let older_added = older(ADDED_TOKENS_FILE, files.added_tokens)?;
        for (text, raw) in &older_added.fields.0 {
            let special = names.is_special(text);
            let token = AddedToken::from(text.as_str(), special);
            ids.push(DeclaredId {
                file: ADDED_TOKENS_FILE,
                key: text.clone(),
                token,
                id: older_added.id(text, raw)?,
            });
        }
        let mut added: BTreeMap<u32, AddedToken> =
            ids.iter().map(|declared| (declared.id, declared.token.clone())).collect();
        if !has_decoder {
            added.extend(own.iter().map(|own| (own.id, own.token.clone())));
        }

        let Names { mut named, extra, .. } = names;
        let by_text: HashMap<&str, &AddedToken> =
            added.values().map(|token| (token.content.as_str(), token)).collect();
        for (_, token) in named.iter_mut().filter(|(name, _)| NAMES.contains(&name.as_str())) {
            if let Some(added) = by_text.get(token.content.as_str()) {
                *token = (*added).clone();
            }
        }
        let own: HashMap<&str, &AddedToken> =
            own.iter().map(|own| (own.token.content.as_str(), &own.token)).collect();
        let names: HashSet<String> = named.iter().map(|(_, token)| token.content.clone()).collect();
        for token in added.values_mut() {
            // What `tokenizer.json` has just like this stays as it is, even if it is named.
            if own.get(token.content.as_str()) != Some(&&*token) {
                token.special |= names.contains(&token.content);
            }
        }
        let order = |name: &str| NAMES.iter().position(|known| *known == name).unwrap_or(NAMES.len());
        named.sort_by_key(|(name, _)| order(name));
        Ok(Self { added, ids, split_special_tokens: config.flag("split_special_tokens")?, named, extra })
    }

    /// The special tokens that are not among the tokenizer's added tokens yet, in order.
    pub(super) fn missing_specials(&self, tokenizer: &Tokenizer) -> Vec<AddedToken> {
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut there: HashSet<&str> = added.values().map(|token| token.content.as_str()).collect();
        let specials = self.named.iter().map(|(_, token)| token).chain(&self.extra);
        specials.filter(|token| there.insert(&token.content)).cloned().map(|t| t.special(true)).collect()
    }

    /// Texts of the special tokens by name.
    pub(super) fn named_texts(self) -> BTreeMap<String, String> {
        self.named.into_iter().map(|(name, token)| (name, token.content)).collect()
    }
}

/// Special tokens of `tokenizer_config.json`, and what `special_tokens_map.json` makes of them.
struct Names {
    named: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
    /// Whether the config speaks of unnamed special tokens at all.
    has_extra: bool,
    /// Unnamed ones of the map under their former key, which do not make a token of `added_tokens.json` special.
    from_map: usize,
}

impl Names {
    fn read(config: &File) -> Result<Self, Error> {
        let mut names = Self { named: Vec::new(), extra: Vec::new(), has_extra: false, from_map: 0 };
        names.name_all(config)?;
        match config.fields.value(EXTRA) {
            Some(Value::Object(_)) => {
                let nested: Object = config.parse(EXTRA)?;
                for (name, raw) in &nested.0 {
                    let key = format!("{EXTRA}.{name}");
                    let token = config.token(&key, &parsed(raw))?;
                    names.set(name, token.ok_or_else(|| config.form(&key, &parsed(raw), TOKEN_FORM))?);
                }
            }
            Some(Value::Array(list)) if !list.is_empty() => {
                names.extra = config.tokens(EXTRA, &list)?;
                names.has_extra = true;
            }
            Some(value @ (Value::Bool(_) | Value::Number(_) | Value::String(_))) => {
                return Err(config.form(EXTRA, &value, "a list or an object of tokens"));
            }
            None | Some(_) => {
                if let Some(value) = config.fields.value(ADDITIONAL).filter(|value| !value.is_null()) {
                    names.extra = config.list_of_tokens(ADDITIONAL, &value)?;
                    names.has_extra = true;
                }
            }
        }
        Ok(names)
    }

    fn replace_by(&mut self, map: &File) -> Result<(), Error> {
        self.name_all(map)?;
        if let Some(value @ Value::Array(_)) = map.fields.value(EXTRA) {
            for token in map.list_of_tokens(EXTRA, &value)? {
                if !self.extra.iter().any(|known| known.content == token.content) {
                    self.extra.push(token);
                }
            }
        } else if let Some(value) = map.fields.value(ADDITIONAL).filter(|value| !value.is_null())
            && !self.has_extra
        {
            let tokens = map.list_of_tokens(ADDITIONAL, &value)?;
            self.from_map = tokens.len();
            self.extra.extend(tokens);
        }
        Ok(())
    }

    /// Takes every key of `file` that names a token.
    fn name_all(&mut self, file: &File) -> Result<(), Error> {
        for (name, raw) in file.fields.0.iter().filter(|(name, _)| name.ends_with(NAME_END)) {
            let value = parsed(raw);
            match file.token(name, &value) {
                Ok(Some(token)) => self.set(name, token),
                Ok(None) => {}
                // Other keys of this ending are switches, such as `add_bos_token`.
                Err(_) if !NAMES.contains(&name.as_str()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, token: AddedToken) {
        match self.named.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = token,
            None => self.named.push((name.to_owned(), token)),
        }
    }

    /// Whether a token of `added_tokens.json` is one of these.
    fn is_special(&self, text: &str) -> bool {
        let known = self.named.iter().filter(|(name, _)| NAMES.contains(&name.as_str()));
        let early = &self.extra[..self.extra.len() - self.from_map];
        known.map(|(_, token)| token).chain(early).any(|token| token.content == text)
    }
}

/// A file of named values; empty if the folder lacks it.
struct File {
    name: &'static str,
    fields: Object,
}

impl File {
    fn read(name: &'static str, bytes: Option<&[u8]>) -> Result<Self, Error> {
        let fields = bytes.map_or_else(|| Ok(Object::default()), serde_json::from_slice);
        let fields = fields.map_err(|error| Error { file: name, problem: Problem::Json(error) })?;
        Ok(Self { name, fields })
    }

    fn form(&self, key: &str, value: &Value, wanted: &'static str) -> Error {
        const CHARS_MAX: usize = 100;
        let value = value.to_string().chars().take(CHARS_MAX).collect();
        Error { file: self.name, problem: Problem::Form { key: key.to_owned(), value, wanted } }
    }

    /// The object under `key`.
    fn parse(&self, key: &str) -> Result<Object, Error> {
        let at = self.fields.position(key);
        let parsed = at.map(|at| serde_json::from_str(self.fields.0[at].1.get())).transpose();
        parsed
            .map(Option::unwrap_or_default)
            .map_err(|error| Error { file: self.name, problem: Problem::Json(error) })
    }

    fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.fields.value(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(value) => Err(self.form(key, &value, "true or false")),
        }
    }

    /// A special token as `value` has it; none if it is null.
    fn token(&self, key: &str, value: &Value) -> Result<Option<AddedToken>, Error> {
        match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(AddedToken::from(text.as_str(), true))),
            Value::Object(_) => self.flagged(key, value, true).map(Some),
            _ => Err(self.form(key, value, TOKEN_FORM)),
        }
    }

    fn tokens(&self, key: &str, list: &[Value]) -> Result<Vec<AddedToken>, Error> {
        let token = |value| self.token(key, value).transpose();
        list.iter().filter_map(token).collect()
    }

    fn list_of_tokens(&self, key: &str, value: &Value) -> Result<Vec<AddedToken>, Error> {
        let list = value.as_array().ok_or_else(|| self.form(key, value, "a list of tokens"))?;
        self.tokens(key, list)
    }

    /// A token with its flags. `special` is the flag's value where nothing is said of it.
    fn flagged(&self, key: &str, value: &Value, special: bool) -> Result<AddedToken, Error> {
        let bad =
            || self.form(key, value, "a token: an object with content, and flags that are true or false");
        let text = value.get("content").and_then(Value::as_str).ok_or_else(bad)?;
        let flag = |name: &str, default: bool| match value.get(name) {
            None => Ok(default),
            Some(flag) => flag.as_bool().ok_or_else(bad),
        };
        let special = flag("special", special)?;
        Ok(AddedToken::from(text, special)
            .single_word(flag("single_word", false)?)
            .lstrip(flag("lstrip", false)?)
            .rstrip(flag("rstrip", false)?)
            .normalized(flag("normalized", true)?))
    }

    /// The id of an entry of `added_tokens.json`.
    fn id(&self, key: &str, raw: &RawValue) -> Result<u32, Error> {
        let id = serde_json::from_str(raw.get());
        id.map_err(|_| self.form(key, &parsed(raw), "a token id"))
    }

    fn added_tokens_decoder(&self) -> Result<Vec<DeclaredId>, Error> {
        let entries = match self.fields.value(DECODER) {
            None => return Ok(Vec::new()),
            Some(Value::Object(_)) => self.parse(DECODER)?,
            Some(value) => return Err(self.form(DECODER, &value, "an object of token ids")),
        };
        let entry = |(id, raw): &(String, Box<RawValue>)| {
            let key = format!("{DECODER}.{id}");
            let token = self.flagged(&key, &parsed(raw), false)?;
            let id = id.trim().parse();
            let id = id.map_err(|_| self.form(&key, &parsed(raw), "under a key that is a token id"))?;
            Ok(DeclaredId { file: self.name, key, token, id })
        };
        entries.0.iter().map(entry).collect()
    }
}

/// A value that has been read as JSON once already.
fn parsed(raw: &RawValue) -> Value {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

/// A JSON object in the order of the file, which decides the ids of tokens that are added.
#[derive(Default)]
struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    fn position(&self, key: &str) -> Option<usize> {
        self.0.iter().position(|(name, _)| name == key)
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.position(key).map(|at| parsed(&self.0[at].1))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let (mut fields, mut places) = (Vec::new(), HashMap::new());
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    // As in Python, the last one of a name counts, at the place of the first.
                    if let Some(&at) = places.get(&name) {
                        fields[at] = (name, value);
                    } else {
                        places.insert(name.clone(), fields.len());
                        fields.push((name, value));
                    }
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
