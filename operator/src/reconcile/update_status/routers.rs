//! What the routers say they apply. Each ready router is asked once after each change of the ConfigMap.

use std::collections::BTreeMap;

use disagg_api::crd::SettingsStatus;
use disagg_api::kubernetes::{Component, ROUTER_ADMIN_PORT, SETTINGS_PATH, SettingsReport};
use futures::future::join_all;
use kube::ResourceExt as _;

use super::numbers::is_serving;
use crate::context::Context;
use crate::reconcile::apply::Applied;

/// What the routers of a resource said last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports {
    by_pod: ByPod,
    /// How often in a row somebody has had nothing new to say.
    unanswered: u32,
}

/// By the uid of the router's pod.
type ByPod = BTreeMap<String, SettingsReport>;

/// After this many unanswered questions in a row, a router is asked less often.
const PATIENCE: u32 = 30;

/// What the ready routers apply.
pub(super) struct InForce {
    /// Nothing while they differ, or while there are none.
    pub settings: Option<SettingsStatus>,
    /// Some have not said yet that they have seen the ConfigMap as it is: ask again soon.
    pub pending: bool,
}

/// Asks the ready routers of `deployment` that have not reported on `resource_version` yet. `reports` is what they said
/// last; what they say now is given back.
pub(super) async fn ask(
    deployment: &str,
    applied: &Applied,
    resource_version: &str,
    reports: Reports,
    context: &Context,
) -> (InForce, Reports) {
    let ready: BTreeMap<String, String> = applied
        .pods_of(Component::Router, deployment)
        .filter(|pod| is_serving(pod))
        .filter_map(|pod| Some((pod.uid()?, pod.status.as_ref()?.pod_ip.clone()?)))
        .collect();
    let Reports { by_pod: mut reports, unanswered } = reports;
    reports.retain(|uid, _| ready.contains_key(uid));
    let up_to_date = |report: &SettingsReport| report.resource_version.as_deref() == Some(resource_version);
    let asked = ready.iter().filter(|(uid, _)| !reports.get(*uid).is_some_and(up_to_date));
    let answers = join_all(asked.map(async |(uid, ip)| (uid.clone(), report(context, ip).await))).await;
    for (uid, answer) in answers {
        match answer {
            Ok(report) => _ = reports.insert(uid, report),
            // It says nothing now; what it said before may no longer be so.
            Err(error) => {
                tracing::debug!(%error, "a router does not report its settings");
                reports.remove(&uid);
            }
        }
    }
    let pending = reports.len() < ready.len() || !reports.values().all(up_to_date);
    let settings = common(&reports, ready.len());
    let unanswered = if pending { unanswered.saturating_add(1) } else { 0 };
    let in_force = InForce { settings, pending: pending && unanswered < PATIENCE };
    (in_force, Reports { by_pod: reports, unanswered })
}

/// The settings that all of `routers` report.
fn common(reports: &ByPod, routers: usize) -> Option<SettingsStatus> {
    let first = reports.values().next()?;
    if reports.len() < routers || !reports.values().all(|report| report.settings == first.settings) {
        return None;
    }
    // While there is a problem with the ConfigMap, the values in force are older than it.
    let one_version = reports
        .values()
        .all(|report| report.problem.is_none() && report.resource_version == first.resource_version);
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    Some(SettingsStatus {
        max_local_prefill_length: number(first.settings.max_local_prefill_length),
        max_prefill_queue_depth: number(first.settings.max_prefill_queue_depth),
        fallback_policy: first.settings.fallback_policy,
        overlap_weight_percent: number(first.settings.overlap_weight_percent),
        resource_version: first.resource_version.clone().filter(|_| one_version),
    })
}

async fn report(context: &Context, ip: &str) -> Result<SettingsReport, reqwest::Error> {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let url = format!("http://{host}:{ROUTER_ADMIN_PORT}{SETTINGS_PATH}");
    context.http.get(url).send().await?.error_for_status()?.json().await
}

#[cfg(test)]
mod tests {
    use disagg_api::FallbackPolicy;
    use disagg_api::kubernetes::SettingsValues;

    use super::*;

    fn report(length: u32, version: &str, problem: Option<&str>) -> SettingsReport {
        SettingsReport {
            settings: SettingsValues {
                max_local_prefill_length: length,
                max_prefill_queue_depth: 2,
                fallback_policy: FallbackPolicy::Local,
                overlap_weight_percent: 100,
            },
            source: "ConfigMap a/b".to_owned(),
            resource_version: Some(version.to_owned()),
            problem: problem.map(str::to_owned),
        }
    }

    fn of<const N: usize>(reports: [SettingsReport; N]) -> ByPod {
        reports.into_iter().enumerate().map(|(at, report)| (at.to_string(), report)).collect()
    }

    #[test]
    fn only_what_all_routers_apply_is_in_force() {
        let both = of([report(64, "7", None), report(64, "7", None)]);
        let found = common(&both, 2).unwrap();
        assert_eq!((found.max_local_prefill_length, found.resource_version.as_deref()), (64, Some("7")));
        assert_eq!(common(&both, 3), None, "one has said nothing");
        assert_eq!(common(&of([report(64, "7", None), report(128, "6", None)]), 2), None, "they differ");
        assert_eq!(common(&ByPod::new(), 0), None, "there are none");
    }

    #[test]
    fn values_that_are_older_than_the_config_map_have_no_version() {
        let bad = of([report(64, "8", Some("maxLocalPrefillLength: ..."))]);
        assert_eq!(common(&bad, 1).unwrap().resource_version, None);
    }
}
