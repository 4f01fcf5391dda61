//! What a request gives a template: JSON whose objects keep the order of their keys.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use minijinja::Value;
use serde::Deserialize;

use super::values::{Dict, Py};

/// The names under which reasoning is passed in a message. Templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A value of JSON as a template sees it. Objects keep the order of their keys, since templates print them.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct TemplateValue(pub(super) Value);

impl TemplateValue {
    /// An object.
    pub(crate) fn object<N: Into<String>>(fields: impl IntoIterator<Item = (N, Self)>) -> Self {
        let fields = fields.into_iter().map(|(name, value)| (Value::from(name.into()), value.0));
        Self(super::values::dict(fields.collect::<Dict>()))
    }

    /// The fields of an object, in their order.
    pub(crate) fn fields(&self) -> Option<IndexMap<String, Self>> {
        let Py::Dict(fields) = Py::of(&self.0) else { return None };
        let field = |(name, value): (&Value, &Value)| Some((name.as_str()?.to_owned(), Self(value.clone())));
        fields.iter().map(field).collect()
    }

    /// What it takes in memory, in bytes; rather too much than too little.
    pub(crate) fn memory(&self) -> usize {
        memory(&self.0)
    }
}

impl From<String> for TemplateValue {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// What a template is rendered with.
#[derive(Debug)]
pub(crate) struct Render<'a> {
    /// The conversation, as objects with `role` and `content`.
    pub messages: &'a [TemplateValue],
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables of the request.
    pub kwargs: &'a IndexMap<String, TemplateValue>,
}

impl Render<'_> {
    /// The variables, and how many bytes of the request are in them. Later ones win: the request's own variables over
    /// what transformers passes even when there is none, special tokens over those, and the conversation over all.
    /// Requests with a variable of such a name have been refused, so this order shows to nobody.
    pub(super) fn variables(
        &self,
        specials: &BTreeMap<String, String>,
        knows_developer: bool,
    ) -> (Dict, usize) {
        let mut variables = Dict::new();
        for absent in ["tools", "documents"] {
            variables.insert(Value::from(absent), Value::from(()));
        }
        let mut bytes = 0;
        for (name, value) in self.kwargs {
            bytes += name.len() + size(&value.0);
            variables.insert(Value::from(name.as_str()), value.0.clone());
        }
        for (name, token) in specials {
            variables.insert(Value::from(name.as_str()), Value::from(token.as_str()));
        }
        let mut messages = Vec::with_capacity(self.messages.len());
        for TemplateValue(message) in self.messages {
            bytes += size(message);
            messages.push(normalized(message, knows_developer));
        }
        variables.insert(Value::from("messages"), super::values::list(messages));
        variables.insert(Value::from("add_generation_prompt"), Value::from(self.add_generation_prompt));
        (variables, bytes)
    }
}

/// A message as transformers gives it to templates: reasoning under the names that templates read. OpenAI's role
/// "developer" is "system" to templates that do not know it.
fn normalized(message: &Value, knows_developer: bool) -> Value {
    let Py::Dict(message_dict) = Py::of(message) else { return message.clone() };
    let field = |name: &str| message_dict.get(&Value::from(name)).filter(|value| !value.is_none());
    let developer = !knows_developer && field("role").and_then(Value::as_str) == Some("developer");
    let reasoning = REASONING.iter().find_map(|name| field(name)).cloned();
    if !developer && reasoning.is_none() {
        return message.clone();
    }
    let mut changed = Dict::with_capacity(message_dict.len() + 2);
    if let Some(reasoning) = &reasoning {
        changed.insert(Value::from("thinking"), reasoning.clone());
    }
    changed.extend(message_dict.iter().map(|(name, value)| (name.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        changed.insert(Value::from("reasoning_content"), reasoning);
    }
    if developer {
        changed.insert(Value::from("role"), Value::from("system"));
    }
    super::values::dict(changed)
}

/// About how many bytes of JSON a value is.
fn size(value: &Value) -> usize {
    match Py::of(value) {
        Py::Str(text) => text.len() + 2,
        Py::List(items) => items.iter().map(|item| size(item) + 1).sum::<usize>() + 2,
        Py::Dict(dict) => dict.iter().map(|(key, value)| size(key) + size(value) + 2).sum::<usize>() + 2,
        _ => 4,
    }
}

/// What a value takes in memory. Texts, lists and objects are counted pointers to what they hold; an object's entries
/// have their hashes and an index beside them.
fn memory(value: &Value) -> usize {
    const SHARED_BYTES: usize = 48;
    const ENTRY_BYTES: usize = 32;
    size_of::<Value>()
        + match Py::of(value) {
            Py::Str(text) => SHARED_BYTES + text.len(),
            Py::List(items) => SHARED_BYTES + items.iter().map(memory).sum::<usize>(),
            Py::Dict(dict) => {
                let entries = dict.iter().map(|(name, value)| memory(name) + memory(value) + ENTRY_BYTES);
                2 * SHARED_BYTES + entries.sum::<usize>()
            }
            _ => 0,
        }
}
