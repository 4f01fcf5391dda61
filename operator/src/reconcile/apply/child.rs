//! One child: made if it is not there, refused if it is somebody else's, and applied if it is not as it should be.
//!
//! A child that is as it was left costs no request. A new one costs one: an apply that cannot change anything that is
//! there already, so nobody has to look first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use disagg_api::DisaggDeployment;
use kube::ResourceExt as _;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{ApplyError, MANAGER};
use crate::client::is_conflict;
use crate::context::{Context, Key};
use crate::reconcile::dereference::is_owned;
use crate::stores::Child;

/// A version that no object has: the API server's store begins to count above it. An apply that is bound to it makes an
/// object or is refused with a conflict.
const NO_VERSION: &str = "1";

/// One resource's turn.
pub(super) struct Run<'a> {
    pub context: &'a Context,
    pub resource: &'a DisaggDeployment,
    pub namespace: &'a str,
    /// A child was made.
    pub made: AtomicBool,
}

/// What was applied, and the mark of the object that came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Applied {
    hash: u64,
    mark: String,
}

/// A child that only a person can put right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Problem {
    /// It has the name of our child and is not ours.
    Foreign { kind: &'static str, name: String, owner: Option<String> },
    /// The change touches a field that cannot change.
    Immutable { kind: &'static str, name: String, message: String },
    /// The API server finds it invalid, or does not allow it.
    Refused { kind: &'static str, name: String, message: String },
}

/// What is there under a child's name.
pub(super) enum There {
    /// It was made just now.
    New(Box<ObjectMeta>),
    /// It was made before, and may have to be changed.
    Ours(Box<ObjectMeta>),
    /// A person has to do something.
    Bad(Problem),
}

impl Run<'_> {
    pub(super) fn key<K: Child>(&self, name: &str) -> Key {
        Key { kind: kind::<K>(), namespace: self.namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn api<K: Child>(&self) -> Api<K> {
        Api::namespaced(self.context.client.clone(), self.namespace)
    }

    /// Brings `desired` about.
    pub(super) async fn apply<K: Child>(&self, desired: &K) -> Result<Option<Problem>, ApplyError> {
        match self.find_or_make(desired).await? {
            There::Bad(problem) => Ok(Some(problem)),
            There::New(_) => Ok(None),
            There::Ours(meta) => self.update(desired, &meta).await,
        }
    }

    /// Finds what has the name of `desired`, or makes it. The watches show only what has our label; what they lack, the
    /// API server knows.
    pub(super) async fn find_or_make<K: Child>(&self, desired: &K) -> Result<There, ApplyError> {
        let name = desired.name_any();
        if let Some(meta) = K::known(&self.context.stores, self.namespace, &name) {
            return Ok(self.whose::<K>(&name, meta));
        }
        let (body, hash) = body(desired)?;
        let mut only_new = body.clone();
        only_new["metadata"]["resourceVersion"] = json!(NO_VERSION);
        let mut sent = self.send::<K>(&name, &only_new, hash).await;
        if sent.as_ref().is_err_and(is_conflict) {
            let found = self.api::<K>().get_metadata_opt(&name).await;
            let found =
                found.map_err(|source| ApplyError::Read { kind: kind::<K>(), name: name.clone(), source })?;
            if let Some(found) = found {
                return Ok(self.whose::<K>(&name, found.metadata));
            }
            // It was something else that conflicted, a quota for one.
            sent = self.send::<K>(&name, &body, hash).await;
        }
        match sent {
            Ok(meta) => {
                self.made.store(true, Ordering::Relaxed);
                Ok(There::New(Box::new(meta)))
            }
            Err(error) => refusal::<K>(&name, error).map(There::Bad),
        }
    }

    fn whose<K: Child>(&self, name: &str, meta: ObjectMeta) -> There {
        if is_owned(&meta, self.resource) {
            return There::Ours(Box::new(meta));
        }
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let owner = owner.map(|owner| format!("{} {}", owner.kind, owner.name));
        There::Bad(Problem::Foreign { kind: kind::<K>(), name: name.to_owned(), owner })
    }

    /// Applies `desired` over `live`, which is ours, unless it is as it was applied last.
    pub(super) async fn update<K: Child>(
        &self,
        desired: &K,
        live: &ObjectMeta,
    ) -> Result<Option<Problem>, ApplyError> {
        let name = desired.name_any();
        let (mut body, hash) = body(desired)?;
        let unchanged = Applied { hash, mark: mark(&body, live) };
        if self.context.applied.lock().get(&self.key::<K>(&name)) == Some(&unchanged) {
            return Ok(None);
        }
        // Never over another object that has come to the name meanwhile.
        body["metadata"]["uid"] = json!(live.uid);
        match self.send::<K>(&name, &body, hash).await {
            Ok(_) => Ok(None),
            Err(error) => refusal::<K>(&name, error).map(Some),
        }
    }

    /// Sends an apply, and remembers what came of it.
    async fn send<K: Child>(&self, name: &str, body: &Value, hash: u64) -> Result<ObjectMeta, kube::Error> {
        let params = PatchParams::apply(MANAGER).force();
        let now = self.api::<K>().patch_metadata(name, &params, &Patch::Apply(body)).await?.metadata;
        self.context.applied.lock().insert(self.key::<K>(name), Applied { hash, mark: mark(body, &now) });
        tracing::debug!(kind = kind::<K>(), name, "applied");
        Ok(now)
    }
}

pub(super) fn kind<K: Child>() -> &'static str {
    // The kinds of `k8s-openapi` are constants.
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        std::borrow::Cow::Owned(_) => "object",
    }
}

/// `desired` as an apply body, and the hash of that.
fn body<K: Child>(desired: &K) -> Result<(Value, u64), ApplyError> {
    let mut body = serde_json::to_value(desired).map_err(|source| ApplyError::Write {
        kind: kind::<K>(),
        name: desired.name_any(),
        source: kube::Error::SerdeError(source),
    })?;
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    let hash = xxh3_64(body.to_string().as_bytes());
    Ok((body, hash))
}

/// Tells states of an object apart, as far as they are ours: its generation, where the API server keeps one (the status
/// changes often and is not ours), with the metadata of `applied` that a generation leaves out; its resourceVersion
/// elsewhere. Of an object of which `applied` has the metadata alone, that is all.
fn mark(applied: &Value, meta: &ObjectMeta) -> String {
    let uid = meta.uid.as_deref().unwrap_or_default();
    // Kubernetes' own controllers annotate, too.
    let ours = |field: &str, live: &Option<BTreeMap<String, String>>| -> Vec<Option<String>> {
        let keys = applied["metadata"][field].as_object().into_iter().flat_map(|map| map.keys());
        keys.map(|key| live.as_ref()?.get(key).cloned()).collect()
    };
    let rest =
        json!([ours("labels", &meta.labels), ours("annotations", &meta.annotations), meta.owner_references]);
    let rest = format!("{:x}", xxh3_64(rest.to_string().as_bytes()));
    let content = |key: &String| !["apiVersion", "kind", "metadata"].contains(&key.as_str());
    let has_content = applied.as_object().is_some_and(|applied| applied.keys().any(content));
    match (has_content, meta.generation) {
        (false, _) => format!("{uid}/{rest}"),
        (true, Some(generation)) => format!("{uid}/{generation}/{rest}"),
        (true, None) => format!("{uid}/{}", meta.resource_version.as_deref().unwrap_or_default()),
    }
}

/// Tells apart what a person has to solve from what may pass.
fn refusal<K: Child>(name: &str, error: kube::Error) -> Result<Problem, ApplyError> {
    let (kind, name) = (kind::<K>(), name.to_owned());
    if let kube::Error::Api(status) = &error {
        let message = || status.message.clone();
        let ending = status.message.contains("is being terminated");
        match status.code {
            422 if status.message.contains("Forbidden: updates to")
                || status.message.contains("field is immutable") =>
            {
                return Ok(Problem::Immutable { kind, name, message: message() });
            }
            400 | 422 => return Ok(Problem::Refused { kind, name, message: message() }),
            403 if !ending => return Ok(Problem::Refused { kind, name, message: message() }),
            _ => {}
        }
    }
    Err(ApplyError::Write { kind, name, source: error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(fields: &Value) -> ObjectMeta {
        serde_json::from_value(fields.clone()).unwrap()
    }

    #[test]
    fn what_others_may_change_is_no_change() {
        let whole = json!({ "metadata": { "labels": { "a": "x" } }, "spec": {} });
        let set = |generation: i64, version: &str, label: &str| {
            meta(&json!({
                "uid": "u", "generation": generation, "resourceVersion": version, "labels": { "a": label },
                "annotations": { "deployment.kubernetes.io/revision": version },
            }))
        };
        let before = mark(&whole, &set(1, "7", "x"));
        assert_eq!(before, mark(&whole, &set(1, "8", "x")), "its status, and what its controller notes");
        assert_ne!(before, mark(&whole, &set(2, "8", "x")), "its spec");
        assert_ne!(before, mark(&whole, &set(1, "8", "y")), "its labels, which no generation counts");
    }

    #[test]
    fn without_a_generation_every_version_is_another() {
        let role = json!({ "metadata": {}, "rules": [] });
        let of = |version: &str| meta(&json!({ "uid": "u", "resourceVersion": version }));
        assert_eq!(mark(&role, &of("7")), mark(&role, &of("7")));
        assert_ne!(mark(&role, &of("7")), mark(&role, &of("8")));
    }

    #[test]
    fn of_the_settings_the_metadata_alone_is_applied() {
        let metadata = json!({ "labels": { "a": "x" } });
        let settings = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata });
        let of = |version: &str, seeded: &str, label: &str| {
            meta(&json!({
                "uid": "u", "resourceVersion": version, "labels": { "a": label },
                "annotations": { "disagg.dev/seeded": seeded },
            }))
        };
        let before = mark(&settings, &of("7", "{}", "x"));
        assert_eq!(before, mark(&settings, &of("8", "{\"a\":\"b\"}", "x")), "its data");
        assert_ne!(before, mark(&settings, &of("8", "{}", "y")));
    }

    #[test]
    fn only_what_a_person_can_solve_is_a_problem() {
        let error = |code: u16, message: &str| {
            let status = kube::core::Status { code, message: message.to_owned(), ..Default::default() };
            refusal::<k8s_openapi::api::apps::v1::StatefulSet>("x", kube::Error::Api(Box::new(status)))
        };
        let forbidden = "StatefulSet.apps \"x\" is invalid: spec: Forbidden: updates to statefulset spec";
        assert!(matches!(error(422, forbidden), Ok(Problem::Immutable { .. })));
        assert!(matches!(error(422, "spec.selector: field is immutable"), Ok(Problem::Immutable { .. })));
        assert!(matches!(error(422, "spec.replicas: must be positive"), Ok(Problem::Refused { .. })));
        assert!(matches!(error(403, "exceeded quota"), Ok(Problem::Refused { .. })));
        assert!(error(403, "namespace x because it is being terminated").is_err());
        for passing in [409, 429, 500, 503] {
            assert!(error(passing, "later").is_err(), "{passing} may pass");
        }
    }
}
