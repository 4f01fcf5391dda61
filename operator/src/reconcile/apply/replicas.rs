//! StatefulSets and Deployments, whose number of pods may be somebody else's.
//!
//! With the number in the resource it is applied like every other field. Without, nobody's value is touched: at creation
//! the field manager `disagg-initial` applies the first number, and when the number leaves the resource, that manager
//! takes it over as it is before ours lets go of it, since a field without an owner would fall back to 1. An autoscaler
//! that writes the number owns it from then on.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use kube::ResourceExt as _;
use kube::api::{ObjectMeta, Patch, PatchParams};
use serde_json::json;

use super::child::{Applying, MANAGER, MadeOrFound};
use super::problem::Problem;
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

/// A child with a number of pods, as the API server has it after the apply.
pub(super) struct Outcome<K> {
    /// Nothing, if it could not be made.
    pub object: Option<K>,
    pub problem: Option<Problem>,
}

/// Applies `desired`, and the number as the rules have it.
pub(super) async fn apply<K: Scaled>(applying: &Applying<'_>, desired: &K, number: Replicas) -> Outcome<K> {
    let name = desired.name_any();
    let mut object = None;
    let work = Box::pin(bring_about(applying, desired, number, &mut object));
    let result = applying.within::<K, _>(&name, work).await;
    Outcome { object, problem: result.err() }
}

/// `object` is what there is after each step, so that it is known even if a later one fails.
async fn bring_about<K: Scaled>(
    applying: &Applying<'_>,
    desired: &K,
    number: Replicas,
    object: &mut Option<K>,
) -> Result<(), Problem> {
    let name = desired.name_any();
    let found = match applying.find_or_make(desired).await? {
        MadeOrFound::Made(made) => {
            let meta = made.meta().clone();
            *object = Some(*made);
            if let Replicas::Free { initial } = number {
                *object = Some(hold::<K>(applying, &meta, initial).await?);
            }
            return Ok(());
        }
        MadeOrFound::Found(found) => found,
    };
    // Of one that could not be decoded the watch has no more than the metadata.
    let found = match found.whole {
        Some(_) => *found,
        None => applying.ask(&name).await?.unwrap_or(*found),
    };
    object.clone_from(&found.whole);
    if let Replicas::Free { initial } = number {
        let owners = owners(&found.meta);
        if owners.is_empty() || owners.contains(&MANAGER) {
            let live = found.whole.as_ref().and_then(Scaled::replicas);
            *object = Some(hold::<K>(applying, &found.meta, live.unwrap_or(initial)).await?);
        }
    }
    if let Some(now) = applying.update(desired, &found).await? {
        *object = Some(now);
    }
    Ok(())
}

/// Lets the manager of nobody's numbers own it at `replicas`.
async fn hold<K: Scaled>(applying: &Applying<'_>, meta: &ObjectMeta, replicas: i32) -> Result<K, Problem> {
    let name = meta.name.as_deref().unwrap_or_default();
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name, "uid": meta.uid },
        "spec": { "replicas": replicas },
    });
    // By force: between reading and this an autoscaler may have written, and then keeps the ownership by its next write.
    let params = PatchParams::apply(INITIAL_MANAGER).force();
    let held = applying.api::<K>().patch(name, &params, &Patch::Apply(&body)).await;
    held.map_err(|error| Problem::of::<K>(name, &error))
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
