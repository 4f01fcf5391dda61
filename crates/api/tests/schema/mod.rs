//! As much of an API server's validation as our schema uses: types, bounds, patterns, enums, required fields, and the
//! CEL rules.

use disagg_api::DisaggDeployment;
use kube_cel::Validator;
use serde_json::Value;

/// The schema of the resource.
pub struct Schema(Value);

impl Schema {
    pub fn of_the_crd() -> Self {
        let crd = serde_json::to_value(DisaggDeployment::definition()).unwrap();
        Self(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
    }

    /// What the API server would refuse in `resource`.
    pub fn problems(&self, resource: &Value) -> Vec<String> {
        let mut problems = Vec::new();
        check(&self.0, resource, "", &mut problems);
        if let Err(errors) = Validator::new().validate(&self.0, resource, None) {
            problems.push(errors.to_string());
        }
        problems
    }

    /// Calls `visit` with the path and schema of every property, `a.b.c`.
    pub fn walk(&self, visit: &mut impl FnMut(&str, &Value)) {
        walk(&self.0, "", visit);
    }
}

fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        visit(&path, property);
        walk(property, &path, visit);
    }
    if let Some(items) = schema.get("items") {
        walk(items, &format!("{path}[]"), visit);
    }
}

fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let mut refuse = |why: &str| problems.push(format!("{path}: {why}"));
    let right_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some("boolean") => value.is_boolean(),
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
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|minimum| length < minimum) {
            refuse("minLength");
        }
        if schema["maxLength"].as_u64().is_some_and(|maximum| length > maximum) {
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
        if value.get(required.as_str().unwrap()).is_none() {
            refuse("required");
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(field) = value.get(name) {
            check(property, field, &format!("{path}.{name}"), problems);
        }
    }
}
