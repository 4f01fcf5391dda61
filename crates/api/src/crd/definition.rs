//! The definition that goes to the API server: the derived one with a few corrections.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;

use super::{DisaggDeployment, limits};

/// Fields of [`super::PodOverrides`] and below whose types are those of `core/v1`.
const CORE_V1: [&str; 5] = ["tolerations", "affinity", "topologySpreadConstraints", "volumes", "valueFrom"];

impl DisaggDeployment {
    /// The definition that goes to the API server. It is the derived one but for this:
    ///
    /// - Nothing is `nullable`: an explicit `null` is then pruned before defaulting and before the CEL rules, so it
    ///   means the same as an absent field, here and in [`DisaggDeployment::validate`].
    /// - Types of `core/v1` have no descriptions below their own field: each would be there three times, and a
    ///   definition that is applied from the client's side must stay under 256 KiB.
    /// - Names of volumes are bounded, or the API server would find the rules on them too costly.
    pub fn definition() -> CustomResourceDefinition {
        let mut definition = Self::crd();
        for version in &mut definition.spec.versions {
            if let Some(schema) =
                version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
            {
                correct(schema);
            }
        }
        definition
    }
}

fn correct(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    for (name, property) in schema.properties.iter_mut().flatten() {
        if CORE_V1.contains(&name.as_str()) {
            let description = property.description.take();
            strip_descriptions(property);
            property.description = description;
        }
        if name == "volumes"
            && let Some(JSONSchemaPropsOrArray::Schema(volume)) = &mut property.items
            && let Some(name) = volume.properties.as_mut().and_then(|properties| properties.get_mut("name"))
        {
            name.max_length = i64::try_from(limits::VOLUME_NAME_LENGTH).ok();
        }
    }
    for_each_child(schema, &mut correct);
}

fn strip_descriptions(schema: &mut JSONSchemaProps) {
    schema.description = None;
    for_each_child(schema, &mut strip_descriptions);
}

fn for_each_child(schema: &mut JSONSchemaProps, visit: &mut impl FnMut(&mut JSONSchemaProps)) {
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        visit(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        visit(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        visit(values);
    }
}
