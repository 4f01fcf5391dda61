//! A port on loopback whose connections go to one pod, as `kubectl port-forward` does it, or to the ready pods of a
//! Service.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::wait::eventually;

/// Longest wait for a ready pod behind the Service.
const READY_POD: Duration = Duration::from_mins(1);

/// Ends with this value; connections under way end then too.
pub struct Forward {
    url: String,
    task: JoinHandle<()>,
}

impl Forward {
    /// Each connection goes to the first ready pod of the Service there is when it is opened; waits until there is one.
    pub async fn to_service(client: &Client, namespace: &str, service: &str, port_name: &str) -> Self {
        let target = Target {
            pods: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client.clone(), namespace),
            end: End::Service { name: service.to_owned(), port_name: port_name.to_owned() },
        };
        eventually("a ready pod behind the Service", READY_POD, async || target.pod().await.map(drop)).await;
        Self::to(target).await
    }

    /// Every connection goes to this port of this pod, whether it is ready or not.
    pub async fn to_pod(client: &Client, namespace: &str, pod: &str, port: u16) -> Self {
        let target = Target {
            pods: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client.clone(), namespace),
            end: End::Pod { name: pod.to_owned(), port },
        };
        Self::to(target).await
    }

    async fn to(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let target = target.clone();
                connections.spawn(async move {
                    if let Err(error) = target.serve(connection).await {
                        eprintln!("port-forward to {}: {error}", target.name());
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { url, task }
    }

    /// Base URL, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Target {
    pods: Api<Pod>,
    slices: Api<EndpointSlice>,
    end: End,
}

#[derive(Clone)]
enum End {
    Service { name: String, port_name: String },
    Pod { name: String, port: u16 },
}

impl Target {
    fn name(&self) -> &str {
        match &self.end {
            End::Service { name, .. } | End::Pod { name, .. } => name,
        }
    }

    /// Where a new connection goes: name of the pod, its port.
    async fn pod(&self) -> Result<(String, u16), String> {
        match &self.end {
            End::Service { name, port_name } => self.ready_pod(name, port_name).await,
            End::Pod { name, port } => Ok((name.clone(), *port)),
        }
    }

    /// A ready pod of a Service.
    async fn ready_pod(&self, service: &str, port_name: &str) -> Result<(String, u16), String> {
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let slices = self.slices.list(&of_service).await.map_err(|error| error.to_string())?;
        for slice in slices {
            let ports = slice.ports.unwrap_or_default();
            let named = ports.iter().find(|port| port.name.as_deref().unwrap_or("") == port_name);
            let Some(port) = named.and_then(|port| port.port) else { continue };
            for endpoint in slice.endpoints.unwrap_or_default() {
                let ready = endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
                if let (true, Some(pod)) = (ready, endpoint.target_ref.and_then(|pod| pod.name)) {
                    return Ok((pod, u16::try_from(port).map_err(|error| error.to_string())?));
                }
            }
        }
        Err("no ready endpoint".to_owned())
    }

    async fn serve(&self, mut connection: TcpStream) -> Result<(), String> {
        let (pod, port) = self.pod().await?;
        let mut forwarder = self.pods.portforward(&pod, &[port]).await.map_err(|error| error.to_string())?;
        let mut stream = forwarder.take_stream(port).expect("the stream of the port asked for");
        // Either side may just go away.
        let _ = copy_bidirectional(&mut connection, &mut stream).await;
        Ok(())
    }
}
