//! The API server's audit log.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A request of a ServiceAccount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// `system:serviceaccount:NAMESPACE:NAME`
    pub(crate) account: String,
    /// For example `patch`.
    pub(crate) verb: String,
    /// API group, empty for the core.
    pub(crate) group: String,
    /// `resource` or `resource/subresource`; the path of a request for no resource.
    pub(crate) resource: String,
    /// Of the object, where the request names one.
    pub(crate) name: String,
    /// HTTP status.
    pub(crate) code: u16,
    /// It was not allowed by RBAC. A namespace that is ending lets nobody create anything; that is no question of rights,
    /// and is told with the same HTTP status.
    pub(crate) refused: bool,
    /// When it came, as RFC 3339 has it, in UTC and whole seconds.
    pub(crate) at: String,
}

impl Request {
    /// In the words of RBAC.
    pub(crate) fn what(&self) -> String {
        format!("{} {} of {:?} {}", self.verb, self.resource, self.group, self.name)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    user: User,
    #[serde(rename = "requestURI")]
    request_uri: String,
    object_ref: Option<ObjectRef>,
    response_status: Option<Status>,
    #[serde(default)]
    request_received_timestamp: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    name: String,
    api_group: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

/// Reads a log of JSON lines. Panics on a line that is none.
pub(crate) fn parse(log: &str) -> Vec<Request> {
    let read = |line: &str| {
        let event: Event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let (group, resource, name) = match event.object_ref {
            Some(object) if object.subresource.is_empty() => (object.api_group, object.resource, object.name),
            Some(object) => {
                (object.api_group, format!("{}/{}", object.resource, object.subresource), object.name)
            }
            None => {
                let path = event.request_uri.split('?').next().unwrap_or_default();
                (String::new(), path.to_owned(), String::new())
            }
        };
        let code = event.response_status.as_ref().map_or(0, |status| status.code);
        let decision = event.annotations.get("authorization.k8s.io/decision");
        let refused = decision.is_some_and(|decision| decision == "forbid");
        let at = event.request_received_timestamp.get(..19).unwrap_or_default().to_owned();
        Request { account: event.user.username, verb: event.verb, group, resource, name, code, refused, at }
    };
    log.lines().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request() {
        let line = r#"{"verb":"patch","user":{"username":"system:serviceaccount:a:b"},
            "requestURI":"/apis/disagg.dev/v1alpha1/x?y",
            "objectRef":{"resource":"disaggdeployments","subresource":"status","name":"demo","apiGroup":"disagg.dev"},
            "responseStatus":{"code":200},"requestReceivedTimestamp":"2026-11-25T14:32:28.123456Z"}"#;
        let requests = parse(&line.replace('\n', ""));
        assert_eq!(requests[0].what(), r#"patch disaggdeployments/status of "disagg.dev" demo"#);
        assert_eq!((requests[0].account.as_str(), requests[0].code), ("system:serviceaccount:a:b", 200));
        assert_eq!(requests[0].at, "2026-11-25T14:32:28");
        for (decision, refused) in [("allow", false), ("forbid", true)] {
            let annotations = format!(r#"{{"annotations":{{"authorization.k8s.io/decision":"{decision}"}},"#);
            let line = line.replace('\n', "").replacen('{', &annotations, 1);
            assert_eq!(parse(&line)[0].refused, refused, "{line}");
        }
    }
}
