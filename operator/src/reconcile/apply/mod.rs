//! Fourth call: the children go to the API server, in an order in which each finds what it needs.
//!
//! Everything is server-side apply under one field manager, so fields that others own stay theirs. What was applied
//! before and has not been touched since is not sent again. Every child is tried, whatever becomes of the others; what
//! could not be applied is told with all the rest in [`Applied`], by which alone the status is judged.

mod child;
mod monitoring;
mod problem;
mod replicas;
mod settings;

use std::sync::Arc;

use disagg_api::kubernetes::Component;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;

pub(crate) use child::Remembered;
pub(crate) use monitoring::MonitoringState;
pub(crate) use problem::{Problem, Why};
pub(crate) use settings::SettingsState;

use super::build::{Children, pod_monitor_names};
use super::dereference::{Observed, Warning, belongs_to};
use super::subject::Subject;
use super::validate::Wanted;
use crate::context::Context;
use crate::memory::Memory;
use child::{Applying, Noted};

/// The namespace is going away, and everything in it: there is nothing left to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NamespaceIsEnding;

/// What the cluster holds after the apply: the API server's answers, and what was observed beside the children.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Applied {
    pub prefill: Option<StatefulSet>,
    pub decode: Option<StatefulSet>,
    pub router: Option<Deployment>,
    /// Of all components, in the order of their names; nothing if they cannot be watched.
    pub pods: Option<Vec<Arc<Pod>>>,
    pub warnings: Vec<Warning>,
    /// Children that could not be applied.
    pub problems: Vec<Problem>,
    /// Kinds that cannot be watched.
    pub unwatched: Vec<String>,
    /// Nothing, if the ConfigMap is not there or not ours.
    pub settings: Option<SettingsState>,
    /// Nothing, if no PodMonitors are asked for.
    pub monitoring: Option<MonitoringState>,
    /// Children that had lost their owner, by kind and name.
    pub adopted: Vec<(&'static str, String)>,
    /// Children were made that the watches have yet to show.
    pub made: bool,
    /// A child is there that its watch does not show: nobody tells when it changes.
    pub unseen: bool,
}

impl Applied {
    /// The pods of one component of `deployment`.
    pub(crate) fn pods_of(&self, component: Component, deployment: &str) -> impl Iterator<Item = &Pod> {
        let child = component.child(deployment);
        let pods = self.pods.iter().flatten().map(AsRef::as_ref);
        pods.filter(move |pod| belongs_to(pod, component, &child))
    }
}

/// Applies `children`. Children that none other needs to be there first are applied side by side.
pub(crate) async fn apply(
    subject: &Subject,
    wanted: &Wanted,
    children: &Children,
    observed: Observed,
    context: &Context,
    memory: &Memory<Remembered>,
) -> Result<Applied, NamespaceIsEnding> {
    // Destructured without `..`, so that a new child has to be thought of here.
    let Children {
        service_accounts,
        role,
        role_binding,
        settings,
        services,
        network_policy,
        disruption_budgets,
        prefill,
        decode,
        router,
        pod_monitors,
    } = children;
    let applying = Applying::new(context, subject, memory);
    // The API server looks the Role up when it is bound.
    let rights = async { [applying.apply(role).await, applying.apply(role_binding).await] };
    let (accounts, rights, settings, policy, budgets, services) = tokio::join!(
        applying.apply_all(service_accounts),
        rights,
        settings::apply(&applying, wanted, settings),
        applying.apply(network_policy),
        applying.apply_all(disruption_budgets),
        applying.apply_all(services),
    );
    let (prefill, decode, router) = tokio::join!(
        replicas::apply(&applying, prefill, wanted.prefill.replicas),
        replicas::apply(&applying, decode, wanted.decode.replicas),
        replicas::apply(&applying, router, wanted.router.replicas),
    );
    let monitoring = monitoring::apply(&applying, pod_monitors, &pod_monitor_names(wanted)).await;
    let mut problems = accounts;
    problems.extend(rights.into_iter().flatten());
    problems.extend(settings.problem);
    problems.extend(policy);
    problems.extend(budgets);
    problems.extend(services);
    problems.extend([prefill.problem, decode.problem, router.problem].into_iter().flatten());
    if problems.iter().any(|problem| problem.why == Why::NamespaceEnding) {
        return Err(NamespaceIsEnding);
    }
    let Observed { pods, warnings, unwatched } = observed;
    let Noted { made, unseen, adopted } = applying.noted;
    Ok(Applied {
        prefill: prefill.object,
        decode: decode.object,
        router: router.object,
        pods,
        warnings,
        problems,
        unwatched,
        settings: settings.state,
        monitoring,
        adopted: adopted.into_inner(),
        made: made.into_inner(),
        unseen: unseen.into_inner(),
    })
}

#[cfg(test)]
mod tests;
