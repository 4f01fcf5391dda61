//! `make bench-operator`: how long until 50 and 200 resources have all their children, how many requests that takes,
//! how much memory, and what a reconcile costs afterwards. The pods need not run: no workers are wanted, and the routers
//! have an image that does not exist.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use disagg_e2e::cluster::{Cluster, Namespace, Operator, from_environment};
use disagg_e2e::eventually;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

const LONG: Duration = Duration::from_mins(10);

/// Numbers of resources.
const SIZES: [u32; 2] = [50, 200];

/// Kinds that an operator watches.
const WATCHES: usize = 11;

#[tokio::main]
async fn main() {
    let cluster = from_environment().unwrap_or_else(|error| panic!("no cluster: {error}"));
    let mut requests = BTreeMap::<String, Vec<f64>>::new();
    println!(
        "| resources | all children, s | and a status, s | requests each | of them writes | each, once more | memory, MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (column, resources) in SIZES.into_iter().enumerate() {
        for (what, each) in measure(&*cluster, resources).await {
            requests.entry(what).or_insert_with(|| vec![0.0; SIZES.len()])[column] = each;
        }
    }
    println!("\n| requests for one resource | {} |", SIZES.map(|size| format!("of {size}")).join(" | "));
    println!("|---{}|", "|---".repeat(SIZES.len()));
    for (what, each) in requests {
        let each: Vec<_> = each.iter().map(|each| format!("{each:.2}")).collect();
        println!("| {what} | {} |", each.join(" | "));
    }
}

/// Prints a line of the table, and gives the requests for each resource by verb and resource.
async fn measure(cluster: &dyn Cluster, resources: u32) -> BTreeMap<String, f64> {
    let namespace = Namespace::create(cluster, &format!("bench-operator-{resources}")).await;
    let operator = Operator::start(cluster, &namespace);
    // The watches are up, and their requests not counted.
    let idle = eventually("the operator's watches", LONG, async || {
        let requests = operator.requests().await;
        let watches = requests.0.keys().filter(|what| what.starts_with("watch ")).count();
        if watches >= WATCHES { Ok(requests) } else { Err(format!("{watches} are up")) }
    })
    .await;
    let spec = json!({
        "model": { "source": { "random": {} } },
        "prefill": { "replicas": 0 }, "decode": { "replicas": 0 },
        "router": { "replicas": 1, "podTemplate": { "nodeSelector": { "example.com/nowhere": "1" } } },
    });
    let start = Instant::now();
    for index in 0..resources {
        namespace.apply(&format!("r{index}"), &spec).await;
    }
    // The Deployment is the last child of each.
    let last = ListParams::default().labels("app.kubernetes.io/managed-by=disagg-operator");
    eventually(&format!("children of {resources} resources"), LONG, async || {
        let found = namespace.api::<Deployment>().list_metadata(&last).await;
        let found = found.map_err(|error| error.to_string())?.items.len();
        if found == resources as usize { Ok(()) } else { Err(format!("{found} have all")) }
    })
    .await;
    let children = start.elapsed().as_secs_f64();
    eventually(&format!("{resources} resources with a status"), LONG, async || {
        let all = namespace.deployments().list(&ListParams::default()).await;
        let told = |conditions: &str| conditions.contains("Unschedulable");
        let done = all.map_err(|error| error.to_string())?;
        let done = done.items.iter().filter(|object| told(&object.data["status"]["conditions"].to_string()));
        let done = done.count();
        if done == resources as usize { Ok(()) } else { Err(format!("{done} have one")) }
    })
    .await;
    let status = start.elapsed().as_secs_f64();
    let first = operator.requests().await;
    let requests = first.since(&idle);
    let again = reconciled_again(&namespace, &operator, resources).await;
    let each = |count: u64| count as f64 / f64::from(resources);
    let memory = resident_mib(operator.pid());
    println!(
        "| {resources} | {children:.1} | {status:.1} | {:.1} | {:.1} | {:.2} | {memory:.1} |",
        each(requests.all()),
        each(requests.writes()),
        each(again)
    );
    namespace.delete().await;
    requests.0.into_iter().map(|(what, count)| (what, each(count))).collect()
}

/// Requests for reconciling every resource when there is nothing to do.
async fn reconciled_again(namespace: &Namespace, operator: &Operator, resources: u32) -> u64 {
    let (before, turns) = (operator.requests().await, operator.reconciles().await["success"]);
    for index in 0..resources {
        let patch = json!({ "metadata": { "annotations": { "example.com/again": "1" } } });
        let (name, params) = (format!("r{index}"), PatchParams::default());
        namespace.deployments().patch(&name, &params, &Patch::Merge(&patch)).await.expect("an annotation");
    }
    eventually("a reconcile of each", LONG, async || {
        let now = operator.reconciles().await["success"] - turns;
        if now >= u64::from(resources) { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
    operator.requests().await.since(&before).all()
}

/// Memory of a process that is in RAM.
fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the operator runs");
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.expect("VmRSS in kB") / 1024.0
}
