//! One child: looked at, refused if it is somebody else's, and applied if it is not as it should be.

use disagg_api::DisaggDeployment;
use kube::ResourceExt as _;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{ApplyError, MANAGER};
use crate::context::{Context, Key};
use crate::reconcile::dereference::is_owned;
use crate::stores::Child;

/// One resource's turn.
pub(super) struct Run<'a> {
    pub context: &'a Context,
    pub resource: &'a DisaggDeployment,
    pub namespace: &'a str,
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

/// What became of one child.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Fate {
    /// It is as it should be. Metadata as it is now, if it was sent.
    Good(Option<Box<ObjectMeta>>),
    Bad(Problem),
}

impl Fate {
    pub(super) fn problem(self) -> Option<Problem> {
        match self {
            Self::Good(_) => None,
            Self::Bad(problem) => Some(problem),
        }
    }
}

/// What is there under a child's name.
pub(super) enum There {
    Nothing,
    Ours(Box<ObjectMeta>),
    Foreign(Problem),
}

impl Run<'_> {
    pub(super) fn key<K: Child>(&self, name: &str) -> Key {
        Key { kind: kind::<K>(), namespace: self.namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn api<K: Child>(&self) -> Api<K> {
        Api::namespaced(self.context.client.clone(), self.namespace)
    }

    /// Looks at what has the name. The watches show only what has our label, so what they lack is asked for.
    pub(super) async fn look<K: Child>(&self, name: &str) -> Result<There, ApplyError> {
        let meta =
            if let Some(meta) = K::known(&self.context.stores, self.namespace, name) {
                meta
            } else {
                let found = self.api::<K>().get_metadata_opt(name).await.map_err(|source| {
                    ApplyError::Read { kind: kind::<K>(), name: name.to_owned(), source }
                })?;
                let Some(found) = found else { return Ok(There::Nothing) };
                found.metadata
            };
        if is_owned(&meta, self.resource) {
            return Ok(There::Ours(Box::new(meta)));
        }
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let owner = owner.map(|owner| format!("{} {}", owner.kind, owner.name));
        Ok(There::Foreign(Problem::Foreign { kind: kind::<K>(), name: name.to_owned(), owner }))
    }

    /// Brings `desired` about.
    pub(super) async fn apply<K: Child>(&self, desired: &K) -> Result<Fate, ApplyError> {
        let name = desired.name_any();
        let there = match self.look::<K>(&name).await? {
            There::Foreign(problem) => return Ok(Fate::Bad(problem)),
            There::Nothing => None,
            There::Ours(meta) => Some(meta),
        };
        self.send(desired, there.as_deref()).await
    }

    /// Applies `desired` over `live`, which is ours, unless it is as it was applied last.
    pub(super) async fn send<K: Child>(
        &self,
        desired: &K,
        live: Option<&ObjectMeta>,
    ) -> Result<Fate, ApplyError> {
        let name = desired.name_any();
        let mut body = body(desired)?;
        let key = self.key::<K>(&name);
        let hash = xxh3_64(body.to_string().as_bytes());
        if let Some(live) = live {
            let unchanged = Applied { hash, mark: mark(live) };
            if self.context.applied.lock().get(&key) == Some(&unchanged) {
                return Ok(Fate::Good(None));
            }
            // Never over another object that has come to the name meanwhile.
            body["metadata"]["uid"] = json!(live.uid);
        }
        let params = PatchParams::apply(MANAGER).force();
        match self.api::<K>().patch_metadata(&name, &params, &Patch::Apply(&body)).await {
            Ok(now) => {
                let applied = Applied { hash, mark: mark(&now.metadata) };
                self.context.applied.lock().insert(key, applied);
                tracing::debug!(kind = kind::<K>(), name, "applied");
                Ok(Fate::Good(Some(Box::new(now.metadata))))
            }
            Err(error) => refusal::<K>(&name, error).map(Fate::Bad),
        }
    }
}

pub(super) fn kind<K: Child>() -> &'static str {
    // The kinds of `k8s-openapi` are constants.
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        std::borrow::Cow::Owned(_) => "object",
    }
}

/// `desired` as an apply body.
fn body<K: Child>(desired: &K) -> Result<Value, ApplyError> {
    let mut body = serde_json::to_value(desired).map_err(|source| ApplyError::Write {
        kind: kind::<K>(),
        name: desired.name_any(),
        source: kube::Error::SerdeError(source),
    })?;
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    Ok(body)
}

/// Tells states of an object apart, as far as they are ours: its generation, where the API server keeps one (the status
/// changes often and is not ours), with the metadata that a generation leaves out; its resourceVersion elsewhere.
fn mark(meta: &ObjectMeta) -> String {
    let uid = meta.uid.as_deref().unwrap_or_default();
    match meta.generation {
        Some(generation) => {
            let rest = json!([meta.labels, meta.annotations, meta.owner_references]).to_string();
            format!("{uid}/{generation}/{:x}", xxh3_64(rest.as_bytes()))
        }
        None => format!("{uid}/{}", meta.resource_version.as_deref().unwrap_or_default()),
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
