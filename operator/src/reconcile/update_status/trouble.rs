//! What keeps pods from serving.

/// One thing that keeps a component from its pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    /// One word, for a condition's reason.
    pub reason: &'static str,
    /// What is so, and what to do.
    pub message: String,
}
