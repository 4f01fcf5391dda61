//! Reading a resource from a file, as strictly as `kubectl apply` with a schema at hand: a field that does not exist
//! is an error, not silence.

use serde_json::Value;

use super::DisaggDeployment;

/// A file that holds no `DisaggDeployment`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// Not YAML, or more than one document.
    #[error("not a YAML document: {0}")]
    Syntax(String),
    /// Another kind of thing.
    #[error("{field} must be {expected}, not {found}")]
    WrongKind {
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A value of the wrong type, or a required field that is missing.
    #[error("{path}: {message}")]
    Type {
        /// Path of the field.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// Fields that the resource does not have.
    #[error("{}: no such field", .0.join(", "))]
    UnknownFields(Vec<String>),
}

/// `apiVersion` of the resource.
pub(crate) const API_VERSION: &str = "disagg.dev/v1alpha1";
/// `kind` of the resource.
pub(crate) const KIND: &str = "DisaggDeployment";

impl DisaggDeployment {
    /// Reads one resource from YAML. Values are not checked yet; [`DisaggDeployment::validate`] does that.
    pub fn from_yaml(text: &str) -> Result<Self, ReadError> {
        let mut value: Value =
            serde_yaml::from_str(text).map_err(|error| ReadError::Syntax(error.to_string()))?;
        for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = value.get(field).map_or_else(|| "absent".to_owned(), short);
            if found != expected {
                return Err(ReadError::WrongKind { field, expected, found });
            }
        }
        // The type itself has no fields for these two.
        if let Some(fields) = value.as_object_mut() {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let traced = serde_path_to_error::Deserializer::new(value, &mut track);
        let resource = serde_ignored::deserialize(traced, |path| unknown.push(path.to_string()));
        match resource {
            Err(error) => Err(ReadError::Type { path: track.path().to_string(), message: error.to_string() }),
            // Serialized with `?` for each `Option` on the way; users never wrote those.
            Ok(_) if !unknown.is_empty() => {
                Err(ReadError::UnknownFields(unknown.iter().map(|path| path.replace(".?", "")).collect()))
            }
            Ok(resource) => Ok(resource),
        }
    }
}

/// A value for an error message: at most 60 characters.
fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    text.chars().take(60).collect()
}
