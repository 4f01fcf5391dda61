//! Chat templates: Jinja as Hugging Face's tokenizers render it.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, merge_maps};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;

const NAME: &str = "chat_template";

/// A template cannot be parsed, or refuses a conversation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// The template itself called `raise_exception`.
    #[error("{0}")]
    Raised(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What a template is rendered with.
#[derive(Serialize, Debug)]
pub(crate) struct Render<'a> {
    /// The conversation, as objects with `role` and `content`.
    pub messages: &'a [serde_json::Value],
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables of the request; these and the names above win over special tokens.
    #[serde(flatten)]
    pub kwargs: &'a BTreeMap<String, serde_json::Value>,
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
        let mut environment = Environment::new();
        // As transformers sets up Jinja.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failed(&error))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, Raised::mark(&message)))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_training_tags(source))
            .map_err(|error| failed(&error))?;
        Ok(Self { environment, specials, knows_developer })
    }

    /// The name under which the template knows OpenAI's role "developer".
    pub(crate) fn developer_role(&self) -> &'static str {
        if self.knows_developer { "developer" } else { "system" }
    }

    /// The prompt's text.
    pub(crate) fn render(&self, render: &Render<'_>) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        // transformers passes these two even when there are none.
        let absent: BTreeMap<&str, Value> = ["tools", "documents"].map(|name| (name, Value::from(()))).into();
        let context = merge_maps([
            Value::from(Serde(render)),
            Value::from(Serde(&self.specials)),
            Value::from(Serde(absent)),
        ]);
        template.render(context).map_err(|error| failed(&error))
    }
}

/// A message of `raise_exception` on its way through the template engine.
struct Raised;

impl Raised {
    const MARK: &'static str = "\u{0}raised\u{0}";

    fn mark(message: &str) -> String {
        format!("{}{message}", Self::MARK)
    }
}

fn failed(error: &Error) -> TemplateError {
    let raised = error.detail().and_then(|detail| detail.strip_prefix(Raised::MARK));
    match raised {
        Some(message) => TemplateError::Raised(message.to_owned()),
        None => TemplateError::Failed(error.to_string()),
    }
}

/// `{% generation %}` marks what a model is trained on. It renders nothing and is no tag of Jinja's own.
fn without_training_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // From behind the opening on: `{%}` opens a tag and closes none.
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let inner = rest[start + 2..start + 2 + length].trim_matches(['-', '+']).trim();
        let end = start + 2 + length + 2;
        if matches!(inner, "generation" | "endgeneration") {
            // An `if` of the same form keeps the tag's trimming of white space.
            let name = if inner == "generation" { "if true" } else { "endif" };
            out.push_str(&rest[..start]);
            out.push_str(&rest[start..end].replace(inner, name));
        } else {
            out.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    out + rest
}

/// The date and time, in UTC, for templates that state it.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: `", "` and `": "` between things, and no
/// escaping for HTML.
#[allow(clippy::needless_pass_by_value)] // the signature that filters have
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted for the sake of templates; what they ask for is how it is done anyway.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let bad = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    if let Some(indent) = indent {
        let spaces = " ".repeat(indent.min(16));
        let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(bad)?;
    } else {
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonStyle)).map_err(bad)?;
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// Separators of Python's json module.
struct PythonStyle;

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> ChatTemplate {
        let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let specials = specials.map(|(name, token)| (name.to_owned(), token.to_owned())).into();
        ChatTemplate::new(source, specials).unwrap()
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        let messages = [
            json!({"role": "system", "content": " Be brief. "}),
            json!({"role": "user", "content": "<Hi> & \"bye\""}),
        ];
        let kwargs = BTreeMap::from([("enable_thinking".to_owned(), json!(false))]);
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
        assert!(matches!(render("{{ messages.a.b }}").unwrap_err(), TemplateError::Failed(_)));
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
