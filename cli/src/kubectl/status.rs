//! `kubectl disagg status`: what the operator says of a deployment, and what a router says of its workers.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use disagg_api::DisaggDeployment;
use kube::Api;

use super::cluster::Cluster;
use super::routers::Routers;
use crate::{console, status};

/// Show a deployment: its conditions, the workers as a router sees them, placements, and the settings in force
///
/// The exit code is 0 when the deployment is Ready and its router can serve, otherwise 1.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// Name of the DisaggDeployment
    name: Option<String>,
}

pub(super) async fn run(cluster: &Cluster, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let name = cluster.deployment_name(args.name.as_deref()).await?;
    let api: Api<DisaggDeployment> = cluster.api();
    let resource = api.get(&name).await.with_context(|| format!("cannot read DisaggDeployment {name}"))?;
    let (text, is_ready) = conditions(&name, &resource);
    console::print(&text);

    let mut routers = Routers::of(cluster, &name);
    let router = routers.any().await?;
    let (picture, serves) = status::picture(&router.client).await?;
    console::print(&format!("\nAs {} sees it:\n{picture}", router.pod));
    Ok(if is_ready && serves { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line for each condition, and whether it is Ready.
fn conditions(name: &str, resource: &DisaggDeployment) -> (String, bool) {
    let mut text = format!("DisaggDeployment {name}");
    let Some(status) = &resource.status else {
        return (text + ": the operator has not said anything of it yet\n", false);
    };
    let current = status.observed_generation == resource.metadata.generation;
    text += if current { "\n" } else { " (the operator has not seen its last change yet)\n" };
    let width = status.conditions.iter().map(|condition| condition.type_.len()).max().unwrap_or(0);
    for condition in &status.conditions {
        let (kind, value) = (&condition.type_, &condition.status);
        let message = condition.message.lines().next().unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {kind:<width$}  {value:<7}  {}: {message}", condition.reason);
    }
    if let Some(url) = status.router.as_ref().and_then(|router| router.url.as_ref()) {
        let _ = writeln!(text, "  URL in the cluster: {url}");
    }
    let ready = status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    (text, ready && current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(status: &serde_json::Value) -> DisaggDeployment {
        let resource = json!({
            "apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment",
            "metadata": { "name": "demo", "generation": 2 },
            "spec": { "model": { "source": { "random": {} } } },
            "status": status,
        });
        serde_json::from_value(resource).unwrap()
    }

    fn condition(kind: &str, status: &str) -> serde_json::Value {
        json!({
            "type": kind, "status": status, "reason": "Because", "message": "one\ntwo",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    #[test]
    fn conditions_are_aligned_and_an_old_status_is_not_believed() {
        let all = [condition("Ready", "True"), condition("SettingsValid", "Unknown")];
        let (text, ready) =
            conditions("demo", &resource(&json!({ "observedGeneration": 2, "conditions": all })));
        let expected = "\
DisaggDeployment demo
  Ready          True     Because: one
  SettingsValid  Unknown  Because: one
";
        assert_eq!((text.as_str(), ready), (expected, true));
        let (text, ready) =
            conditions("demo", &resource(&json!({ "observedGeneration": 1, "conditions": all })));
        assert!(!ready && text.contains("has not seen its last change"), "{text}");
        let (text, ready) = conditions("demo", &resource(&serde_json::Value::Null));
        assert!(!ready && text.contains("has not said anything"), "{text}");
    }
}
