//! `kubectl disagg bench`: the load of `disagg bench` through a port-forward to one router.

use std::process::ExitCode;

use clap::Args;

use super::cluster::Cluster;
use super::routers::Routers;
use crate::{bench, console};

/// Measure a deployment under load, through a port-forward to one of its routers
///
/// The API server and this machine are in the way of every token, and all load comes to one router. For figures of the
/// deployment itself run `disagg bench` in a pod, against the Service.
#[derive(Args, Debug)]
#[command(mut_arg("url", |url| url.hide(true)))]
pub(super) struct PluginBenchArgs {
    /// Name of the DisaggDeployment
    name: Option<String>,

    #[command(flatten)]
    load: bench::BenchArgs,
}

pub(super) async fn run(cluster: &Cluster, args: PluginBenchArgs) -> anyhow::Result<ExitCode> {
    let name = cluster.deployment_name(args.name.as_deref()).await?;
    let (pod, forward) = Routers::of(cluster, &name).any_api().await?;
    console::note(&format!("measuring through a port-forward to {pod}"));
    bench::run(&args.load.at(forward.url())).await
}
