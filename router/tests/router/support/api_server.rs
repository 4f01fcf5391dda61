//! A Kubernetes API server as far as a router asks it: lists and watches of EndpointSlices and ConfigMaps of one
//! namespace. It holds what a test puts there, and can be away, refuse, or forget old versions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use super::SOON;

pub const NAMESPACE: &str = "llm";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices";
const CONFIG_MAPS: &str = "/api/v1/namespaces/llm/configmaps";

/// One change, as a watch sends it.
#[derive(Clone)]
struct Change {
    version: u64,
    path: &'static str,
    event: Value,
}

#[derive(Default)]
struct Store {
    version: u64,
    /// By path and name.
    objects: BTreeMap<(&'static str, String), Value>,
    changes: Vec<Change>,
    /// Versions up to this are forgotten: watches from there get 410.
    forgotten: u64,
    /// Answered instead of everything else.
    refusal: Option<(StatusCode, String)>,
    /// Queries of lists and watches, by path.
    asked: Vec<(String, BTreeMap<String, String>)>,
}

struct Shared {
    store: Mutex<Store>,
    /// Counts up with the store.
    version: watch::Sender<u64>,
    /// Counts up when open watches are to end.
    generation: watch::Sender<u64>,
}

/// A running API server; gone when dropped. In a runtime of its own, so that its end breaks every connection.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    folder: tempfile::TempDir,
}

impl ApiServer {
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            version: watch::channel(0).0,
            generation: watch::channel(0).0,
        });
        let folder = tempfile::tempdir().expect("a folder");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { address, shared, runtime: None, folder };
        server.come_back();
        server
    }

    /// Flags of a router in this cluster, for the deployment `demo`.
    pub fn flags(&self) -> Vec<String> {
        let path = self.kubeconfig().display().to_string();
        ["--deployment-name", "demo", "--kubernetes-namespace", NAMESPACE, "--kubeconfig", &path]
            .map(str::to_owned)
            .to_vec()
    }

    fn kubeconfig(&self) -> PathBuf {
        let path = self.folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "test", "user": {} }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        std::fs::write(&path, config.to_string()).expect("a kubeconfig");
        path
    }

    /// The process ends: its connections break, and nobody listens.
    pub fn go_away(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// It is back at its address, with what it held.
    pub fn come_back(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _guard = runtime.enter();
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("reuse");
            let deadline = Instant::now() + SOON;
            while let Err(error) = socket.bind(self.address) {
                assert!(Instant::now() < deadline, "{}: {error}", self.address);
                std::thread::yield_now();
            }
            socket.listen(64).expect("listening")
        };
        self.address = listener.local_addr().expect("an address");
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&self.shared));
        runtime.spawn(async move { axum::serve(listener, routes).await });
        self.runtime = Some(runtime);
    }

    /// Every request is refused from now on, or answered again.
    pub fn refuse(&self, refusal: Option<(StatusCode, &str)>) {
        let refusal = refusal.map(|(status, message)| (status, message.to_owned()));
        self.shared.store.lock().unwrap().refusal = refusal;
        self.end_watches();
    }

    /// Open watches end, and what came before now cannot be watched from any more.
    pub fn forget(&self) {
        let mut store = self.shared.store.lock().unwrap();
        store.version += 1;
        store.forgotten = store.version;
        drop(store);
        self.end_watches();
    }

    fn end_watches(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Creates or replaces the settings.
    pub fn put_settings(&self, data: &Value, last_good: &str) -> String {
        let annotations = json!({ "disagg.dev/last-good": last_good });
        let metadata = json!({ "name": "demo-router", "namespace": NAMESPACE, "annotations": annotations });
        self.put(CONFIG_MAPS, "demo-router", json!({ "metadata": metadata, "data": data }))
    }

    pub fn delete_settings(&self) {
        self.delete(CONFIG_MAPS, "demo-router");
    }

    /// Creates or replaces the slice of `name` with these addresses and conditions.
    pub fn put_workers(&self, name: &str, workers: &[(SocketAddr, Value)]) {
        // Workers of tests have one address and many ports, so each needs a slice of its own.
        for (number, (address, conditions)) in workers.iter().enumerate() {
            let pod = json!({ "kind": "Pod", "name": format!("{name}-{}", address.port()) });
            let endpoint = json!({ "addresses": [address.ip().to_string()], "conditions": conditions, "targetRef": pod });
            let slice = json!({
                "metadata": { "name": format!("{name}-{number}"), "namespace": NAMESPACE },
                "addressType": "IPv4",
                "ports": [{ "name": "grpc", "port": address.port() }],
                "endpoints": [endpoint],
            });
            self.put(SLICES, &format!("{name}-{number}"), slice);
        }
    }

    /// Puts something there that is no EndpointSlice.
    pub fn put_broken_slice(&self, name: &str) {
        let slice = json!({
            "metadata": { "name": name, "namespace": NAMESPACE }, "addressType": 7, "endpoints": "none",
        });
        self.put(SLICES, name, slice);
    }

    pub fn delete_slice(&self, name: &str) {
        self.delete(SLICES, name);
    }

    /// What was asked for, by path.
    pub fn asked(&self) -> Vec<(String, BTreeMap<String, String>)> {
        self.shared.store.lock().unwrap().asked.clone()
    }

    fn put(&self, path: &'static str, name: &str, mut object: Value) -> String {
        let mut store = self.shared.store.lock().unwrap();
        store.version += 1;
        let version = store.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let known = store.objects.insert((path, name.to_owned()), object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        store.changes.push(Change { version, path, event: json!({ "type": kind, "object": object }) });
        drop(store);
        self.shared.version.send_replace(version);
        version.to_string()
    }

    fn delete(&self, path: &'static str, name: &str) {
        let mut store = self.shared.store.lock().unwrap();
        let Some(mut object) = store.objects.remove(&(path, name.to_owned())) else { return };
        store.version += 1;
        let version = store.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let event = json!({ "type": "DELETED", "object": object });
        store.changes.push(Change { version, path, event });
        drop(store);
        self.shared.version.send_replace(version);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.go_away();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let url = reqwest::Url::parse(&format!("http://api{uri}")).expect("a URL");
    let query: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
    let path = match uri.path() {
        SLICES => SLICES,
        CONFIG_MAPS => CONFIG_MAPS,
        other => return refusal(StatusCode::NOT_FOUND, &format!("there is no {other}")),
    };
    let mut store = shared.store.lock().unwrap();
    store.asked.push((path.to_owned(), query.clone()));
    if let Some((status, message)) = &store.refusal {
        return refusal(*status, message);
    }
    if query.get("watch").is_none_or(|watch| watch != "true") {
        let of_path = store.objects.iter().filter(|((at, _), _)| *at == path).map(|(_, object)| object);
        let list = json!({
            "apiVersion": "v1", "kind": "List",
            "metadata": { "resourceVersion": store.version.to_string() },
            "items": of_path.collect::<Vec<_>>(),
        });
        return axum::Json(list).into_response();
    }
    let from: u64 = query["resourceVersion"].parse().expect("a version");
    if from < store.forgotten {
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Expired", "code": 410,
            "message": "too old resource version",
        });
        let event = json!({ "type": "ERROR", "object": status });
        return Body::from(format!("{event}\n")).into_response();
    }
    drop(store);
    let generation = *shared.generation.borrow();
    let mut ended = shared.generation.subscribe();
    let ended = async move {
        let _ = ended.wait_for(|now| *now != generation).await;
    };
    let mut sent = from;
    let versions = WatchStream::new(shared.version.subscribe());
    let lines = versions.map(move |_| {
        let store = shared.store.lock().unwrap();
        let new = store.changes.iter().filter(|change| change.path == path && change.version > sent);
        let lines = new.fold(String::new(), |lines, change| lines + &change.event.to_string() + "\n");
        sent = sent.max(store.version);
        Ok::<_, std::convert::Infallible>(lines)
    });
    Body::from_stream(lines.take_until(Box::pin(ended))).into_response()
}

fn refusal(code: StatusCode, message: &str) -> Response {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code.as_u16(),
        "message": message, "reason": code.canonical_reason(),
    });
    (code, axum::Json(status)).into_response()
}

/// Longest time in which an edit has to be in force.
pub const EDIT: Duration = Duration::from_secs(1);
