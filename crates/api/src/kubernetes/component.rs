//! The components of a deployment, and every name that follows from them.

use std::collections::BTreeMap;

use super::{LABEL_DEPLOYMENT, LABEL_ROLE};

/// Declares [`Component`] from one list, so that [`Component::ALL`] cannot lack a variant. Everything else matches on the
/// variants or takes `ALL` apart as an array, and does not compile until a new component is thought of there.
macro_rules! components {
    ($($(#[$doc:meta])* $variant:ident { name: $name:literal, condition: $condition:literal })+) => {
        /// The parts of a deployment that are pods of their own.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Component {
            $($(#[$doc])* $variant,)+
        }

        impl Component {
            /// Every component, in the order in which they are applied.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The value of [`LABEL_ROLE`], and the end of the children's names.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The type of the condition that says whether this component serves.
            pub const fn condition(self) -> &'static str {
                match self {
                    $(Self::$variant => $condition,)+
                }
            }
        }
    };
}

components! {
    /// Prefill workers.
    Prefill { name: "prefill", condition: "PrefillAvailable" }
    /// Decode workers.
    Decode { name: "decode", condition: "DecodeAvailable" }
    /// Routers.
    Router { name: "router", condition: "RouterAvailable" }
}

impl Component {
    /// Whether its pods run the model: workers are a StatefulSet, routers a Deployment.
    pub const fn is_worker(self) -> bool {
        match self {
            Self::Prefill | Self::Decode => true,
            Self::Router => false,
        }
    }

    /// Name of the container that the operator puts into its pods. Every other container of such a pod was added by
    /// somebody else, most often by an admission webhook.
    pub const fn container(self) -> &'static str {
        if self.is_worker() { "worker" } else { "router" }
    }

    /// Name of the StatefulSet or Deployment of this component, of its Service and its PodDisruptionBudget. Each name
    /// ends in its component, so no two deployments of a namespace share one.
    pub fn child(self, deployment: &str) -> String {
        format!("{deployment}-{}", self.as_str())
    }

    /// The labels that select the pods of this component, and never change.
    pub fn selector(self, deployment: &str) -> BTreeMap<String, String> {
        BTreeMap::from([
            (LABEL_DEPLOYMENT.to_owned(), deployment.to_owned()),
            (LABEL_ROLE.to_owned(), self.as_str().to_owned()),
        ])
    }
}

/// Whether a container of a deployment's pods is one that the operator put there.
pub fn is_own_container(name: &str) -> bool {
    Component::ALL.iter().any(|component| component.container() == name)
}

/// Name of what workers of all roles share: their ServiceAccount, NetworkPolicy and PodMonitor.
pub fn shared_by_workers(deployment: &str) -> String {
    format!("{deployment}-worker")
}

/// Name of the ConfigMap with the router settings of a deployment.
pub fn settings_config_map(deployment: &str) -> String {
    Component::Router.child(deployment)
}
