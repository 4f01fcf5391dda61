//! Fourth call: the children go to the API server, in an order in which each finds what it needs.
//!
//! Everything is server-side apply under one field manager, so fields that others own stay theirs. What was applied
//! before and has not been touched since is not sent again.

mod child;
mod monitoring;
mod replicas;
mod settings;

use std::sync::atomic::AtomicBool;

use disagg_api::DisaggDeployment;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};

pub(crate) use child::{Applied, Problem};
pub(crate) use monitoring::MonitoringState;
pub(crate) use settings::SettingsState;

use super::build::{Children, pod_monitor_names};
use super::dereference::Observed;
use super::validate::Wanted;
use crate::context::Context;

/// Field manager of what the operator applies.
pub(crate) const MANAGER: &str = "disagg-operator";

/// The API server did not do what was asked, for a reason that may pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("cannot read {kind} {name}: {source}")]
    Read { kind: &'static str, name: String, source: kube::Error },
    #[error("cannot apply {kind} {name}: {source}")]
    Write { kind: &'static str, name: String, source: kube::Error },
    #[error("cannot delete {kind} {name}: {source}")]
    Delete { kind: &'static str, name: String, source: kube::Error },
    #[error("the settings ConfigMap {name} is changed faster than it can be read")]
    Contended { name: String },
}

impl ApplyError {
    /// The namespace is going away, and everything in it: there is nothing left to do.
    pub(crate) fn namespace_is_ending(&self) -> bool {
        self.status()
            .is_some_and(|status| status.code == 403 && status.message.contains("is being terminated"))
    }

    /// There is no such object, or no such kind.
    fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// What the API server said.
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Delete { source, .. } => {
                match source {
                    kube::Error::Api(status) => Some(status),
                    _ => None,
                }
            }
            Self::Contended { .. } => None,
        }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Outcome {
    /// Children that a person has to do something about.
    pub problems: Vec<Problem>,
    /// Nothing, if the ConfigMap is not ours.
    pub settings: Option<SettingsState>,
    /// Nothing, if no PodMonitors are asked for.
    pub monitoring: Option<MonitoringState>,
    /// Children were made that the watches have yet to show.
    pub made: bool,
}

/// Applies `children`. Problems that only a person can solve do not keep the other children from being applied.
pub(crate) async fn apply(
    resource: &DisaggDeployment,
    wanted: &Wanted,
    children: &Children,
    observed: &Observed,
    context: &Context,
) -> Result<Outcome, ApplyError> {
    let run = child::Run { context, resource, namespace: &wanted.namespace, made: AtomicBool::default() };
    let mut problems = Vec::new();
    for account in &children.service_accounts {
        problems.extend(run.apply(account).await?);
    }
    problems.extend(run.apply(&children.role).await?);
    problems.extend(run.apply(&children.role_binding).await?);
    let settings = match settings::apply(&run, wanted, &children.settings).await? {
        Ok(state) => Some(state),
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    problems.extend(run.apply(&children.network_policy).await?);
    for budget in &children.disruption_budgets {
        problems.extend(run.apply(budget).await?);
    }
    for service in &children.services {
        problems.extend(run.apply(service).await?);
    }
    let sets = [
        (&children.prefill, &observed.prefill, wanted.prefill.replicas),
        (&children.decode, &observed.decode, wanted.decode.replicas),
    ];
    for (set, live, number) in sets {
        let live = live.as_deref();
        problems.extend(replicas::apply::<StatefulSet>(&run, set, live, number).await?);
    }
    let live = observed.router.as_deref();
    problems
        .extend(replicas::apply::<Deployment>(&run, &children.router, live, wanted.router.replicas).await?);
    let monitoring = monitoring::apply(&run, &children.pod_monitors, &pod_monitor_names(wanted)).await?;
    Ok(Outcome { problems, settings, monitoring, made: run.made.into_inner() })
}

#[cfg(test)]
mod tests;
