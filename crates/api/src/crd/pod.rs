//! What a user may say about pods: resources, images, and overrides of the pod template.
//!
//! Types of `core/v1` stand where a user would copy a piece from another pod. Their schema goes into ours, so that a
//! misspelt field is refused when the resource is applied.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Affinity, EnvVarSource, Toleration, TopologySpreadConstraint, Volume};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use super::limits;
use super::model::{IMAGE_PATTERN, OBJECT_NAME_PATTERN};

/// CPU, memory and devices of a container, as in `core/v1`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is set aside for the container. Quote fractions: `cpu: "0.5"`, or write 500m.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "amounts")]
    pub requests: BTreeMap<String, Amount>,

    /// What the container can use at most. Devices such as `nvidia.com/gpu` are asked for here. Quote fractions:
    /// `cpu: "0.5"`, or write 500m.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "amounts")]
    pub limits: BTreeMap<String, Amount>,
}

/// A quantity of a resource: `2`, `500m`, `16Gi`, `"0.5"`.
///
/// A fraction has to be text. Kubernetes' own types take the number `0.5` too, but the schema of a custom resource knows
/// no quantity: what it has for them, `x-kubernetes-int-or-string`, is whole numbers and texts, and what would let other
/// numbers through would let everything through and hide the amounts from the CEL rules.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(untagged)]
pub enum Amount {
    /// Written without quotes.
    Number(i64),
    /// Written as text.
    Text(String),
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = Amount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 2, 500m or 16Gi, and a fraction as text: \"0.5\"")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Amount, E> {
                Ok(Amount::Number(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Amount, E> {
                i64::try_from(value)
                    .map(Amount::Number)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Amount, E> {
                Ok(Amount::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

/// The pattern of [`Amount::Text`]. Kubernetes' own, without signs.
const AMOUNT_PATTERN: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$";

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// The pattern of [`VolumeMount::mount_path`]: one way to write each path, so that the rule on the operator's own folders
/// means all that lead there. No part is empty or made of dots alone, and the path does not end in `/`.
const MOUNT_PATH_PATTERN: &str = r"^/(\.*[^./:\n][^/:\n]*(/\.*[^./:\n][^/:\n]*)*)?$";

/// The pattern of [`VolumeMount::sub_path`]: as above, below the volume's root.
const SUB_PATH_PATTERN: &str = r"^\.*[^./\n][^/\n]*(/\.*[^./\n][^/\n]*)*$";

/// The schema of amounts by name.
fn amounts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": limits::RESOURCES_LENGTH,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "pattern": AMOUNT_PATTERN,
            "maxLength": limits::AMOUNT_LENGTH,
            "minimum": 0,
        },
    })
}

/// The schema of a map from names to texts of at most `LENGTH` characters.
pub(super) fn text_map<const LENGTH: u64>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": limits::MAP_LENGTH,
        "additionalProperties": { "type": "string", "maxLength": LENGTH },
    })
}

/// Images of the containers. The defaults are the operator's.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// The image of the workers of both roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::IMAGE_LENGTH), regex(pattern = IMAGE_PATTERN))]
    pub worker: Option<String>,

    /// The image of the routers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::IMAGE_LENGTH), regex(pattern = IMAGE_PATTERN))]
    pub router: Option<String>,

    /// When images are pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,

    /// Secrets, in the namespace of this resource, with the credentials of registries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = limits::PULL_SECRETS),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub pull_secrets: Vec<ObjectName>,
}

/// When images are pulled. The default is Kubernetes': `Always` for images without a tag or with `latest`,
/// `IfNotPresent` for others.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug)]
pub enum PullPolicy {
    /// At every start of a container.
    Always,
    /// Where the node lacks the image.
    IfNotPresent,
    /// Never: the image must be on the node.
    Never,
}

impl PullPolicy {
    /// The name that Kubernetes has for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// The name of another object of the namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct ObjectName {
    /// Name of the object.
    #[schemars(length(min = 1, max = limits::OBJECT_NAME_LENGTH), regex(pattern = OBJECT_NAME_PATTERN))]
    pub name: String,
}

/// Where and how pods run. Everything here has the meaning that it has in a pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.labels) || self.labels.all(key, !key.startsWith('disagg.dev/') && \
         !key.startsWith('app.kubernetes.io/'))"
    )
    .message("labels below disagg.dev/ and app.kubernetes.io/ are set by the operator"),
    validation = Rule::new("!has(self.annotations) || self.annotations.all(key, !key.startsWith('disagg.dev/'))")
        .message("annotations below disagg.dev/ are set by the operator"),
    validation = Rule::new(
        "!has(self.env) || self.env.all(entry, !entry.name.startsWith('DISAGG_') && \
         !(entry.name in ['HF_HOME', 'HF_TOKEN', 'XDG_CACHE_HOME', 'POD_NAME', 'POD_IP']))"
    )
    .message("env must not hold DISAGG_*, HF_HOME, HF_TOKEN, XDG_CACHE_HOME, POD_NAME or POD_IP: the operator sets those"),
    validation = Rule::new("!has(self.volumes) || self.volumes.all(volume, !(volume.name in ['model', 'cache', 'tmp']))")
        .message("volumes must not be named model, cache or tmp: the operator has those"),
    validation = Rule::new(
        "!has(self.volumeMounts) || self.volumeMounts.all(mount, has(self.volumes) && \
         self.volumes.exists(volume, volume.name == mount.name))"
    )
    .message("volumeMounts must name volumes of this podTemplate"),
    validation = Rule::new(
        "!has(self.volumeMounts) || self.volumeMounts.all(mount, !(mount.mountPath in ['/', '/tmp', '/cache', '/model']))"
    )
    .message("volumeMounts must not be at /, /tmp, /cache or /model: the operator mounts those")
)]
pub struct PodOverrides {
    /// More labels of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "text_map::<{ limits::LABEL_LENGTH }>")]
    pub labels: BTreeMap<String, String>,

    /// More annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "text_map::<{ limits::VALUE_LENGTH }>")]
    pub annotations: BTreeMap<String, String>,

    /// Labels of the nodes that may run the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "text_map::<{ limits::LABEL_LENGTH }>")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of nodes that do not keep the pods away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::LIST_LENGTH))]
    pub tolerations: Vec<Toleration>,

    /// Nodes and other pods to be near to or away from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// How the pods spread over zones and nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::LIST_LENGTH))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,

    /// The PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::OBJECT_NAME_LENGTH), regex(pattern = OBJECT_NAME_PATTERN))]
    pub priority_class_name: Option<String>,

    /// The RuntimeClass of the pods, for example `nvidia`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::OBJECT_NAME_LENGTH), regex(pattern = OBJECT_NAME_PATTERN))]
    pub runtime_class_name: Option<String>,

    /// More environment variables of the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = limits::LIST_LENGTH),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub env: Vec<EnvVar>,

    /// More volumes of the pods, to be mounted by volumeMounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = limits::LIST_LENGTH),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub volumes: Vec<Volume>,

    /// Where the container sees the volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = limits::LIST_LENGTH),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["mountPath"])
    )]
    pub volume_mounts: Vec<VolumeMount>,
}

/// An environment variable.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.value) && has(self.valueFrom))")
        .message("value and valueFrom both give the value; set one of them")
)]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = limits::ENV_NAME_LENGTH), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,

    /// Its value. The default is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::VALUE_LENGTH))]
    pub value: Option<String>,

    /// Where its value comes from, for example a key of a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// Where the container sees a volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of the volume.
    #[schemars(length(min = 1, max = limits::VOLUME_NAME_LENGTH), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// The folder in the container, without `.`, `..` or a slash at its end.
    #[schemars(length(min = 1, max = limits::PATH_LENGTH), regex(pattern = MOUNT_PATH_PATTERN))]
    pub mount_path: String,

    /// The folder of the volume to mount, without a leading slash, `.` or `..`. The default is its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::PATH_LENGTH), regex(pattern = SUB_PATH_PATTERN))]
    pub sub_path: Option<String>,

    /// Whether the container may only read. The default is false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

impl Resources {
    /// Nothing is set.
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl PodOverrides {
    /// Nothing is set.
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl Images {
    /// Nothing is set.
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}
