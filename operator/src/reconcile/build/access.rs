//! Who the pods are, and what a router may do.

use disagg_api::kubernetes::{Component, settings_config_map, shared_by_workers};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::labels::metadata;
use crate::reconcile::validate::Wanted;

/// The account of the workers. They speak to no API server.
pub(super) fn worker_account(wanted: &Wanted) -> String {
    shared_by_workers(&wanted.name)
}

/// The account of the routers, and the name of their role.
pub(super) fn router_account(wanted: &Wanted) -> String {
    Component::Router.child(&wanted.name)
}

pub(super) fn service_accounts(wanted: &Wanted) -> Vec<ServiceAccount> {
    let account = |name, component| ServiceAccount {
        metadata: metadata(wanted, name, component),
        // Pods that want a token ask for it.
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    vec![account(worker_account(wanted), None), account(router_account(wanted), Some(Component::Router))]
}

/// A router watches the addresses of workers, and the one ConfigMap with its settings.
pub(super) fn role(wanted: &Wanted) -> Role {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    Role {
        metadata: metadata(wanted, router_account(wanted), Some(Component::Router)),
        rules: Some(vec![
            PolicyRule {
                api_groups: Some(texts(&["discovery.k8s.io"])),
                resources: Some(texts(&["endpointslices"])),
                verbs: texts(&["list", "watch"]),
                ..PolicyRule::default()
            },
            PolicyRule {
                api_groups: Some(texts(&[""])),
                resources: Some(texts(&["configmaps"])),
                resource_names: Some(vec![settings_config_map(&wanted.name)]),
                verbs: texts(&["list", "watch"]),
                ..PolicyRule::default()
            },
        ]),
    }
}

pub(super) fn role_binding(wanted: &Wanted) -> RoleBinding {
    RoleBinding {
        metadata: metadata(wanted, router_account(wanted), Some(Component::Router)),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "Role".to_owned(),
            name: router_account(wanted),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: router_account(wanted),
            namespace: Some(wanted.namespace.clone()),
            ..Subject::default()
        }]),
    }
}
