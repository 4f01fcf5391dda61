//! What a cluster's own rules do to children: policies and webhooks of one namespace, which end with the test.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use disagg_e2e::cluster::Namespace;
use disagg_e2e::eventually;
use serde_json::{Value, json};

/// Longest wait for the API server to follow a policy that is made or taken away.
const FOLLOWED: Duration = Duration::from_secs(30);

/// Objects of the cluster that are deleted at the end.
pub(super) struct Rules<'a> {
    namespace: &'a Namespace,
    objects: Vec<String>,
}

/// Which objects of a namespace are meant.
pub(super) struct Match {
    pub group: &'static str,
    pub resources: &'static [&'static str],
    pub operations: &'static [&'static str],
}

impl Match {
    fn rule(&self) -> Value {
        json!({
            "apiGroups": [self.group], "apiVersions": ["*"], "resources": self.resources, "operations": self.operations,
        })
    }
}

fn only_in(namespace: &Namespace) -> Value {
    json!({ "matchLabels": { "kubernetes.io/metadata.name": namespace.name() } })
}

impl<'a> Rules<'a> {
    /// A policy that refuses what matches, and says `why`.
    pub(super) fn refuse(namespace: &'a Namespace, matches: &Match, why: &str) -> Self {
        let name = format!("{}-refuse", namespace.name());
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": { "name": name },
            "spec": {
                "matchConstraints": {
                    "namespaceSelector": only_in(namespace), "resourceRules": [matches.rule()],
                },
                "validations": [{ "expression": "false", "message": why }],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": { "name": name }, "spec": { "policyName": name, "validationActions": ["Deny"] },
        });
        Self::apply(namespace, &[policy, binding])
    }

    /// A policy that changes what matches by a CEL expression.
    pub(super) fn change(namespace: &'a Namespace, matches: &Match, mutation: &Value) -> Self {
        let name = format!("{}-change", namespace.name());
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy",
            "metadata": { "name": name },
            "spec": {
                "matchConstraints": {
                    "namespaceSelector": only_in(namespace), "resourceRules": [matches.rule()],
                },
                "reinvocationPolicy": "Never", "mutations": [mutation],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
            "metadata": { "name": name }, "spec": { "policyName": name },
        });
        Self::apply(namespace, &[policy, binding])
    }

    /// A webhook at `url` that has to agree to what matches, within a second.
    pub(super) fn webhook(namespace: &'a Namespace, matches: &Match, url: &str) -> Self {
        let webhook = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": format!("{}-webhook", namespace.name()) },
            "webhooks": [{
                "name": "away.example.com", "clientConfig": { "url": url }, "rules": [matches.rule()],
                "namespaceSelector": only_in(namespace), "failurePolicy": "Fail", "sideEffects": "None",
                "timeoutSeconds": 1, "admissionReviewVersions": ["v1"],
            }],
        });
        Self::apply(namespace, &[webhook])
    }

    fn apply<const N: usize>(namespace: &'a Namespace, objects: &[Value; N]) -> Self {
        let name = |object: &Value| {
            let text = |value: &Value| value.as_str().expect("text").to_lowercase();
            format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
        };
        let rules = Self { namespace, objects: objects.iter().map(name).collect() };
        for object in objects {
            let mut command = namespace.kubectl_command();
            command.args(["apply", "--server-side", "--filename=-"]).stdin(Stdio::piped());
            let mut kubectl = command.spawn().expect("kubectl");
            let mut input = kubectl.stdin.take().expect("its input");
            input.write_all(object.to_string().as_bytes()).expect("kubectl reads");
            drop(input);
            assert!(kubectl.wait().expect("kubectl").success(), "{object}");
        }
        rules
    }

    /// Waits until an object, sent without effect, is answered as `says` has it: the API server follows.
    pub(super) async fn followed(&self, object: &Value, says: impl Fn(&Result<String, String>) -> bool) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("object.json");
        std::fs::write(&file, object.to_string()).expect("a file");
        let file = file.to_str().expect("UTF-8");
        eventually("the API server to follow", FOLLOWED, async || {
            let answer =
                self.namespace.kubectl(&["create", "--dry-run=server", "--output=json", "--filename", file]);
            if says(&answer) { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        for object in &self.objects {
            let deleted = self.namespace.kubectl(&["delete", object, "--ignore-not-found"]);
            if let Err(error) = deleted {
                eprintln!("{object} is left: {error}");
            }
        }
    }
}
