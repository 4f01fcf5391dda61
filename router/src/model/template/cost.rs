//! Ways to burn: each ends soon, at a bound that the error names.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde_json::json;

use super::limits::Rendering;
use super::{ChatTemplate, Limit, Render, TemplateError, TemplateValue};

/// Far more than any of them takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn value(json: serde_json::Value) -> TemplateValue {
    serde_json::from_value(json).unwrap()
}

fn render(source: &str, kwargs: serde_json::Value) -> Result<String, TemplateError> {
    let messages = [value(json!({"role": "user", "content": "hello"}))];
    let kwargs = value(kwargs).fields().unwrap();
    let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
    template.render(&Render { messages: &messages, add_generation_prompt: true, kwargs: &kwargs })
}

/// Rendering `source` ends at the bound `limit`, on a thread with the stack of those that work on text.
#[track_caller]
fn ends_at(limit: Limit, source: &str) {
    let begun = Instant::now();
    let source = source.to_owned();
    let work = move || render(&source, json!({"n": 1_000_000_000_i64, "long": "ab ".repeat(100_000)}));
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap();
    let ended = thread.join().unwrap();
    assert!(
        matches!(ended, Err(TemplateError::Limit(reached)) if reached == limit),
        "{:.200}",
        format!("{ended:?}")
    );
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

const LOOPS: &str = "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}";
const END: &str = "{% endfor %}{% endfor %}{% endfor %}";

#[test]
fn loops_end() {
    ends_at(Limit::Steps, &format!("{LOOPS}{{% set x = b %}}{END}"));
    ends_at(Limit::Steps, &format!("{LOOPS}{END}"));
    ends_at(Limit::Steps, &format!("{LOOPS}{{% if a and b %}}{{% continue %}}{{% endif %}}{END}"));
}

#[test]
fn texts_do_not_grow_without_end() {
    ends_at(Limit::Work, "{{ 'x' * n }}");
    ends_at(Limit::Work, "{{ [1] * n }}");
    ends_at(Limit::Work, "{{ (1,) * n }}");
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    );
    // Text that is captured is never written.
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = m(ns.x) %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x | replace('', 'aa') %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    );
    ends_at(
        Limit::Work,
        "{% set ns = namespace(x='<') %}{% for i in range(64) %}{% set ns.x = ns.x | e ~ ns.x %}{% endfor %}",
    );
}

#[test]
fn values_are_not_nested_without_end() {
    ends_at(
        Limit::Nesting,
        "{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}",
    );
    ends_at(
        Limit::Nesting,
        "{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = {'x': ns.x} %}{% endfor %}",
    );
    ends_at(
        Limit::Nesting,
        "{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = (ns.x, 1) %}{% endfor %}",
    );
    ends_at(
        Limit::Nesting,
        "{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = dict(x=ns.x) %}{% endfor %}",
    );
    ends_at(
        Limit::Nesting,
        "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = ns.x | batch(1) | list %}{% endfor %}",
    );
    ends_at(
        Limit::Nesting,
        "{% set ns = namespace(x={'a': 1}) %}{% for i in range(9999) %}{% set ns.x = dict(x=ns.x.items() | list) %}{% endfor %}",
    );
    // What holds itself could never be freed.
    for source in [
        "{% set ns = namespace() %}{% set ns.x = ns %}",
        "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}",
        "{% set a = namespace() %}{% set b = namespace(a=a) %}",
        "{% set ns = namespace() %}{% set ns.x = cycler(ns) %}",
        "{% set ns = namespace() %}{% set ns.x = [none.x] | map('default', ns) | list %}",
    ] {
        assert!(matches!(render(source, json!({})), Err(TemplateError::Failed(_))), "{source}");
    }
}

#[test]
fn a_deep_value_of_the_request_is_written() {
    let mut deep = json!(1);
    for _ in 0..120 {
        deep = json!([deep]);
    }
    let text = render("{{ deep | tojson }}", json!({"deep": deep})).unwrap();
    assert_eq!(text, format!("{}1{}", "[".repeat(120), "]".repeat(120)));
}

#[test]
fn calls_in_calls_end() {
    ends_at(Limit::Recursion, "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}");
    ends_at(Limit::Recursion, "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}");
    ends_at(
        Limit::Recursion,
        "{% macro m() %}{{ caller() if false }}{% for x in [1] %}{% call m() %}{% endcall %}{% endfor %}{% endmacro %}{% call m() %}{% endcall %}",
    );
    // Twice each: the steps end before the depth does.
    ends_at(
        Limit::Steps,
        "{% macro m(x) %}{% if x > 0 %}{{ m(x - 1) }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(30) }}",
    );
}

#[test]
fn the_text_is_bounded() {
    let messages = [value(json!({"role": "user", "content": "x".repeat(2 << 20)}))];
    let template =
        ChatTemplate::new("{% for i in range(17) %}{{ messages[0].content }}{% endfor %}", BTreeMap::new());
    let render = Render { messages: &messages, add_generation_prompt: true, kwargs: &IndexMap::new() };
    let ended = template.unwrap().render(&render);
    assert!(matches!(ended, Err(TemplateError::Limit(Limit::Text))), "{:.100}", format!("{ended:?}"));
}

#[test]
fn padding_is_bounded() {
    for source in [
        "{{ 'x'.center(n) }}",
        "{{ 'x'.zfill(n) }}",
        "{{ '\t'.expandtabs(n) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '%*d' % (n, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, n) }}",
        "{{ 'x' | center(n) }}",
        "{{ 'x\ny' | indent(n) }}",
        "{{ [1] | tojson(indent=n) }}",
        "{{ [1] | batch(n, 1) | list }}",
        "{{ [1] | slice(n) | list }}",
        "{{ strftime_now('%999999999Y') }}",
    ] {
        ends_at(Limit::Width, source);
    }
}

/// Each does in one instruction about as much as its value is long, and all of that is counted.
#[test]
fn what_a_single_step_does_is_counted() {
    // 50,000 words.
    let long = "ab ".repeat(50_000);
    let kwargs = value(json!({ "long": long })).fields().unwrap();
    let used = |step: &str| {
        let set_up = "{% set words = long.split() %}{% set big = {'a': long.split(), 'b': long.split()} %}";
        let template = ChatTemplate::new(&format!("{set_up}{step}"), BTreeMap::new()).unwrap();
        let render = Render { messages: &[], add_generation_prompt: true, kwargs: &kwargs };
        let (variables, bytes) = render.variables(&BTreeMap::new(), true);
        let rendering = Rendering::new(bytes, jiff::civil::date(2025, 1, 1).at(0, 0, 0, 0));
        let before = rendering.work_left();
        template
            .render_counted(variables, bytes, &rendering)
            .unwrap_or_else(|error| panic!("{step}: {error}"));
        before - rendering.work_left()
    };
    let set_up = used("");
    for step in [
        "long == long ~ ''",
        "long ~ 'x' == long ~ 'x'",
        "long < long",
        "'zz' in long",
        "long in [long]",
        "long.split()",
        "long.split('b')",
        "long.rsplit('b', 1)",
        "long.splitlines()",
        "long.count('b')",
        "long.rfind('zz')",
        "long.find('zz', 10)",
        "long.upper()",
        "long.title()",
        "long.strip('ab ')",
        "long.partition('zz')",
        "long.startswith('x', 99999)",
        "long.isalpha()",
        "long[::-1]",
        "long[99999]",
        "long[1:]",
        "long | length",
        "long | list",
        "long | upper",
        "long | replace('b', '')",
        "long | trim",
        "long | reverse",
        "long | tojson",
        "long | e",
        "long | indent",
        "long | wordcount",
        "long | truncate(9)",
        "long | urlencode",
        "long | int",
        "long | float",
        "long is lower",
        "words | join",
        "words | sort",
        "words | unique",
        "words | map('upper')",
        "words | select('string')",
        "words | map(attribute='x')",
        "words | batch(2)",
        "words | string",
        "words[::-1]",
        "words[1:]",
        "words + words",
        "words * 2",
        "words == words + []",
        "words | groupby('x', default='')",
        "words | min",
        "words | max",
        "words.index('ab')  + words.count('a')",
        "'zz' in words",
        "'%s' % [words]",
        "'{}'.format(words)",
        "words | map('list') | list",
        "range(99999)",
        "big | tojson(sort_keys=true)",
        "big == big.copy()",
    ] {
        let units = used(&format!("{{% set x = {step} %}}")) - set_up;
        // The cheapest are those that the processor does 16 bytes at a time.
        assert!(units >= long.len() as u64 / 16, "{step}: {units}");
    }
}

/// Templates that collect messages in a list copy it for each.
#[test]
fn collecting_messages_is_within_bounds() {
    let source = "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [{'role': m.role, 'text': m.content}] %}\
        {% endfor %}{{ ns.all | length }}";
    let messages = vec![value(json!({"role": "user", "content": "Some words of a conversation."})); 8000];
    let render = Render { messages: &messages, add_generation_prompt: true, kwargs: &IndexMap::new() };
    assert_eq!(ChatTemplate::new(source, BTreeMap::new()).unwrap().render(&render).unwrap(), "8000");
}

/// An honest conversation, however long, is far from every bound.
#[test]
fn long_conversations_are_rendered() {
    let turn = |at: usize| {
        let role = if at.is_multiple_of(2) { "user" } else { "assistant" };
        value(json!({"role": role, "content": format!("Turn {at}: some words of a conversation.")}))
    };
    let messages: Vec<TemplateValue> = (0..20_001).map(turn).collect();
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/parity/data/templates/chat");
    let mut rendered = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        let specials =
            BTreeMap::from(["bos_token", "eos_token"].map(|name| (name.to_owned(), name.to_owned())));
        let template = ChatTemplate::new(&std::fs::read_to_string(&path).unwrap(), specials).unwrap();
        let render = Render { messages: &messages, add_generation_prompt: true, kwargs: &IndexMap::new() };
        let text = template.render(&render).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(text.contains("Turn 20000"), "{}", path.display());
        rendered += 1;
    }
    assert_eq!(rendered, 15);
}
