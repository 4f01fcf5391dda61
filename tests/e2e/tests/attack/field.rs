//! What is attacked, and what is watched of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disagg_e2e::{Deployment, Plan, eventually, procfs};
use disagg_proto::v1;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{Scale, SharedField};

/// Simulated workers: quick steps, and every answer depends on every block of its context.
const DEVICE: &str = "sim:prefill-tokens-per-second=100000,decode-step-ms=1";

/// Prompts of more tokens are prefilled remotely.
const THRESHOLD: &str = "64";

/// Most resident memory of the router: the default bounds of its requests and of its prefix index, and 128 MiB for all
/// else.
const ROUTER_BYTES_MAX: u64 = (1024 + 192 + 128) << 20;

/// Most resident memory that a worker may have beyond what it had before.
const WORKER_GROWTH_MAX: u64 = 256 << 20;

/// Between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Everything is free again this long after an attack: leases and lingering connections last some seconds.
const FREE_AGAIN: Duration = Duration::from_secs(15);

/// File descriptors that a process may have more than before, for connections that its peers keep for later.
const DESCRIPTORS_MORE: usize = 24;

/// A deployment.
pub(crate) struct Field {
    pub(crate) scale: Scale,
    deployment: Deployment,
    target: SharedField,
    router: u32,
    workers: Vec<u32>,
}

/// Where it is.
pub(crate) struct Target {
    pub(crate) scale: Scale,
    pub(crate) seed: u64,
    /// HOST:PORT of the router.
    pub(crate) router: String,
    /// HOST:PORT of every worker, for gRPC and KV.
    pub(crate) workers: Vec<String>,
    /// Of these, the decode workers'.
    pub(crate) decode: Vec<String>,
    /// What every worker tells anybody of itself.
    pub(crate) hellos: Vec<v1::HelloResponse>,
}

/// What has to be as it was when an attack is over: open files of every process.
pub(crate) struct Standing(BTreeMap<u32, usize>);

/// The most memory of a moment, in bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Peaks {
    pub(crate) router: u64,
    /// Of the largest worker.
    pub(crate) workers: u64,
    /// Of a worker, beyond what it had before.
    grown: u64,
}

pub(crate) struct Watch {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Peaks>,
}

impl Field {
    pub(crate) async fn start(scale: Scale, seed: u64) -> Self {
        let mut deployment = Plan::of(&model())
            .workers(2, 2)
            .worker_flags(["--device", DEVICE, "--num-blocks", "1024", "--max-num-batched-tokens", "512"])
            .router(["--max-local-prefill-length", THRESHOLD])
            .start()
            .await;
        let router = deployment.router_mut().process().pid();
        let all = deployment.prefill.iter_mut().chain(&mut deployment.decode);
        let workers = all.map(|worker| worker.process().pid()).collect();
        let mut hellos = Vec::new();
        for worker in deployment.workers() {
            hellos.push(worker.hello().await);
        }
        let url = deployment.router().url();
        let target = Target {
            scale,
            seed,
            router: url.strip_prefix("http://").expect("an HTTP URL").to_owned(),
            workers: deployment.workers().map(|worker| worker.address().to_owned()).collect(),
            decode: deployment.decode.iter().map(|worker| worker.address().to_owned()).collect(),
            hellos,
        };
        Self { scale, deployment, target: Arc::new(target), router, workers }
    }

    pub(crate) fn target(&self) -> SharedField {
        Arc::clone(&self.target)
    }

    fn processes(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.router).chain(self.workers.iter().copied())
    }

    pub(crate) async fn standing(&self) -> Standing {
        self.deployment.idle(FREE_AGAIN).await;
        Standing(self.processes().map(|pid| (pid, procfs::open_files(pid))).collect())
    }

    /// What is not as it was, after some time for it to be.
    pub(crate) async fn is_as(&self, before: &Standing) -> Option<String> {
        let standing =
            eventually("everything to be as it was", FREE_AGAIN, async || match self.differs(before).await {
                None => Ok(()),
                Some(difference) => Err(difference),
            });
        // It panics when the time is over; here that is a finding like others.
        let waited = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(standing)).await;
        if waited.is_ok() {
            return None;
        }
        let difference = tokio::time::timeout(FREE_AGAIN, self.differs(before)).await;
        Some(match difference {
            Ok(Some(difference)) => format!("afterwards: {difference}"),
            Ok(None) => format!("it took more than {FREE_AGAIN:?} until everything was as before"),
            Err(_) => "afterwards nothing answers".to_owned(),
        })
    }

    async fn differs(&self, before: &Standing) -> Option<String> {
        let in_flight = self.deployment.router().metrics().await.sum("disagg_router_requests_in_flight", &[]);
        if in_flight != Some(0.0) {
            return Some(format!("requests in flight: {in_flight:?}"));
        }
        for worker in self.deployment.workers() {
            let load = worker.load().await;
            let busy = [
                load.running,
                load.waiting,
                load.awaiting_kv,
                load.prefill_queue,
                load.blocks_used,
                load.blocks_quarantined,
            ];
            if busy != [0; 6] {
                return Some(format!("{}: {load:?}", worker.name()));
            }
        }
        for (&pid, &files) in &before.0 {
            let now = procfs::open_files(pid);
            if now > files + DESCRIPTORS_MORE {
                return Some(format!("process {pid} has {now} open files, and had {files}"));
            }
        }
        None
    }

    /// Looks at the memory until it is told to end.
    pub(crate) fn watch(&self) -> Watch {
        let (router, workers) = (self.router, self.workers.clone());
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let at_first: Vec<u64> = workers.iter().map(|pid| procfs::resident_bytes(*pid)).collect();
            let mut peaks = Peaks::default();
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = &mut stopped => return peaks,
                }
                peaks.router = peaks.router.max(procfs::resident_bytes(router));
                for (pid, before) in workers.iter().zip(&at_first) {
                    let now = procfs::resident_bytes(*pid);
                    peaks.workers = peaks.workers.max(now);
                    peaks.grown = peaks.grown.max(now.saturating_sub(*before));
                }
            }
        });
        Watch { stop, task }
    }
}

impl Watch {
    pub(crate) async fn end(self) -> Peaks {
        let _ = self.stop.send(());
        self.task.await.expect("it only looks")
    }
}

impl Peaks {
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.router > ROUTER_BYTES_MAX {
            problems.push(format!(
                "the router took {} MiB, more than {}",
                self.router >> 20,
                ROUTER_BYTES_MAX >> 20
            ));
        }
        if self.grown > WORKER_GROWTH_MAX {
            problems.push(format!(
                "a worker took {} MiB more than before, over {}",
                self.grown >> 20,
                WORKER_GROWTH_MAX >> 20
            ));
        }
        problems
    }
}

/// A small random model whose tokenizer normalizes, as many do, and whose chat template takes a loop's length from the
/// client, as none should: what text costs is in both.
fn model() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attacked");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("remove the model of the last run");
    }
    disagg_worker::model::tiny::write(&folder, 7).expect("a small model");
    edit(&folder.join("tokenizer.json"), |tokenizer| tokenizer["normalizer"] = json!({"type": "NFC"}));
    edit(&folder.join("tokenizer_config.json"), |config| {
        let template = config["chat_template"].as_str().expect("a template");
        let burner =
            "{% for a in range(burn|default(0)) %}{% for b in range(burn) %}{% endfor %}{% endfor %}";
        config["chat_template"] = format!("{burner}{template}").into();
    });
    folder
}

fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(file).expect("a file of the model");
    let mut value = serde_json::from_str(&text).expect("JSON");
    change(&mut value);
    std::fs::write(file, value.to_string()).expect("written");
}
