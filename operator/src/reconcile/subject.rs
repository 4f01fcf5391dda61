//! The resource that a reconcile is about, without its spec: only `validate` reads that.

use disagg_api::DisaggDeployment;
use disagg_api::crd::DisaggDeploymentStatus;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;

use crate::memory::ResourceId;

/// An object that no API server gives out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("metadata.{0} is missing")]
pub(crate) struct Incomplete(&'static str);

/// Who a resource is, and what was last said of it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Subject {
    pub id: ResourceId,
    pub uid: String,
    pub generation: Option<i64>,
    /// The resourceVersion in which the watch last showed it.
    pub version: Option<String>,
    /// The status in that version.
    pub status: Option<DisaggDeploymentStatus>,
}

impl Subject {
    pub(crate) fn of(resource: &DisaggDeployment) -> Result<Self, Incomplete> {
        let meta = &resource.metadata;
        Ok(Self {
            id: ResourceId {
                namespace: meta.namespace.clone().ok_or(Incomplete("namespace"))?,
                name: meta.name.clone().ok_or(Incomplete("name"))?,
            },
            uid: meta.uid.clone().ok_or(Incomplete("uid"))?,
            generation: meta.generation,
            version: meta.resource_version.clone(),
            status: resource.status.clone(),
        })
    }

    /// Marks children as controlled by this resource. It does not block the owner's deletion, which would need a right on
    /// finalizers.
    pub(crate) fn owner_reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: DisaggDeployment::api_version(&()).into_owned(),
            kind: DisaggDeployment::kind(&()).into_owned(),
            name: self.id.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }
    }

    /// Whether an object of this metadata is controlled by this resource.
    pub(crate) fn owns(&self, meta: &ObjectMeta) -> bool {
        let owners = meta.owner_references.iter().flatten();
        owners.filter(|owner| owner.controller == Some(true)).any(|owner| owner.uid == self.uid)
    }

    /// The resource as Events name it.
    pub(crate) fn object_reference(&self) -> ObjectReference {
        object_reference(&self.id, Some(self.uid.clone()))
    }
}

/// A resource as Events name it.
pub(crate) fn object_reference(id: &ResourceId, uid: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some(DisaggDeployment::api_version(&()).into_owned()),
        kind: Some(DisaggDeployment::kind(&()).into_owned()),
        name: Some(id.name.clone()),
        namespace: Some(id.namespace.clone()),
        uid,
        ..ObjectReference::default()
    }
}
