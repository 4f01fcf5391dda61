//! Why a child is not as it should be.

use crate::stores::{Child, kind};
use crate::text::short;

/// A child that could not be applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Problem {
    pub kind: &'static str,
    pub name: String,
    pub why: Why,
}

/// What stands in a child's way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// An object that is not ours has the child's name. Its controller, if it has one.
    Foreign { owner: Option<String> },
    /// The change touches a field that cannot change.
    Immutable(String),
    /// The API server finds it invalid, or does not allow it.
    Refused(String),
    /// It may go by itself, and is tried again: a webhook that is away, an API server that does not answer.
    Passing(String),
    /// There is no such object, or no such kind.
    NotFound(String),
    /// The namespace is going away, and everything in it.
    NamespaceEnding,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Foreign { owner: Some(owner) } => write!(f, "it belongs to {owner}"),
            Self::Foreign { owner: None } => f.write_str("it was not made for this resource"),
            Self::Immutable(said) | Self::Refused(said) | Self::Passing(said) | Self::NotFound(said) => {
                f.write_str(said)
            }
            Self::NamespaceEnding => f.write_str("its namespace is going away"),
        }
    }
}

impl Problem {
    pub(super) fn new<K: Child>(name: &str, why: Why) -> Self {
        Self { kind: kind::<K>(), name: name.to_owned(), why }
    }

    /// Tells apart what a person has to solve from what may pass.
    pub(super) fn of<K: Child>(name: &str, error: &kube::Error) -> Self {
        Self::new::<K>(name, why(error))
    }

    /// Nobody has to do anything; it is tried again.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.why, Why::Passing(_) | Why::NotFound(_))
    }
}

fn why(error: &kube::Error) -> Why {
    let kube::Error::Api(status) = error else { return Why::Passing(short(&error.to_string())) };
    let said = if status.message.is_empty() { &status.reason } else { &status.message };
    let immutable = ["Forbidden: updates to", "field is immutable"].iter().any(|part| said.contains(part));
    match status.code {
        403 if said.contains("is being terminated") => Why::NamespaceEnding,
        422 if immutable => Why::Immutable(short(said)),
        400 | 401 | 403 | 413 | 422 => Why::Refused(short(said)),
        404 => Why::NotFound(short(said)),
        _ => Why::Passing(short(said)),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::StatefulSet;

    use super::*;

    #[test]
    fn what_a_person_can_solve_is_told_from_what_may_pass() {
        let problem = |code: u16, message: &str| {
            let status = kube::core::Status { code, message: message.to_owned(), ..Default::default() };
            Problem::of::<StatefulSet>("x", &kube::Error::Api(Box::new(status)))
        };
        let why = |code, message| problem(code, message).why;
        let forbidden = "StatefulSet.apps \"x\" is invalid: spec: Forbidden: updates to statefulset spec";
        assert!(matches!(why(422, forbidden), Why::Immutable(_)));
        assert!(matches!(
            why(422, "data: Forbidden: field is immutable when `immutable` is set"),
            Why::Immutable(_)
        ));
        assert!(matches!(why(422, "spec.replicas: must be positive"), Why::Refused(_)));
        assert!(matches!(why(403, "exceeded quota"), Why::Refused(_)));
        assert_eq!(why(403, "namespace x because it is being terminated"), Why::NamespaceEnding);
        for passing in [404, 408, 409, 429, 500, 503, 504] {
            assert!(problem(passing, "later").may_pass(), "{passing} may pass");
        }
        for told in [400, 401, 403, 413, 422] {
            assert!(!problem(told, "no").may_pass(), "{told} is for a person");
        }
        assert!(Problem::of::<StatefulSet>("x", &kube::Error::Service("away".into())).may_pass());
    }
}
