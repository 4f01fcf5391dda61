//! A condition before it is dated.

/// What is found to be so: a condition without generation and time.
pub(super) struct Finding {
    /// The condition's type.
    pub type_: &'static str,
    pub status: bool,
    /// The condition's reason: one word in CamelCase.
    pub reason: String,
    /// The condition's message, for a person.
    pub message: String,
}

impl Finding {
    pub(super) fn new(type_: &'static str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { type_, status, reason: reason.to_owned(), message: message.into() }
    }
}
