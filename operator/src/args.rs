//! Command line and environment of the operator.

use std::net::SocketAddr;

use clap::Parser;
use clap::builder::RangedU64ValueParser;

/// Reconciles every DisaggDeployment of a cluster, or of one namespace.
#[derive(Parser, Clone, Debug)]
#[command(name = "disagg-operator", version)]
pub struct OperatorArgs {
    /// The namespace to work in; absent: all of them, which needs a ClusterRole
    #[arg(long, env = "DISAGG_WATCH_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Image of routers, unless the resource names one
    #[arg(long, env = "DISAGG_ROUTER_IMAGE", value_name = "IMAGE")]
    pub router_image: String,

    /// Image of workers, unless the resource names one
    #[arg(long, env = "DISAGG_WORKER_IMAGE", value_name = "IMAGE")]
    pub worker_image: String,

    /// Image of workers with a GPU, unless the resource names one [default: that of other workers]
    #[arg(long, env = "DISAGG_WORKER_GPU_IMAGE", value_name = "IMAGE")]
    pub worker_gpu_image: Option<String>,

    /// Address of /healthz, /readyz and /metrics; [::] is every address, of IPv4 as well
    #[arg(long, env = "DISAGG_LISTEN", value_name = "HOST:PORT", default_value = "[::]:8080")]
    pub listen: SocketAddr,

    /// Resources that are reconciled at once
    #[arg(long, env = "DISAGG_CONCURRENCY", value_name = "N", default_value_t = 8,
          value_parser = RangedU64ValueParser::<u16>::new().range(1..=256))]
    pub concurrency: u16,

    /// Work without electing a leader; for a single replica alone
    #[arg(long, env = "DISAGG_NO_LEADER_ELECTION")]
    pub no_leader_election: bool,

    /// Name of the Lease that the leader holds. Operators that look after the same namespaces must have the same one, so
    /// that one of them works
    #[arg(long, env = "DISAGG_LEASE_NAME", value_name = "NAME", default_value = "disagg-operator")]
    pub lease_name: String,

    /// Namespace of the Lease [default: --namespace, or "default"]
    #[arg(long, env = "DISAGG_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// The installation that this replica is one of. A replica that waits for another one of its release is ready; one
    /// that waits for another release is not, and says so
    #[arg(long, env = "DISAGG_RELEASE", value_name = "NAMESPACE/NAME")]
    pub release: Option<String>,

    /// Name of this replica, in the Lease and in Events [default: made at random]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,

    /// Namespace of this replica's pod, for Events about it
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub pod_namespace: Option<String>,

    /// Uid of this replica's pod, for Events about it
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,

    /// Seconds after which another replica takes over from a leader that has vanished. The leader itself stops after two
    /// thirds of them without a renewal
    #[arg(long, env = "DISAGG_LEASE_SECONDS", value_name = "SECONDS", default_value_t = 15,
          value_parser = RangedU64ValueParser::<u32>::new().range(5..=300))]
    pub lease_seconds: u32,
}

impl OperatorArgs {
    /// The namespace of the Lease.
    pub(crate) fn home(&self) -> &str {
        self.lease_namespace.as_deref().or(self.namespace.as_deref()).unwrap_or("default")
    }
}

/// Images for containers of resources that name none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DefaultImages {
    pub router: String,
    pub worker: String,
    pub worker_gpu: String,
}

impl From<&OperatorArgs> for DefaultImages {
    fn from(args: &OperatorArgs) -> Self {
        Self {
            router: args.router_image.clone(),
            worker: args.worker_image.clone(),
            worker_gpu: args.worker_gpu_image.clone().unwrap_or_else(|| args.worker_image.clone()),
        }
    }
}
