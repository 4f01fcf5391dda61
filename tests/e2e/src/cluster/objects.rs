//! Small helpers around objects of the API.

use std::collections::BTreeMap;

use kube::core::{ApiResource, GroupVersionKind};

/// `DisaggDeployment` as a client without its types sees it.
pub fn deployment_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("disagg.dev", "v1alpha1", "DisaggDeployment"),
        "disaggdeployments",
    )
}

/// A map of strings from pairs.
pub fn strings<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
