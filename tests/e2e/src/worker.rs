//! A worker under test: its process, and what it says over gRPC and HTTP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use disagg_core::Role;
use disagg_proto::v1;
use disagg_proto::v1::worker_client::WorkerClient;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::metrics::Metrics;
use crate::ports::{free_address, free_port};
use crate::process::Process;
use crate::wait::eventually;

/// Longest time to load a small model on a busy machine.
const START: Duration = Duration::from_mins(1);

/// Longest time of one gRPC call that does no work.
const CALL: Duration = Duration::from_secs(10);

/// Metric of a decode worker: bytes of KV that others have pushed into its blocks. What the tests of killed peers
/// watch to see that a transfer is under way.
pub const LANDED_BYTES: &str = "disagg_worker_kv_landed_bytes_total";

/// One worker. Its ports stay the same over restarts.
pub struct Worker {
    name: String,
    role: Role,
    address: String,
    metrics_address: String,
    arguments: Vec<String>,
    folder: PathBuf,
    process: Process,
    lives: u32,
    channel: Channel,
}

impl Worker {
    /// Starts `disagg worker` with these flags beside name, role and addresses. Logs go to `folder`.
    pub fn start(name: &str, role: Role, flags: &[String], folder: &Path) -> Self {
        let address = free_address();
        let listen = ["--listen", &address].map(Into::into);
        Self::start_at(name, role, address.clone(), &listen, flags, folder)
    }

    /// As [`Self::start`], as in a pod of an IPv6-only cluster: the worker listens on every address and is told its own
    /// without brackets. It is reached by IPv6.
    pub fn start_ipv6(name: &str, role: Role, flags: &[String], folder: &Path) -> Self {
        let port = free_port();
        let listen = [format!("--listen=[::]:{port}"), format!("--advertise=::1:{port}")];
        Self::start_at(name, role, format!("[::1]:{port}"), &listen, flags, folder)
    }

    fn start_at(
        name: &str,
        role: Role,
        address: String,
        listen: &[String],
        flags: &[String],
        folder: &Path,
    ) -> Self {
        let metrics_address = free_address();
        let mut arguments: Vec<String> =
            ["worker", "--name", name, "--role", role.as_str()].map(Into::into).into();
        arguments.extend_from_slice(listen);
        arguments.extend(["--metrics-listen", &metrics_address].map(Into::into));
        arguments.push("--exit-with-stdin".into());
        arguments.extend_from_slice(flags);
        let process = Process::disagg(name, folder, &arguments);
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .expect("an address makes a URL")
            .connect_timeout(CALL)
            .connect_lazy();
        let (name, folder) = (name.to_owned(), folder.to_owned());
        Self { name, role, address, metrics_address, arguments, folder, process, lives: 1, channel }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// `host:port` of its gRPC server.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A client of its gRPC service.
    pub fn client(&self) -> WorkerClient<Channel> {
        WorkerClient::new(self.channel.clone())
            .max_decoding_message_size(disagg_proto::limits::MESSAGE_BYTES_MAX)
    }

    /// Waits until its health service says SERVING.
    pub async fn serving(&mut self) {
        let mut health = HealthClient::new(self.channel.clone());
        let what = format!("{} to serve", self.name);
        eventually(&what, START, async || {
            if let Some(status) = self.process.ended() {
                panic!("{} ended with {status} before it served", self.name);
            }
            match health
                .check(HealthCheckRequest { service: String::new() })
                .await
                .map(tonic::Response::into_inner)
            {
                Ok(HealthCheckResponse { status }) if status == ServingStatus::Serving as i32 => Ok(()),
                Ok(HealthCheckResponse { status }) => Err(format!("health status {status}")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// `kill -9`.
    pub fn kill_9(&mut self) {
        self.process.kill_9();
    }

    /// Starts it again with the same flags on the same ports, and waits until it serves.
    pub async fn restart(&mut self) {
        self.lives += 1;
        let name = format!("{}.{}", self.name, self.lives);
        self.process = Process::disagg(&name, &self.folder, &self.arguments);
        self.serving().await;
    }

    /// Who it is.
    pub async fn hello(&self) -> v1::HelloResponse {
        self.client().hello(v1::HelloRequest {}).await.expect("Hello").into_inner()
    }

    /// Itself as a candidate for remote prefills.
    pub async fn candidate(&self) -> v1::PrefillCandidate {
        v1::PrefillCandidate { worker: self.hello().await.worker, address: self.address.clone() }
    }

    /// Its load now.
    pub async fn load(&self) -> v1::LoadReport {
        self.try_load().await.unwrap_or_else(|error| panic!("load of {}: {error}", self.name))
    }

    async fn try_load(&self) -> Result<v1::LoadReport, String> {
        let watch = async {
            let mut reports = self.client().watch_load(v1::WatchLoadRequest {}).await?.into_inner();
            reports.message().await
        };
        match tokio::time::timeout(CALL, watch).await {
            Ok(Ok(Some(report))) => Ok(report),
            Ok(Ok(None)) => Err("the load stream ended".to_owned()),
            Ok(Err(status)) => Err(status.to_string()),
            Err(_) => Err(format!("no report within {CALL:?}")),
        }
    }

    /// Waits until it has no work and holds no block.
    pub async fn idle(&self, within: Duration) {
        let what = format!("{} to be idle and hold no block", self.name);
        eventually(&what, within, async || {
            let load = self.try_load().await?;
            let busy = [
                load.running,
                load.waiting,
                load.awaiting_kv,
                load.prefill_queue,
                load.blocks_used,
                load.blocks_quarantined,
            ];
            if busy == [0; 6] { Ok(()) } else { Err(format!("{load:?}")) }
        })
        .await;
    }

    /// One scrape of its metrics.
    pub async fn metrics(&self) -> Result<Metrics, String> {
        crate::router::scrape(&format!("http://{}/metrics", self.metrics_address)).await
    }

    /// Sum over a metric's samples with these labels; 0 while there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let metrics =
            self.metrics().await.unwrap_or_else(|error| panic!("metrics of {}: {error}", self.name));
        metrics.sum(name, labels).unwrap_or(0.0)
    }
}
