//! Where the model comes from and how it is loaded.

use disagg_core::{Dtype, LoadFormat};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// The model that every worker serves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.hubTokenSecret) || has(self.source.hubId)")
        .message("hubTokenSecret is for models of the hub: it needs source.hubId")
)]
pub struct ModelSpec {
    /// Where the model comes from. Exactly one of path, hubId, pvc, image, bundled and random is set.
    pub source: ModelSource,

    /// The name that clients send as `model`. The default is the name of this resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::SERVED_NAME_LENGTH))]
    pub served_name: Option<String>,

    /// The most tokens that prompt and output may have together. The default is what the model's config says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = limits::MAX_LENGTH))]
    pub max_length: Option<i32>,

    /// The number format to compute in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,

    /// How the workers get their weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_format: Option<LoadFormat>,

    /// The Secret with the token for gated and private models of the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_token_secret: Option<SecretKey>,
}

/// Where the model comes from. Exactly one of path, hubId, pvc, image, bundled and random is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "[has(self.path), has(self.hubId), has(self.pvc), has(self.image), has(self.bundled), \
         has(self.random)].exists_one(set, set)"
    )
    .message("exactly one of path, hubId, pvc, image, bundled and random must be set"),
    validation = Rule::new("!has(self.revision) || has(self.hubId)")
        .message("revision is that of a model on the hub: it needs hubId"),
    validation = Rule::new("!has(self.path) || self.path.startsWith('/')")
        .message("path must be absolute in a cluster: it is a folder inside the workers' containers")
)]
pub struct ModelSource {
    /// A folder as Hugging Face lays models out (config.json, tokenizer.json, *.safetensors), as the worker sees it:
    /// part of its image, or mounted by podTemplate.volumes of both roles.
    /// A relative path is for `disagg up` alone, and is relative to the folder of the file that holds this resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::PATH_LENGTH))]
    pub path: Option<String>,

    /// A model on the Hugging Face hub, as `organization/name`. Each worker downloads it when it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = limits::HUB_ID_LENGTH), regex(pattern = HUB_ID_PATTERN))]
    pub hub_id: Option<String>,

    /// Branch, tag or commit of the model on the hub. The default is `main`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::REVISION_LENGTH), regex(pattern = RELATIVE_PATH_PATTERN))]
    pub revision: Option<String>,

    /// A PersistentVolumeClaim that holds the model. It is mounted read-only by every worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc: Option<PvcSource>,

    /// An OCI image or artifact whose files are the model, mounted as an image volume. The cluster and its container
    /// runtime must know image volumes (Kubernetes 1.33 and later with containerd 2.1 or CRI-O).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,

    /// The demo model that is part of the workers, disagg-tiny. It answers questions about disagg and nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundled: Option<BundledModel>,

    /// A small model with random weights, made on the spot. It answers nonsense quickly, which is enough to see the
    /// parts work together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomModel>,
}

impl ModelSource {
    /// What a worker's `--model` takes for a model on the hub: `organization/name`, or with `@revision`.
    pub fn hub_reference(&self) -> Option<String> {
        let id = self.hub_id.as_ref()?;
        Some(self.revision.as_ref().map_or_else(|| id.clone(), |revision| format!("{id}@{revision}")))
    }
}

/// The pattern of [`ModelSource::hub_id`]; [`super::DisaggDeployment::validate`] has the same rule in words.
const HUB_ID_PATTERN: &str = "^[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*$";

/// The pattern of paths below a root that must not be left, and of revisions: no part begins with a dot.
const RELATIVE_PATH_PATTERN: &str = "^[A-Za-z0-9_][-A-Za-z0-9._]*(/[A-Za-z0-9_][-A-Za-z0-9._]*)*$";

/// The pattern of names of other objects.
pub(super) const OBJECT_NAME_PATTERN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

/// The pattern of image references: no white space.
pub(super) const IMAGE_PATTERN: &str = r"^\S+$";

/// A PersistentVolumeClaim that holds the model.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct PvcSource {
    /// Name of the claim, in the namespace of this resource. With workers on several nodes it must be readable from
    /// all of them (ReadOnlyMany or ReadWriteMany).
    #[schemars(length(min = 1, max = limits::OBJECT_NAME_LENGTH), regex(pattern = OBJECT_NAME_PATTERN))]
    pub claim_name: String,

    /// Folder of the model inside the volume, without a leading slash. The default is the root of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::PATH_LENGTH), regex(pattern = RELATIVE_PATH_PATTERN))]
    pub path: Option<String>,
}

/// An OCI image or artifact whose files are the model.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// The image, for example `registry.example.com/models/llama:3`.
    #[schemars(length(min = 1, max = limits::IMAGE_LENGTH), regex(pattern = IMAGE_PATTERN))]
    pub reference: String,

    /// Folder of the model inside the image, without a leading slash. The default is the root of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::PATH_LENGTH), regex(pattern = RELATIVE_PATH_PATTERN))]
    pub path: Option<String>,
}

/// The demo model that is part of the workers. It has no options.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BundledModel {}

/// A small model with random weights.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RandomModel {
    /// Equal seeds give equal weights. The default is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub seed: Option<i32>,
}

/// One key of a Secret.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret, in the namespace of this resource.
    #[schemars(length(min = 1, max = limits::OBJECT_NAME_LENGTH), regex(pattern = OBJECT_NAME_PATTERN))]
    pub name: String,

    /// The key in it. The default is `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::OBJECT_NAME_LENGTH), regex(pattern = "^[-._A-Za-z0-9]+$"))]
    pub key: Option<String>,
}

impl SecretKey {
    /// The key, or its default.
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or("token")
    }
}
