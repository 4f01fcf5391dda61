//! One child: made if it is not there, refused if it is somebody else's, and applied if it is not as it should be.
//!
//! A child that is as it was left costs no request. A new one costs one: an apply that cannot change anything that is
//! there already, so nobody has to look first.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use kube::ResourceExt as _;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_64;

use super::problem::{Problem, Why};
use crate::client::is_conflict;
use crate::context::Context;
use crate::memory::Memory;
use crate::reconcile::ownership::Held;
use crate::reconcile::subject::Subject;
use crate::stores::{Child, Found, kind};

/// Field manager of what the operator applies.
pub(crate) const MANAGER: &str = "disagg-operator";

/// A version that no object has: the API server's store begins to count above it. An apply that is bound to it makes an
/// object or is refused with a conflict.
const NO_VERSION: &str = "1";

/// How long all requests for one child may take together. An admission webhook that does not answer holds each request
/// for 10 s, unless it is configured otherwise.
const CHILD_WITHIN: Duration = Duration::from_secs(20);

/// What applying remembers of a resource.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// What was sent last, by kind and name of the child, so that equal objects are not sent again.
    sent: HashMap<ChildKey, Sent>,
    /// The settings as they were last seen, for a ConfigMap that is deleted with its annotations.
    pub(super) settings: Option<Held>,
}

/// Kind and name of a child.
pub(super) type ChildKey = (&'static str, String);

/// What was sent last, and the mark of the object that came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sent {
    hash: u64,
    mark: String,
}

/// The apply of one resource's children.
pub(super) struct Applying<'a> {
    pub context: &'a Context,
    pub subject: &'a Subject,
    pub memory: &'a Memory<Remembered>,
    pub noted: Noted,
}

/// What was noticed on the way.
#[derive(Default)]
pub(super) struct Noted {
    /// A child was made.
    pub made: AtomicBool,
    /// A child is there that its watch does not show: it has to be asked for.
    pub unseen: AtomicBool,
    /// Children that had lost their owner.
    pub adopted: Mutex<Vec<ChildKey>>,
}

/// The object of a child's name, which was not there before or is this resource's.
pub(super) enum MadeOrFound<K> {
    /// It was made just now.
    Made(Box<K>),
    /// It was made before, and may have to be changed.
    Found(Box<Found<K>>),
}

impl<'a> Applying<'a> {
    pub(super) fn new(context: &'a Context, subject: &'a Subject, memory: &'a Memory<Remembered>) -> Self {
        Self { context, subject, memory, noted: Noted::default() }
    }

    pub(super) fn api<K: Child>(&self) -> Api<K> {
        Api::namespaced(self.context.client.clone(), &self.subject.id.namespace)
    }

    /// Brings all of `desired` about, side by side: none waits for one that cannot be applied.
    pub(super) async fn apply_all<K: Child>(&self, desired: &[K]) -> Vec<Problem> {
        join_all(desired.iter().map(|desired| self.apply(desired))).await.into_iter().flatten().collect()
    }

    /// Brings `desired` about, or says why it cannot be.
    pub(super) async fn apply<K: Child>(&self, desired: &K) -> Option<Problem> {
        let work = async {
            match self.find_or_make(desired).await? {
                MadeOrFound::Made(_) => Ok(()),
                MadeOrFound::Found(found) => self.update(desired, &found).await.map(drop),
            }
        };
        // On the heap: a turn applies many children at once, and each takes several requests.
        self.within::<K, _>(&desired.name_any(), Box::pin(work)).await.err()
    }

    /// `work` on a child, for a bounded time.
    pub(super) async fn within<K: Child, T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        timeout(CHILD_WITHIN, work).await.unwrap_or_else(|_| {
            let why = format!("the API server has not answered within {} s", CHILD_WITHIN.as_secs());
            Err(Problem::new::<K>(name, Why::Passing(why)))
        })
    }

    /// Finds what has the name of `desired`, or makes it. The watches show only what has our label; what they lack, the
    /// API server knows.
    pub(super) async fn find_or_make<K: Child>(&self, desired: &K) -> Result<MadeOrFound<K>, Problem> {
        let name = desired.name_any();
        if let Some(found) = K::known(&self.context.stores, &self.subject.id.namespace, &name)
            && let Ok(ours) = self.ours(desired, found)
        {
            return Ok(MadeOrFound::Found(Box::new(ours)));
        }
        // That something is somebody else's is not said by what may be out of date.
        let (body, hash) = body(desired)?;
        let mut only_new = body.clone();
        only_new["metadata"]["resourceVersion"] = json!(NO_VERSION);
        let mut sent = self.send::<K>(&name, &only_new, hash).await;
        if sent.as_ref().is_err_and(is_conflict) {
            if let Some(found) = self.ask(&name).await? {
                self.noted.unseen.store(true, Ordering::Relaxed);
                return self.ours(desired, found).map(|ours| MadeOrFound::Found(Box::new(ours)));
            }
            // It was something else that conflicted, a quota for one.
            sent = self.send::<K>(&name, &body, hash).await;
        }
        let made = sent.map_err(|error| Problem::of::<K>(&name, &error))?;
        self.noted.made.store(true, Ordering::Relaxed);
        Ok(MadeOrFound::Made(Box::new(made)))
    }

    /// Asks the API server for a child.
    pub(super) async fn ask<K: Child>(&self, name: &str) -> Result<Option<Found<K>>, Problem> {
        let found = self.api::<K>().get_opt(name).await;
        Ok(found.map_err(|error| Problem::of::<K>(name, &error))?.map(Found::whole))
    }

    /// `found`, unless it is somebody else's.
    ///
    /// An object of a child's name that belongs to nobody and has all labels of the child is the child, whose owner was
    /// deleted without it (`kubectl delete --cascade=orphan`): applying it makes it ours again.
    fn ours<K: Child>(&self, desired: &K, found: Found<K>) -> Result<Found<K>, Problem> {
        let mut owners = found.meta.owner_references.iter().flatten().peekable();
        let labels = found.meta.labels.as_ref();
        let has_our_labels = desired
            .labels()
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value));
        let orphan = owners.peek().is_none() && has_our_labels;
        if self.subject.owns(&found.meta) || orphan {
            return Ok(found);
        }
        let owner = owners.find(|owner| owner.controller == Some(true));
        let owner = owner.map(|owner| format!("{} {}", owner.kind, owner.name));
        Err(Problem::new::<K>(&desired.name_any(), Why::Foreign { owner }))
    }

    /// Applies `desired` over `found`, which is ours, unless it is as it was applied last; gives what came of it.
    pub(super) async fn update<K: Child>(&self, desired: &K, found: &Found<K>) -> Result<Option<K>, Problem> {
        let name = desired.name_any();
        let (body, hash) = body(desired)?;
        let unchanged = Sent { hash, mark: mark(&body, &found.meta) };
        let key = (kind::<K>(), name.clone());
        if self.memory.of(&self.subject.id, |of| of.sent.get(&key) == Some(&unchanged)) {
            return Ok(None);
        }
        match self.overwrite(&name, body.clone(), hash, found).await {
            // The watch is behind, or another object has come to the name: once more, over what is there now.
            Err(error) if is_conflict(&error) => match self.ask(&name).await? {
                Some(now) => self.overwrite(&name, body, hash, &self.ours(desired, now)?).await,
                None => Err(error),
            },
            outcome => outcome,
        }
        .map(Some)
        .map_err(|error| Problem::of::<K>(&name, &error))
    }

    async fn overwrite<K: Child>(
        &self,
        name: &str,
        mut body: Value,
        hash: u64,
        found: &Found<K>,
    ) -> Result<K, kube::Error> {
        // Never over another object that has come to the name meanwhile.
        body["metadata"]["uid"] = json!(found.meta.uid);
        let now = self.send(name, &body, hash).await?;
        if !self.subject.owns(&found.meta) {
            self.noted.adopted.lock().push((kind::<K>(), name.to_owned()));
        }
        Ok(now)
    }

    /// Sends an apply, and remembers what came of it.
    async fn send<K: Child>(&self, name: &str, body: &Value, hash: u64) -> Result<K, kube::Error> {
        let params = PatchParams::apply(MANAGER).force();
        let now = self.api::<K>().patch(name, &params, &Patch::Apply(body)).await?;
        let sent = Sent { hash, mark: mark(body, now.meta()) };
        let key = (kind::<K>(), name.to_owned());
        self.memory.of(&self.subject.id, |of| of.sent.insert(key, sent));
        tracing::debug!(kind = kind::<K>(), name, "applied");
        Ok(now)
    }
}

/// `desired` as an apply body, and the hash of that.
fn body<K: Child>(desired: &K) -> Result<(Value, u64), Problem> {
    let mut body = serde_json::to_value(desired)
        .map_err(|error| Problem::of::<K>(&desired.name_any(), &kube::Error::SerdeError(error)))?;
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
}
