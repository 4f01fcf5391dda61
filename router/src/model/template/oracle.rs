//! The template engine against transformers: golden data made by tests/parity/templates.py.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Deserialize;

use super::values::Py;
use super::{ChatTemplate, Render, TemplateError, TemplateValue};

/// Snippets in which we differ knowingly, each with the reason. docs/chat-templates.md tells users.
const DIFFERENCES: &[(&str, &str)] = &[
    ("{{ +3 }}", "a plus before a number: the engine does not parse it"),
    ("{{ '{:%}'.format(0.25) }}", "percent formats: the engine does not have them"),
    ("{{ 5.bit_length() }}", "methods of numbers"),
    ("{{ d.z.real }}", "attributes of numbers"),
    ("{{ (5).real }}", "attributes of numbers"),
    ("{{ 'abc'.translate({97: 'x'}) }}", "str.translate"),
    ("{{ 'abc'.encode() }}", "bytes"),
    ("{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}", "true and 1 are different keys"),
    ("{{ s.upper }}|", "a method that is printed"),
    ("{{ nums | map('upper') }}", "an iterator that is printed"),
    ("{{ namespace }}x", "a function that is printed"),
    ("{{ self }}x", "self that is printed"),
    ("{{ lipsum is defined }}", "lipsum"),
    ("{{ 3 | pprint }}", "filters for web pages"),
    ("{{ 1024 | filesizeformat }}", "filters for web pages"),
    ("{{ '<b>x</b>' | striptags }}", "filters for web pages"),
    ("{{ 'a b c d' | wordwrap(3) }}", "filters for web pages"),
    ("{{ {'a': 1} | xmlattr }}", "filters for web pages"),
];

#[derive(Deserialize)]
struct Snippets {
    now: String,
    context: TemplateValue,
    cases: Vec<Snippet>,
}

#[derive(Deserialize)]
struct Snippet {
    source: String,
    #[serde(flatten)]
    expected: Outcome,
}

#[derive(Deserialize, PartialEq, Debug)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Text(String),
    /// By `raise_exception`.
    Raised(String),
    /// By the engine; how it is worded is its own matter.
    Error(String),
}

fn outcome(rendered: Result<String, TemplateError>) -> Outcome {
    match rendered {
        Ok(text) => Outcome::Text(text),
        Err(TemplateError::Raised(message)) => Outcome::Raised(message),
        Err(error) => Outcome::Error(error.to_string()),
    }
}

impl Outcome {
    fn agrees(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Error(_), Self::Error(_))) || self == other
    }
}

fn golden(name: &str) -> String {
    let path = format!("{}/../tests/parity/data/templates/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn snippets_render_as_jinja2_renders_them() {
    let data: Snippets = serde_json::from_str(&golden("snippets.json")).unwrap();
    let mut context = data.context.fields().unwrap();
    let now = data.now.parse().unwrap();
    let messages = context.shift_remove("messages").unwrap();
    let Py::List(messages) = Py::of(&messages.0) else { panic!("messages are a list") };
    let messages: Vec<TemplateValue> = messages.iter().cloned().map(TemplateValue).collect();
    let mut differences = BTreeSet::new();
    let mut seen = String::new();
    for case in &data.cases {
        let rendered = ChatTemplate::new(&case.source, BTreeMap::new()).and_then(|template| {
            template.render_at(
                &Render { messages: &messages, add_generation_prompt: true, kwargs: &context },
                now,
            )
        });
        let got = outcome(rendered);
        if !case.expected.agrees(&got) {
            differences.insert(case.source.as_str());
            let _ = write!(seen, "{:?}\n  expected {:?}\n  got      {got:?}\n", case.source, case.expected);
        }
    }
    let accepted: BTreeSet<&str> = DIFFERENCES.iter().map(|(source, _)| *source).collect();
    assert_eq!(differences, accepted, "{seen}");
}

#[derive(Deserialize)]
struct Chats {
    now: String,
    specials: BTreeMap<String, String>,
    conversations: Vec<Conversation>,
    cases: Vec<Chat>,
}

#[derive(Deserialize)]
struct Conversation {
    name: String,
    messages: Vec<TemplateValue>,
    tools: Option<TemplateValue>,
    documents: Option<TemplateValue>,
    kwargs: Option<TemplateValue>,
}

#[derive(Deserialize)]
struct Chat {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    #[serde(flatten)]
    expected: Outcome,
}

#[test]
fn chats_render_as_transformers_renders_them() {
    let data: Chats = serde_json::from_str(&golden("chats.json")).unwrap();
    let now = data.now.parse().unwrap();
    let mut templates: BTreeMap<&str, ChatTemplate> = BTreeMap::new();
    let mut wrong = String::new();
    let mut texts = 0;
    for case in &data.cases {
        let template = templates.entry(&case.template).or_insert_with(|| {
            let source = golden(&format!("chat/{}.jinja", case.template));
            ChatTemplate::new(&source, data.specials.clone()).unwrap()
        });
        let chat = data.conversations.iter().find(|chat| chat.name == case.conversation).unwrap();
        let mut kwargs = chat.kwargs.as_ref().and_then(TemplateValue::fields).unwrap_or_default();
        let own = [("tools", &chat.tools), ("documents", &chat.documents)];
        kwargs.extend(own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
        let add_generation_prompt = case.add_generation_prompt;
        let render = Render { messages: &chat.messages, add_generation_prompt, kwargs: &kwargs };
        let got = outcome(template.render_at(&render, now));
        texts += usize::from(matches!(case.expected, Outcome::Text(_)));
        if !case.expected.agrees(&got) {
            let _ = write!(
                wrong,
                "{} × {}\n  expected {:?}\n  got      {got:?}\n",
                case.template, case.conversation, case.expected
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(texts > 500, "only {texts} texts");
    assert_eq!(templates.len(), 15);
}
