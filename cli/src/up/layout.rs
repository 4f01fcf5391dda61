//! Who runs where: addresses, names, and the command line of every process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use disagg_worker::cuda::gpus::Gpu;

use super::args::UpArgs;
use super::plan::{self, Plan};
use super::ports;
use crate::state;
use crate::supervise::Process;

/// The router is the first process of the list.
pub(super) const ROUTER: usize = 0;

/// Environment variables of workers that would make no sense for several of them at once.
const NOT_INHERITED: [&str; 2] = ["DISAGG_ADVERTISE", "DISAGG_METRICS_LISTEN"];

/// Who runs where. Processes are known by their index: the router, then the workers.
pub(super) struct Layout {
    /// Of the API.
    pub(super) router: SocketAddr,
    /// Of the router, for whoever runs it.
    pub(super) admin: SocketAddr,
    pub(super) workers: Vec<SocketAddr>,
    /// Of the router, then of the workers.
    pub(super) names: Vec<String>,
    pub(super) settings: PathBuf,
}

impl Layout {
    pub(super) fn new(plan: &Plan, args: &UpArgs) -> anyhow::Result<Self> {
        let host = args.host.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
        // First of all: a taken port is the likeliest mistake.
        let router = ports::router_address(SocketAddr::new(host, plan.port))?;
        let admin = ports::admin_address(router, args.admin_port)?;
        let workers = plan.workers();
        Ok(Self {
            router,
            admin,
            workers: ports::worker_addresses(workers.len())?,
            names: std::iter::once("router".to_owned())
                .chain(workers.iter().map(plan::Worker::name))
                .collect(),
            settings: match &args.settings {
                // The router may be told of it from elsewhere.
                Some(file) => std::path::absolute(file)?,
                None => state::settings_file(router.port())?,
            },
        })
    }

    /// The processes, in the order of `names`. `gpus` are those of the workers.
    pub(super) fn processes(
        &self,
        plan: &Plan,
        model: &Path,
        gpus: &[Option<Gpu>],
        args: &UpArgs,
    ) -> anyhow::Result<Vec<Process>> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let log_level = match args.verbose {
            // `up` itself tells which worker is there and which is not.
            0 => "warn,disagg_router::workers::connection=error",
            1 => "info",
            _ => "info,disagg=debug,disagg_router=debug,disagg_worker=debug",
        };
        let chosen = std::env::var_os("RUST_LOG").is_some_and(|level| !level.is_empty());
        let env = if chosen { Vec::new() } else { vec![("RUST_LOG", log_level.to_owned())] };
        let addresses: Vec<String> = self.workers.iter().map(ToString::to_string).collect();
        let router = plan::router_args(plan, self.router, self.admin, &addresses, &self.settings);
        let workers = plan.workers();
        let workers = workers.iter().zip(&addresses).map(|(worker, listen)| worker.args(model, listen));
        let gpus = std::iter::once(None).chain(gpus.iter().map(Option::as_ref));
        let processes = std::iter::once(router).chain(workers).zip(&self.names).zip(gpus);
        let processes = processes.map(|((args, name), gpu)| {
            let mut env = env.clone();
            env.extend(gpu.map(|gpu| ("CUDA_VISIBLE_DEVICES", gpu.uuid.clone())));
            Process {
                name: name.clone(),
                program: program.clone(),
                args,
                env,
                env_remove: NOT_INHERITED.to_vec(),
            }
        });
        Ok(processes.collect())
    }

    /// The address of a process that is a worker.
    pub(super) fn worker_address(&self, process: usize) -> Option<String> {
        process.checked_sub(1).and_then(|worker| self.workers.get(worker)).map(ToString::to_string)
    }
}
