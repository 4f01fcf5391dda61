//! What a request to the API server is, as RBAC and the audit log call it.

use http::{Method, Uri};

/// Verb and resource of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// `get`, `list`, `watch`, `create`, `patch`, `update` or `delete`.
    pub verb: &'static str,
    /// The plural, with its subresource: `disaggdeployments/status`. `-` for a path that is no resource.
    pub resource: String,
}

impl Request {
    /// From method and URI.
    pub(crate) fn of(method: &Method, uri: &Uri) -> Self {
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
        // /api/VERSION or /apis/GROUP/VERSION, then perhaps namespaces/NAMESPACE, then RESOURCE/NAME/SUBRESOURCE.
        let skipped = if parts.next() == Some("apis") { 2 } else { 1 };
        let mut rest: Vec<&str> = parts.skip(skipped).collect();
        if rest.len() > 2 && rest[0] == "namespaces" {
            rest.drain(..2);
        }
        let resource = match rest[..] {
            [] => "-".to_owned(),
            [resource] | [resource, _] => resource.to_owned(),
            [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
        };
        let watches =
            uri.query().is_some_and(|query| query.split('&').any(|part| part.starts_with("watch=")));
        let verb = match *method {
            Method::GET if watches => "watch",
            Method::GET if rest.len() == 1 => "list",
            Method::POST => "create",
            Method::PATCH => "patch",
            Method::PUT => "update",
            Method::DELETE => "delete",
            _ => "get",
        };
        Self { verb, resource }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_called_as_rbac_calls_them() {
        let cases = [
            ("GET", "/api/v1/configmaps?&labelSelector=a", "list configmaps"),
            ("GET", "/apis/apps/v1/namespaces/ns/statefulsets?&watch=true&a=b", "watch statefulsets"),
            ("GET", "/apis/apps/v1/namespaces/ns/statefulsets/x", "get statefulsets"),
            ("PATCH", "/api/v1/namespaces/ns/services/x?&force=true", "patch services"),
            (
                "PATCH",
                "/apis/disagg.dev/v1alpha1/namespaces/ns/disaggdeployments/x/status",
                "patch disaggdeployments/status",
            ),
            ("POST", "/apis/events.k8s.io/v1/namespaces/ns/events?", "create events"),
            ("DELETE", "/apis/monitoring.coreos.com/v1/namespaces/ns/podmonitors/x", "delete podmonitors"),
            ("GET", "/apis/monitoring.coreos.com/v1", "get -"),
            ("GET", "/version", "get -"),
        ];
        for (method, path, called) in cases {
            let request = Request::of(&method.parse().unwrap(), &path.parse().unwrap());
            assert_eq!(format!("{} {}", request.verb, request.resource), called, "{method} {path}");
        }
    }
}
