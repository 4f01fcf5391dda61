//! `kubectl disagg threshold`: shows and changes `maxLocalPrefillLength` of a deployment, without a restart.
//!
//! It patches the settings ConfigMap, then asks every ready router what is in force: what is printed is true, not hoped
//! for.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use disagg_api::RouterSettings;
use disagg_api::kubernetes::{SettingsReport, settings_config_map};
use disagg_api::settings::MAX_LOCAL_PREFILL_LENGTH;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::cluster::Cluster;
use super::routers::Routers;
use crate::console;

/// Routers apply an edit within a second; the rest is for port-forwards.
const PATIENCE: Duration = Duration::from_secs(15);

const ASK_EVERY: Duration = Duration::from_millis(200);

/// Show or change the threshold of a deployment
///
/// Prompts with more net-new tokens than this (those that the decode worker has not cached) are prefilled on a prefill
/// worker, all others where they are decoded.
#[derive(Args, Debug)]
pub(super) struct ThresholdArgs {
    #[command(subcommand)]
    command: ThresholdCommand,
}

#[derive(Subcommand, Debug)]
enum ThresholdCommand {
    /// Print the threshold in force on every ready router, in tokens
    Get {
        /// Name of the DisaggDeployment
        name: Option<String>,
    },
    /// Change it, and wait until every ready router says that it is in force
    Set {
        /// In tokens
        tokens: u32,
        /// Name of the DisaggDeployment
        name: Option<String>,
    },
}

/// What one router answers, or why it does not.
type Answer = (String, Result<SettingsReport, String>);

pub(super) async fn run(cluster: &Cluster, args: &ThresholdArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        ThresholdCommand::Get { name } => {
            let name = cluster.deployment_name(name.as_deref()).await?;
            let answers = ask(&mut Routers::of(cluster, &name)).await?;
            if answers.is_empty() {
                bail!("no router of {name} is ready; kubectl disagg check tells why");
            }
            let (text, agreed) = shown(&answers);
            console::print(&text);
            Ok(if agreed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        ThresholdCommand::Set { tokens, name } => {
            let name = cluster.deployment_name(name.as_deref()).await?;
            // The rule of operator and router, before anything is written.
            RouterSettings::default().set(MAX_LOCAL_PREFILL_LENGTH, &tokens.to_string())?;
            let version = write(cluster, &name, *tokens).await?;
            wait_for(&mut Routers::of(cluster, &name), *tokens, &version).await?;
            console::print(&format!("{tokens}\n"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Patches the one key. Gives the resourceVersion that has it.
async fn write(cluster: &Cluster, deployment: &str, tokens: u32) -> anyhow::Result<String> {
    let api: Api<ConfigMap> = cluster.api();
    let name = settings_config_map(deployment);
    let patch = json!({ "data": { MAX_LOCAL_PREFILL_LENGTH: tokens.to_string() } });
    let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    let patched = patched.with_context(|| format!("cannot patch ConfigMap {name}"))?;
    Ok(patched.metadata.resource_version.unwrap_or_default())
}

/// Every ready router.
async fn ask(routers: &mut Routers) -> anyhow::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for pod in routers.ready().await? {
        let answer = async { routers.router(&pod).await?.client.settings_report().await };
        answers.push((pod.clone(), answer.await.map_err(|error| format!("{error:#}"))));
    }
    Ok(answers)
}

async fn wait_for(routers: &mut Routers, tokens: u32, version: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match progress(&ask(routers).await?, tokens, version) {
            Progress::Done => return Ok(()),
            Progress::Refused(why) => bail!("the change is written but not in force: {why}"),
            Progress::Waiting(_) if Instant::now() < deadline => {}
            Progress::Waiting(why) => {
                bail!("the change is written; after {} s it is not confirmed: {why}", PATIENCE.as_secs())
            }
        }
    }
}

#[derive(PartialEq, Debug)]
enum Progress {
    Done,
    /// A router has looked at this version and does not apply it.
    Refused(String),
    Waiting(String),
}

/// How far a change has come, by what the ready routers say.
fn progress(answers: &[Answer], tokens: u32, version: &str) -> Progress {
    if answers.is_empty() {
        return Progress::Waiting("no router is ready".to_owned());
    }
    let mut waiting = Vec::new();
    for (pod, answer) in answers {
        match answer {
            Err(why) => waiting.push(format!("{pod}: {why}")),
            Ok(report) if report.settings.max_local_prefill_length == tokens => {}
            Ok(SettingsReport { problem: Some(problem), resource_version: Some(seen), .. })
                if seen == version =>
            {
                return Progress::Refused(format!("{pod}: {problem}"));
            }
            Ok(report) => {
                let old = report.settings.max_local_prefill_length;
                let problem = report.problem.as_ref().map_or(String::new(), |it| format!(" ({it})"));
                waiting.push(format!("{pod} still has {old}{problem}"));
            }
        }
    }
    if waiting.is_empty() { Progress::Done } else { Progress::Waiting(waiting.join("; ")) }
}

/// The threshold alone where all routers agree; otherwise a line for each, and false.
fn shown(answers: &[Answer]) -> (String, bool) {
    let mut text = String::new();
    let mut values: Vec<Option<u32>> = Vec::new();
    for (pod, answer) in answers {
        // Writing to a string cannot fail.
        match answer {
            Ok(report) => {
                let value = report.settings.max_local_prefill_length;
                let problem = report.problem.as_ref().map_or(String::new(), |it| format!("  ({it})"));
                let _ = writeln!(text, "{pod}  {value}{problem}");
                values.push(Some(value));
            }
            Err(why) => {
                let _ = writeln!(text, "{pod}  {why}");
                values.push(None);
            }
        }
    }
    values.dedup();
    match values.as_slice() {
        [Some(value)] if answers.iter().all(|(_, it)| it.as_ref().is_ok_and(|it| it.problem.is_none())) => {
            (format!("{value}\n"), true)
        }
        [Some(_)] => (text, true),
        _ => (text, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps)] // an answer, as it is in a list of answers
    fn report(tokens: u32, version: &str, problem: Option<&str>) -> Result<SettingsReport, String> {
        let settings = RouterSettings { max_local_prefill_length: tokens, ..RouterSettings::default() };
        Ok(SettingsReport {
            settings: (&settings).into(),
            source: String::new(),
            resource_version: Some(version.to_owned()),
            problem: problem.map(str::to_owned),
        })
    }

    fn answers(all: &[Result<SettingsReport, String>]) -> Vec<Answer> {
        all.iter().enumerate().map(|(number, answer)| (format!("router-{number}"), answer.clone())).collect()
    }

    #[test]
    fn a_change_is_done_when_every_ready_router_has_it() {
        let now = |all: &[Result<SettingsReport, String>]| progress(&answers(all), 7, "12");
        assert_eq!(now(&[report(7, "12", None), report(7, "13", None)]), Progress::Done);
        let waiting = now(&[report(7, "12", None), report(5, "11", None), Err("gone".to_owned())]);
        assert_eq!(waiting, Progress::Waiting("router-1 still has 5; router-2: gone".to_owned()));
        assert_eq!(now(&[]), Progress::Waiting("no router is ready".to_owned()));
        // Refused only if it is this version that was looked at.
        let older = now(&[report(5, "11", Some("bad"))]);
        assert_eq!(older, Progress::Waiting("router-0 still has 5 (bad)".to_owned()));
        assert_eq!(now(&[report(5, "12", Some("bad"))]), Progress::Refused("router-0: bad".to_owned()));
    }

    #[test]
    fn one_number_where_all_agree() {
        let shown = |all: &[Result<SettingsReport, String>]| shown(&answers(all));
        assert_eq!(shown(&[report(7, "1", None), report(7, "1", None)]), ("7\n".to_owned(), true));
        let differ = shown(&[report(7, "1", None), report(5, "1", None)]);
        assert_eq!(differ, ("router-0  7\nrouter-1  5\n".to_owned(), false));
        let troubled = shown(&[report(7, "1", Some("bad"))]);
        assert_eq!(troubled, ("router-0  7  (bad)\n".to_owned(), true));
        assert_eq!(shown(&[Err("gone".to_owned())]), ("router-0  gone\n".to_owned(), false));
    }
}
