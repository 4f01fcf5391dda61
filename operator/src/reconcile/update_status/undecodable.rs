//! What is said on a resource that this operator cannot decode: most often the definition in the cluster is of another
//! version, and let in what this one does not know.

use disagg_api::DisaggDeployment;
use disagg_api::kubernetes::conditions::{PROGRESSING, READY};
use kube::api::{Api, DynamicObject, ObjectMeta, Patch, PatchParams};
use kube::core::ApiResource;
use kube::core::error_boundary::InvalidObject;
use serde_json::json;

use super::write::{Remembered, UpdateStatusError, now, publish};
use super::{conditions, events};
use crate::context::Context;
use crate::memory::{Memory, ResourceId};
use crate::reconcile::subject::object_reference;
use crate::text::short;

/// Field manager of these conditions. Not that of the status, which would take away all else that was known: the number
/// of pods that an autoscaler reads, for one.
const MANAGER: &str = "disagg-operator-undecodable";

const ADVICE: &str =
    "Bring the definition in the cluster to the operator's version, and correct the resource";

/// Says once what is wrong, and leaves the rest of its status as it is.
pub(crate) async fn update_undecodable_status(
    invalid: &InvalidObject,
    context: &Context,
    memory: &Memory<Remembered>,
) -> Result<(), UpdateStatusError> {
    let ObjectMeta { name, namespace, uid, generation, .. } = &invalid.metadata;
    let (name, namespace) = (name.clone().unwrap_or_default(), namespace.clone().unwrap_or_default());
    let id = ResourceId { namespace: namespace.clone(), name: name.clone() };
    let why = format!("this operator cannot read the resource: {}", short(&invalid.error));
    let told = (*generation, why.clone());
    if memory.of(&id, |of| of.undecodable.as_ref() == Some(&told)) {
        return Ok(());
    }
    tracing::warn!(namespace, name, why, "a resource is left as it is");
    let findings = conditions::not_reconciled("Undecodable", &why, ADVICE);
    let event = events::of_undecodable(&findings[0].message);
    // Those that every status has, so that they are taken over when the resource can be read again.
    let findings: Vec<_> =
        findings.into_iter().filter(|finding| [READY, PROGRESSING].contains(&finding.type_)).collect();
    let conditions = conditions::conditions(*generation, findings, None, &now());
    let resource = ApiResource::erase::<DisaggDeployment>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let body = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": { "name": name, "uid": uid },
        "status": { "observedGeneration": generation, "conditions": conditions },
    });
    let params = PatchParams::apply(MANAGER).force();
    let written = match api.patch_status(&name, &params, &Patch::Apply(&body)).await {
        // An apply is only possible where the definition allows what is stored. A merge is without, and takes the place
        // of all conditions, the others of which are about another generation.
        Err(kube::Error::Api(error)) if error.code != 404 => {
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            api.patch_status(&name, &params, &Patch::Merge(&body)).await
        }
        written => written,
    };
    match written {
        Ok(_) => {}
        Err(kube::Error::Api(error)) if error.code == 404 => return Ok(()),
        Err(error) => return Err(UpdateStatusError::Write(error)),
    }
    memory.of(&id, |of| of.undecodable = Some(told));
    let about = object_reference(&id, uid.clone());
    publish(&[event], &about, context).await;
    Ok(())
}
