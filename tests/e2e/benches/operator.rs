//! `make bench-operator`: how long until 50 and 200 resources have all their children, how many requests that takes,
//! how much memory, and what a reconcile costs afterwards. The pods need not run: no workers are wanted, and the routers
//! have an image that does not exist.

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use disagg_e2e::cluster::{Cluster, Namespace, Operator, from_environment};
use disagg_e2e::eventually;
use kube::api::ListParams;
use serde_json::json;

const LONG: Duration = Duration::from_mins(10);

#[tokio::main]
async fn main() {
    let cluster = from_environment().unwrap_or_else(|error| panic!("no cluster: {error}"));
    println!(
        "| resources | all children and a status, s | requests per resource | of them writes | memory, MiB |"
    );
    println!("|---|---|---|---|---|");
    for resources in [50, 200] {
        measure(&*cluster, resources).await;
    }
}

async fn measure(cluster: &dyn Cluster, resources: u32) {
    let namespace = Namespace::create(cluster, &format!("bench-operator-{resources}")).await;
    let operator = Operator::start(cluster, &namespace);
    // The watches are up, and their requests not counted.
    let idle: u64 = operator.requests().await.values().sum();
    let spec = json!({
        "model": { "source": { "random": {} } },
        "prefill": { "replicas": 0 }, "decode": { "replicas": 0 },
        "router": { "replicas": 1, "podTemplate": { "nodeSelector": { "example.com/nowhere": "1" } } },
    });
    let start = Instant::now();
    for index in 0..resources {
        namespace.apply(&format!("r{index}"), &spec).await;
    }
    eventually(&format!("{resources} resources with a status"), LONG, async || {
        let all =
            namespace.deployments().list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let told =
            |conditions: &str| conditions.contains("RouterAvailable") && !conditions.contains("NotCreated");
        let done =
            all.items.iter().filter(|object| told(&object.data["status"]["conditions"].to_string())).count();
        if done == resources as usize { Ok(()) } else { Err(format!("{done} have one")) }
    })
    .await;
    let took = start.elapsed().as_secs_f64();
    let requests = operator.requests().await;
    let all: u64 = requests.values().sum::<u64>() - idle;
    let writes: u64 = ["PATCH", "POST", "PUT"].iter().filter_map(|method| requests.get(*method)).sum();
    let each = |count: u64| count as f64 / f64::from(resources);
    let memory = resident_mib(operator.pid());
    println!("| {resources} | {took:.1} | {:.1} | {:.1} | {memory:.1} |", each(all), each(writes));
    namespace.delete().await;
}

/// Memory of a process that is in RAM.
fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the operator runs");
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.expect("VmRSS in kB") / 1024.0
}
