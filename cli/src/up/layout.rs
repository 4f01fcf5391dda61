//! Who runs where: addresses, names, and the command line of every process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use disagg_worker::cuda::gpus::Gpu;

use super::args::UpArgs;
use super::plan::{self, Plan};
use super::ports::{self, PortError, WorkerPorts};
use super::{banner, environment};
use crate::state;
use crate::supervise::Process;

/// The router is the first process of the list.
pub(super) const ROUTER: usize = 0;

/// Who runs where. Processes are known by their index: the router, then the workers.
pub(super) struct Layout {
    /// Of the API.
    pub(super) router: SocketAddr,
    /// Of the router, for whoever runs it.
    pub(super) admin: SocketAddr,
    pub(super) workers: Vec<WorkerPorts>,
    /// Of the router, then of the workers.
    pub(super) names: Vec<String>,
    pub(super) settings: PathBuf,
}

/// What the processes are started with, apart from where they listen.
pub(super) struct Common<'a> {
    pub(super) plan: &'a Plan,
    /// The model's folder.
    pub(super) model: &'a Path,
    /// Of the workers.
    pub(super) gpus: &'a [Option<Gpu>],
    /// `-v`, counted.
    pub(super) verbose: u8,
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
            workers: ports::worker_ports(workers.len())?,
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

    /// The processes, in the order of `names`.
    pub(super) fn processes(&self, common: &Common<'_>) -> anyhow::Result<Vec<Process>> {
        let &Common { plan, model, gpus, verbose } = common;
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let log_level = match verbose {
            // `up` itself tells which worker is there and which is not.
            0 => "warn,disagg_router::workers::connection=error",
            1 => "info",
            _ => "info,disagg=debug,disagg_router=debug,disagg_worker=debug",
        };
        let chosen = std::env::var_os("RUST_LOG").is_some_and(|level| !level.is_empty());
        let process = |name: &String, args, gpu: Option<&Gpu>, health: SocketAddr, is_worker| {
            let mut env = environment::of_child(is_worker, std::env::vars_os());
            let mut set = |name: &str, value: &str| {
                env.retain(|(known, _)| known != name);
                env.push((name.into(), value.into()));
            };
            if !chosen {
                set("RUST_LOG", log_level);
            }
            if let Some(gpu) = gpu {
                set("CUDA_VISIBLE_DEVICES", &gpu.uuid);
            }
            let health = Some(format!("{}/health", banner::url(health)));
            Process { name: name.clone(), program: program.clone(), args, env, health }
        };
        let addresses: Vec<String> = self.workers.iter().map(|ports| ports.grpc.to_string()).collect();
        let router = plan::router_args(plan, self.router, self.admin, &addresses, &self.settings);
        let mut processes = vec![process(&self.names[ROUTER], router, None, self.admin, false)];
        let workers = plan.workers();
        for (((worker, ports), gpu), name) in
            workers.iter().zip(&self.workers).zip(gpus).zip(&self.names[1..])
        {
            let args = worker.args(model, &ports.grpc.to_string(), &ports.probes.to_string());
            processes.push(process(name, args, gpu.as_ref(), ports.probes, true));
        }
        Ok(processes)
    }

    /// Gives a worker whose ports somebody else has taken other ones.
    pub(super) fn move_worker(&mut self, process: usize) -> Result<(), PortError> {
        if let Some(ports) = process.checked_sub(1).and_then(|worker| self.workers.get_mut(worker)) {
            *ports = ports::worker_ports(1)?[0];
        }
        Ok(())
    }

    /// The address of a process that is a worker.
    pub(super) fn worker_address(&self, process: usize) -> Option<String> {
        process.checked_sub(1).and_then(|worker| self.workers.get(worker)).map(|ports| ports.grpc.to_string())
    }
}
