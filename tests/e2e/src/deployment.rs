//! Workers and a router of one model, started together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use disagg_core::Role;
use tempfile::TempDir;

use crate::router::Router;
use crate::wait::eventually;
use crate::worker::Worker;

/// What clients put into `model`, for every model folder.
pub const MODEL: &str = "small";

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    model: PathBuf,
    prefill: usize,
    decode: usize,
    worker_flags: Vec<String>,
    prefill_flags: Vec<String>,
    router: Option<Vec<String>>,
    ipv6: bool,
}

/// Everything that was started; all of it ends with this.
pub struct Deployment {
    /// `prefill-0`, `prefill-1`, ...
    pub prefill: Vec<Worker>,
    /// `decode-0`, `decode-1`, ...
    pub decode: Vec<Worker>,
    router: Option<Router>,
    // Last: logs are read when the processes above are dropped.
    folder: TempDir,
}

fn flags<const N: usize>(flags: [&str; N]) -> Vec<String> {
    flags.map(Into::into).into()
}

impl Plan {
    /// One prefill and one decode worker of this model folder, one thread each, no router.
    pub fn of(model: &Path) -> Self {
        Self {
            model: model.to_owned(),
            prefill: 1,
            decode: 1,
            worker_flags: flags(["--threads", "1", "--served-model-name", MODEL]),
            prefill_flags: Vec::new(),
            router: None,
            ipv6: false,
        }
    }

    /// All between workers and router goes over IPv6.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// So many prefill and decode workers.
    #[must_use]
    pub fn workers(mut self, prefill: usize, decode: usize) -> Self {
        (self.prefill, self.decode) = (prefill, decode);
        self
    }

    /// More flags for all workers.
    #[must_use]
    pub fn worker_flags<const N: usize>(mut self, more: [&str; N]) -> Self {
        self.worker_flags.extend(flags(more));
        self
    }

    /// More flags for prefill workers.
    #[must_use]
    pub fn prefill_flags<const N: usize>(mut self, more: [&str; N]) -> Self {
        self.prefill_flags.extend(flags(more));
        self
    }

    /// A router in front, with these flags.
    #[must_use]
    pub fn router<const N: usize>(mut self, more: [&str; N]) -> Self {
        self.router = Some(flags(more));
        self
    }

    /// Starts all of it and waits until every worker serves and the router knows them all.
    pub async fn start(self) -> Deployment {
        let folder = tempfile::Builder::new().prefix("disagg-e2e-").tempdir().expect("a temporary folder");
        let mut worker_flags = flags(["--model"]);
        worker_flags.push(self.model.to_str().expect("a path in UTF-8").to_owned());
        worker_flags.extend(self.worker_flags);
        let start = |role: Role, count: usize, more: &[String]| -> Vec<Worker> {
            let flags = [worker_flags.as_slice(), more].concat();
            let start = if self.ipv6 { Worker::start_ipv6 } else { Worker::start };
            (0..count).map(|i| start(&format!("{role}-{i}"), role, &flags, folder.path())).collect()
        };
        let mut prefill = start(Role::Prefill, self.prefill, &self.prefill_flags);
        let mut decode = start(Role::Decode, self.decode, &[]);
        for worker in prefill.iter_mut().chain(&mut decode) {
            worker.serving().await;
        }
        let router = match self.router {
            None => None,
            Some(flags) => {
                let addresses: Vec<_> = prefill.iter().chain(&decode).map(Worker::address).collect();
                let mut router = Router::start(&addresses, &flags, folder.path());
                router.ready().await;
                Some(router)
            }
        };
        let deployment = Deployment { prefill, decode, router, folder };
        if deployment.router.is_some() {
            deployment.router_knows(self.prefill, self.decode).await;
        }
        deployment
    }
}

impl Deployment {
    /// The router. Panics if the plan had none.
    pub fn router(&self) -> &Router {
        self.router.as_ref().expect("the plan has a router")
    }

    /// The router, to be killed. Panics if the plan had none.
    pub fn router_mut(&mut self) -> &mut Router {
        self.router.as_mut().expect("the plan has a router")
    }

    /// Folder for files of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All workers.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.prefill.iter().chain(&self.decode)
    }

    /// Waits until the router sees so many ready workers of each role.
    pub async fn router_knows(&self, prefill: usize, decode: usize) {
        eventually("the router to see all workers ready", Duration::from_secs(20), async || {
            let metrics = self.router().metrics().await;
            let ready = |role| {
                let labels = [("role", role), ("state", "ready")];
                metrics.sum("disagg_router_workers", &labels).unwrap_or(0.0) as usize
            };
            let seen = (ready("prefill"), ready("decode"));
            if seen == (prefill, decode) { Ok(()) } else { Err(format!("(prefill, decode) ready: {seen:?}")) }
        })
        .await;
    }

    /// Waits until every worker has no work and holds no block.
    pub async fn idle(&self, within: Duration) {
        for worker in self.workers() {
            worker.idle(within).await;
        }
    }
}
