//! Labels and metadata that all children have.

use std::collections::BTreeMap;

use disagg_api::kubernetes::{Component, LABEL_DEPLOYMENT};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::reconcile::validate::Wanted;

/// Value of `app.kubernetes.io/managed-by`.
const MANAGED_BY: &str = "disagg-operator";

/// Labels of a child; of a component, if it belongs to one alone.
pub(super) fn labels(wanted: &Wanted, component: Option<Component>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "disagg".to_owned()),
        ("app.kubernetes.io/instance".to_owned(), wanted.name.clone()),
        ("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned()),
        (LABEL_DEPLOYMENT.to_owned(), wanted.name.clone()),
    ]);
    if let Some(component) = component {
        labels.insert("app.kubernetes.io/component".to_owned(), component.as_str().to_owned());
        labels.extend(component.selector(&wanted.name));
    }
    labels
}

/// Metadata of the child `name`.
pub(super) fn metadata(wanted: &Wanted, name: String, component: Option<Component>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(wanted.namespace.clone()),
        labels: Some(labels(wanted, component)),
        owner_references: Some(vec![wanted.owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// Selects the pods of `component`.
pub(super) fn selector(wanted: &Wanted, component: Component) -> LabelSelector {
    LabelSelector { match_labels: Some(component.selector(&wanted.name)), ..LabelSelector::default() }
}
