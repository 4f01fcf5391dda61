//! Chat templates: what the model sees is what transformers' `apply_chat_template` would show it.
//!
//! The engine is minijinja. A template's source is read as Jinja2 reads it (`source.rs`) and written again with Python's
//! meaning of operators and loops (`rewrite.rs`); filters, tests, functions and methods are Python's (`filters/`,
//! `predicates.rs`, `functions.rs`, `methods/`). What a rendering may cost is bounded (`limits.rs`). Tests compare it all
//! with transformers (`oracle.rs`); docs/chat-templates.md lists what differs still.

mod arguments;
mod compare;
mod environment;
mod filters;
mod format;
mod functions;
mod input;
mod json;
mod limits;
mod methods;
mod operators;
mod predicates;
mod rewrite;
mod source;
mod strftime;
mod text;
mod values;

#[cfg(test)]
mod cost;
#[cfg(test)]
mod oracle;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::civil::DateTime;
use minijinja::{Environment, Error, ErrorKind};

pub(crate) use functions::FUNCTIONS;
pub(crate) use input::{Render, TemplateValue};
pub(crate) use limits::Limit;

use limits::{Rendering, Stop, Text};
use values::Dict;

/// A template cannot be parsed, or a rendering did not end with a text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// The template refused the conversation: it called `raise_exception`.
    #[error("{0}")]
    Raised(String),
    /// The rendering reached a bound.
    #[error("{0}")]
    Limit(Limit),
    /// The template is wrong: it does not parse, or does with its values what cannot be done.
    #[error("{0}")]
    Failed(String),
}

/// A parsed chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    specials: BTreeMap<String, String>,
    /// The template knows the role "developer" itself.
    knows_developer: bool,
}

impl ChatTemplate {
    /// The template's source: the file `chat_template.jinja` if there is one, else `chat_template` of
    /// `tokenizer_config.json`, which is a string or a list of named templates.
    pub(crate) fn source(file: Option<&str>, tokenizer_config: Option<&serde_json::Value>) -> Option<String> {
        if let Some(file) = file {
            return Some(file.to_owned());
        }
        match tokenizer_config?.get("chat_template")? {
            serde_json::Value::String(source) => Some(source.clone()),
            serde_json::Value::Array(named) => {
                let default = named.iter().find(|one| one.get("name").is_some_and(|name| name == "default"));
                Some(default.or(named.first())?.get("template")?.as_str()?.to_owned())
            }
            _ => None,
        }
    }

    /// Parses `source`. `specials` are the special tokens that it may name, such as `bos_token`.
    pub(crate) fn new(source: &str, specials: BTreeMap<String, String>) -> Result<Self, TemplateError> {
        let knows_developer = source.contains("developer");
        let environment = environment::build(source).map_err(|error| failed(&error))?;
        Ok(Self { environment, specials, knows_developer })
    }

    /// Whether the model's special tokens have the name `variable`.
    pub(crate) fn has_special(&self, variable: &str) -> bool {
        self.specials.contains_key(variable)
    }

    /// The prompt's text.
    pub(crate) fn render(&self, render: &Render<'_>) -> Result<String, TemplateError> {
        self.render_at(render, jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).datetime())
    }

    /// The prompt's text, made at `now`.
    fn render_at(&self, render: &Render<'_>, now: DateTime) -> Result<String, TemplateError> {
        let (variables, bytes) = render.variables(&self.specials, self.knows_developer);
        self.render_counted(variables, bytes, &Rendering::new(bytes, now))
    }

    /// The prompt's text for an input of `bytes`; what that took is counted in `rendering`.
    fn render_counted(
        &self,
        mut variables: Dict,
        bytes: usize,
        rendering: &Arc<Rendering>,
    ) -> Result<String, TemplateError> {
        let (name, value) = rendering.variable();
        variables.insert(name.into(), value);
        // Everything in an environment is shared, so that a copy with another bound costs nothing.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(Rendering::fuel(bytes)));
        let template = environment.get_template(environment::NAME).map_err(|error| failed(&error))?;
        let mut text = Text { bytes: Vec::new(), rendering };
        let ended = template.render_captured_to(values::dict(variables), &mut text).map(drop);
        let bytes = text.bytes;
        ended.map_err(|error| match rendering.stopped() {
            Some(Stop::Raised(message)) => TemplateError::Raised(message),
            Some(Stop::Limit(limit)) => TemplateError::Limit(limit),
            None => failed(&error),
        })?;
        String::from_utf8(bytes).map_err(|error| TemplateError::Failed(error.to_string()))
    }
}

fn failed(error: &Error) -> TemplateError {
    let mut cause: &dyn std::error::Error = error;
    loop {
        match cause.downcast_ref::<Error>() {
            Some(error) if error.kind() == ErrorKind::OutOfFuel => return TemplateError::Limit(Limit::Steps),
            // The engine has no kind of its own for it.
            Some(error) if error.detail() == Some("recursion limit exceeded") => {
                return TemplateError::Limit(Limit::Recursion);
            }
            _ => {}
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return TemplateError::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indexmap::IndexMap;
    use serde_json::json;

    fn template(source: &str) -> ChatTemplate {
        let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let specials = specials.map(|(name, token)| (name.to_owned(), token.to_owned())).into();
        ChatTemplate::new(source, specials).unwrap()
    }

    fn value(json: serde_json::Value) -> TemplateValue {
        serde_json::from_value(json).unwrap()
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        let messages = [
            value(json!({"role": "system", "content": " Be brief. "})),
            value(json!({"role": "user", "content": "<Hi> & \"bye\""})),
        ];
        let kwargs = IndexMap::from([("enable_thinking".to_owned(), value(json!(false)))]);
        template(source).render(&Render { messages: &messages, add_generation_prompt: true, kwargs: &kwargs })
    }

    #[test]
    fn a_llama_like_template() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {%- if message['role'] == 'system' %}\n\
            [{{ message.content.strip() }}]\n    {%- else %}{{ message['content'] + eos_token }}{% endif %}\n\
            {% endfor %}\n{% if add_generation_prompt %}{{ '>' }}{% endif %}";
        assert_eq!(render(source).unwrap(), "<s>[Be brief.]<Hi> & \"bye\"</s>>");
    }

    #[test]
    fn what_python_templates_use() {
        assert_eq!(render("{{ messages[1].content | tojson }}").unwrap(), r#""<Hi> & \"bye\"""#);
        assert_eq!(render("{{ {'a': [1, 2], 'b': none} | tojson }}").unwrap(), r#"{"a": [1, 2], "b": null}"#);
        assert_eq!(
            render(
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}"
            )
            .unwrap(),
            "user"
        );
        assert_eq!(render("{{ messages[0].content.split()[0] }}{{ messages[-1].role }}").unwrap(), "Beuser");
        assert_eq!(
            render("{{ tools is none }}{{ foo is defined }}{{ enable_thinking }}").unwrap(),
            "TrueFalseFalse"
        );
        assert_eq!(render("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}").unwrap(), "2");
        assert_eq!(render("{% generation %}x{% endgeneration %}").unwrap(), "x");
        let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
        assert!(year >= 2024);
    }

    #[test]
    fn slices_and_namespaces_are_pythons() {
        let sliced = "{{ messages[1:][0].role }} {{ messages[:-1] | length }} {{ messages[::-1][0].role }}";
        assert_eq!(render(sliced).unwrap(), "user 1 user");
        // How Qwen3's template looks for the last question.
        let last = "{% set ns = namespace(searching=true, last=messages|length - 1) %}\
            {%- for message in messages[::-1] %}\
                {%- set index = (messages|length - 1) - loop.index0 %}\
                {%- if ns.searching and message.role == 'system' and message.content is string \
                    and not (message.content.startswith('<x>') and message.content.endswith('</x>')) %}\
                    {%- set ns.searching = false %}{%- set ns.last = index %}\
                {%- endif %}\
            {%- endfor %}{{ ns.last }}";
        assert_eq!(render(last).unwrap(), "0");
        let thought = "{{ 'a</think>\\n\\nb\\n'.split('</think>')[-1].lstrip('\\n').rstrip('\\n') }}";
        assert_eq!(render(thought).unwrap(), "b");
        let date = render("{{ strftime_now('%d %b %Y') }}").unwrap();
        assert_eq!(date.split(' ').count(), 3, "{date}");
    }

    #[test]
    fn a_template_can_refuse() {
        let error = render("{{ raise_exception('Roles must alternate') }}").unwrap_err();
        assert!(matches!(error, TemplateError::Raised(ref message) if message == "Roles must alternate"));
        let error = render("a\n{{ messages.a.b }}").unwrap_err();
        assert!(
            matches!(error, TemplateError::Failed(ref message) if message.contains("chat template:2")),
            "{error}"
        );
        assert!(ChatTemplate::new("{% if %}", BTreeMap::new()).is_err());
    }

    #[test]
    fn a_template_comes_from_the_file_or_the_config() {
        let named = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        let plain = json!({"chat_template": "p"});
        assert_eq!(ChatTemplate::source(Some("f"), Some(&plain)).unwrap(), "f");
        assert_eq!(ChatTemplate::source(None, Some(&plain)).unwrap(), "p");
        assert_eq!(ChatTemplate::source(None, Some(&named)).unwrap(), "d");
        assert_eq!(ChatTemplate::source(None, Some(&json!({}))), None);
        assert_eq!(ChatTemplate::source(None, None), None);
    }
}
