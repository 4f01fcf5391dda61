//! StatefulSets and Deployments, whose number of pods may be somebody else's.
//!
//! With the number in the resource it is applied like every other field. Without, nobody's value is touched: at creation
//! the field manager `disagg-initial` applies the first number, and when the number leaves the resource, that manager
//! takes it over as it is before ours lets go of it, since a field without an owner would fall back to 1. An autoscaler
//! that writes the number owns it from then on.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use kube::api::{ObjectMeta, Patch, PatchParams};
use serde_json::json;

use super::child::{Problem, Run, There, kind};
use super::{ApplyError, MANAGER};
use crate::reconcile::validate::Replicas;
use crate::stores::Child;

/// Owns the number while nobody else wants to.
const INITIAL_MANAGER: &str = "disagg-initial";

/// A child with a number of pods.
pub(super) trait Scaled: Child {
    fn replicas(&self) -> Option<i32>;
}

impl Scaled for StatefulSet {
    fn replicas(&self) -> Option<i32> {
        self.spec.as_ref()?.replicas
    }
}

impl Scaled for Deployment {
    fn replicas(&self) -> Option<i32> {
        self.spec.as_ref()?.replicas
    }
}

/// Applies `desired`, and the number as the rules have it.
pub(super) async fn apply<K: Scaled>(
    run: &Run<'_>,
    desired: &K,
    live: Option<&K>,
    number: Replicas,
) -> Result<Option<Problem>, ApplyError> {
    let meta = match run.find_or_make(desired).await? {
        There::Bad(problem) => return Ok(Some(problem)),
        There::New(meta) => {
            if let Replicas::Free { initial } = number {
                hold::<K>(run, &meta, initial).await?;
            }
            return Ok(None);
        }
        There::Ours(meta) => meta,
    };
    if let Replicas::Free { initial } = number {
        // The watch of the whole object is behind; it will come.
        let Some(live) = live else { return Ok(None) };
        let owners = owners(&meta);
        if owners.is_empty() || owners.contains(&MANAGER) {
            hold::<K>(run, &meta, live.replicas().unwrap_or(initial)).await?;
        }
    }
    run.update(desired, &meta).await
}

/// Lets the manager of nobody's numbers own it at `replicas`.
async fn hold<K: Scaled>(run: &Run<'_>, meta: &ObjectMeta, replicas: i32) -> Result<(), ApplyError> {
    let name = meta.name.as_deref().unwrap_or_default();
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name, "uid": meta.uid },
        "spec": { "replicas": replicas },
    });
    // By force: between reading and this an autoscaler may have written, and then keeps the ownership by its next write.
    let params = PatchParams::apply(INITIAL_MANAGER).force();
    run.api::<K>()
        .patch_metadata(name, &params, &Patch::Apply(&body))
        .await
        .map(|_| ())
        .map_err(|source| ApplyError::Write { kind: kind::<K>(), name: name.to_owned(), source })
}

/// The field managers that own the number.
fn owners(meta: &ObjectMeta) -> Vec<&str> {
    let owns = |fields: &serde_json::Value| fields.pointer("/f:spec/f:replicas").is_some();
    meta.managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| owns(&fields.0)))
        .filter_map(|entry| entry.manager.as_deref())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_the_number_are_read_from_managed_fields() {
        let set: StatefulSet = serde_json::from_value(json!({
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": { "managedFields": [
                { "manager": MANAGER, "operation": "Apply", "fieldsV1": { "f:spec": { "f:serviceName": {} } } },
                { "manager": "hpa", "subresource": "scale", "fieldsV1": { "f:spec": { "f:replicas": {} } } },
            ]},
        }))
        .unwrap();
        assert_eq!(owners(&set.metadata), ["hpa"]);
    }
}
