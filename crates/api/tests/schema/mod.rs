//! As much of an API server's validation as our schema uses: types, bounds, patterns, enums, required fields, lists
//! with keys, and the CEL rules.

use std::collections::BTreeSet;
use std::fmt;

use disagg_api::DisaggDeployment;
use kube_cel::{CompiledSchema, Validator, compile_schema};
use serde_json::Value;

/// Fields whose own schema, below them, is that of `core/v1`.
const CORE_V1: [&str; 5] = ["tolerations", "affinity", "topologySpreadConstraints", "volumes", "valueFrom"];

/// The schema of the resource, and its CEL rules compiled.
pub struct Schema {
    schema: Value,
    compiled: CompiledSchema,
}

/// A rule of the schema: where it stands, and which it is. Of a CEL rule, its message.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rule {
    pub path: String,
    pub rule: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.rule)
    }
}

impl Schema {
    pub fn of_the_crd() -> Self {
        let crd = serde_json::to_value(DisaggDeployment::definition()).unwrap();
        let schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        let compiled = compile_schema(&schema);
        Self { schema, compiled }
    }

    /// The rules for which the API server would refuse `resource`.
    pub fn problems(&self, resource: &Value) -> BTreeSet<Rule> {
        let mut problems = BTreeSet::new();
        check(&self.schema, resource, "", &mut problems);
        if let Err(errors) = Validator::new().validate_compiled(&self.compiled, resource, None) {
            for error in errors.into_vec() {
                problems.insert(Rule { path: without_indexes(&error.field_path), rule: error.message });
            }
        }
        problems
    }

    /// Every rule that the schema of the spec states, types apart, and without those of `core/v1`.
    pub fn rules(&self) -> BTreeSet<Rule> {
        let mut rules = BTreeSet::new();
        collect(&self.schema, "", &mut rules);
        rules
    }

    /// Calls `visit` with the path and schema of every property, `a.b.c`.
    pub fn walk(&self, visit: &mut impl FnMut(&str, &Value)) {
        walk(&self.schema, "", visit);
    }
}

/// The path is one of `core/v1`, below a field of ours.
pub fn is_core_v1(path: &str) -> bool {
    let mut parts = path.split(['.', '[']);
    parts.any(|part| CORE_V1.contains(&part)) && parts.next().is_some()
}

fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = join(path, name);
        visit(&path, property);
        walk(property, &path, visit);
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(key) {
            visit(&format!("{path}{suffix}"), inner);
            walk(inner, &format!("{path}{suffix}"), visit);
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// `a[0].b` and `a["x"].b` as the table writes them: `a[].b`.
fn without_indexes(path: &str) -> String {
    regex::Regex::new(r"\[[^\]]*\]").unwrap().replace_all(path.trim_start_matches('.'), "[]").into_owned()
}

fn collect(schema: &Value, path: &str, rules: &mut BTreeSet<Rule>) {
    if is_core_v1(path) || path.starts_with("status") {
        return;
    }
    let mut add = |rule: String| rules.insert(Rule { path: path.to_owned(), rule });
    for key in [
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
        "enum",
        "minItems",
        "maxItems",
        "maxProperties",
    ] {
        if schema.get(key).is_some() {
            add(key.to_owned());
        }
    }
    if schema.get("x-kubernetes-list-map-keys").is_some() {
        add("unique".to_owned());
    }
    for field in schema["required"].as_array().into_iter().flatten() {
        add(format!("required {}", field.as_str().unwrap()));
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        add(rule["message"].as_str().expect("a rule without a message helps nobody").to_owned());
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        collect(property, &join(path, name), rules);
    }
    if let Some(items) = schema.get("items") {
        collect(items, &format!("{path}[]"), rules);
    }
    if let Some(values) = schema.get("additionalProperties") {
        collect(values, &format!("{path}{{}}"), rules);
    }
}

fn check(schema: &Value, value: &Value, path: &str, problems: &mut BTreeSet<Rule>) {
    let mut refuse = |rule: &str| _ = problems.insert(Rule { path: path.to_owned(), rule: rule.to_owned() });
    let right_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some("boolean") => value.is_boolean(),
        _ if schema["x-kubernetes-int-or-string"] == true => value.is_i64() || value.is_string(),
        _ => true,
    };
    if !right_type {
        refuse("type");
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"].as_f64().is_some_and(|minimum| number < minimum) {
            refuse("minimum");
        }
        if schema["maximum"].as_f64().is_some_and(|maximum| number > maximum) {
            refuse("maximum");
        }
    }
    let beyond = |key: &str, length: usize| schema[key].as_u64().is_some_and(|limit| length as u64 > limit);
    if let Some(text) = value.as_str() {
        let length = text.chars().count();
        if schema["minLength"].as_u64().is_some_and(|minimum| (length as u64) < minimum) {
            refuse("minLength");
        }
        if beyond("maxLength", length) {
            refuse("maxLength");
        }
        if schema["pattern"]
            .as_str()
            .is_some_and(|pattern| !regex::Regex::new(pattern).unwrap().is_match(text))
        {
            refuse("pattern");
        }
    }
    if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
        refuse("enum");
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        let required = required.as_str().unwrap();
        if value.get(required).is_none() {
            refuse(&format!("required {required}"));
        }
    }
    if let Some(entries) = value.as_array() {
        if beyond("maxItems", entries.len()) {
            refuse("maxItems");
        }
        if let Some(key) = schema.pointer("/x-kubernetes-list-map-keys/0").and_then(Value::as_str) {
            let keys: BTreeSet<String> = entries.iter().map(|entry| entry[key].to_string()).collect();
            if keys.len() < entries.len() {
                refuse("unique");
            }
        }
        for entry in entries {
            check(&schema["items"], entry, &format!("{path}[]"), problems);
        }
        return;
    }
    let Some(fields) = value.as_object() else { return };
    if beyond("maxProperties", fields.len()) {
        refuse("maxProperties");
    }
    for (name, field) in fields {
        if let Some(property) = schema["properties"].get(name) {
            check(property, field, &join(path, name), problems);
        } else if let Some(values) = schema.get("additionalProperties") {
            check(values, field, &format!("{path}{{}}"), problems);
        }
    }
}
