//! What may be wrong with settings, in words that fit on one line of an Event, a condition or a log.

use super::KEYS;

/// One problem of the settings.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SettingsError {
    /// No such key.
    #[error("{key}: unknown key; known are {}", KEYS.join(", "))]
    UnknownKey {
        /// The key as it was written, cut to a printable length.
        key: String,
    },
    /// The value breaks the key's rule.
    #[error("{key}: {value:?} is not allowed; it must be {rule}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// The value as it was written, cut to a printable length.
        value: String,
        /// What is allowed, to follow "must be".
        rule: String,
    },
    /// A ConfigMap has it where no text is looked for.
    #[error("{key}: is in binaryData; settings are text, in data")]
    Binary {
        /// The key as it was written, cut to a printable length.
        key: String,
    },
    /// The text is no flat YAML mapping.
    #[error("the settings are not a YAML mapping of keys to plain values: {0}")]
    Syntax(String),
}

/// Every problem of the settings, in the order of the keys given. Never empty.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", display_all(.0))]
pub struct SettingsErrors(pub Vec<SettingsError>);

fn display_all(errors: &[SettingsError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// At most `limit` characters on one line, for texts that go into Events, conditions and logs.
pub(super) fn printable(text: &str, limit: usize) -> String {
    let mut chars = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    let mut cut: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() {
        cut.push('…');
    }
    cut
}
