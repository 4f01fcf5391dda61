//! The schema's rules in Rust, for files that never meet an API server. All problems are reported, each with the path
//! of its field.

mod pod;

use std::fmt;
use std::ops::RangeInclusive;

use super::{
    DisaggDeployment, DisaggDeploymentSpec, DisaggregationSpec, EngineSpec, ImageSource, ModelSource,
    ModelSpec, MonitoringSpec, NVIDIA_GPU, NVIDIA_PREFIX, PodMonitorOptions, PvcSource, RoleSpec,
    RouterService, RouterSpec, SecretKey, limits,
};
use crate::settings::{
    FALLBACK_POLICY, MAX_LOCAL_PREFILL_LENGTH, MAX_PREFILL_QUEUE_DEPTH, OVERLAP_WEIGHT_PERCENT,
    RouterSettings, SettingsError,
};

/// One thing that is wrong with a resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Path of the field, for example `spec.decode.replicas`.
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Everything that is wrong with a resource. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid(pub Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

impl DisaggDeployment {
    /// Checks the rules that hold everywhere and returns the settings that the resource asks for. Reports all
    /// problems, not only the first.
    pub fn validate(&self) -> Result<RouterSettings, Invalid> {
        self.check(Place::Anywhere)
    }

    /// Checks every rule of the schema, those too that hold in a cluster alone.
    pub fn validate_in_cluster(&self) -> Result<RouterSettings, Invalid> {
        self.check(Place::Cluster)
    }

    fn check(&self, place: Place) -> Result<RouterSettings, Invalid> {
        let mut problems = Problems { found: Vec::new(), place };
        problems.name(self.metadata.name.as_deref());
        // Destructured without `..`, so that a new field has to be thought of here.
        let DisaggDeploymentSpec {
            model,
            kv_cache,
            prefill,
            decode,
            router,
            disaggregation,
            monitoring,
            images,
            drain_seconds,
            progress_deadline_seconds,
        } = &self.spec;
        problems.model(model);
        problems.range("spec.kvCache.blockSize", kv_cache.block_size, 1..=limits::BLOCK_SIZE);
        problems.role("spec.prefill", prefill);
        problems.role("spec.decode", decode);
        problems.router(router);
        problems.min_workers(router, prefill, decode);
        let settings = problems.settings(disaggregation);
        problems.monitoring(monitoring);
        problems.images(images);
        problems.range("spec.drainSeconds", *drain_seconds, 0..=limits::DRAIN_SECONDS);
        let deadline = "spec.progressDeadlineSeconds";
        problems.range(deadline, *progress_deadline_seconds, 1..=limits::PROGRESS_DEADLINE_SECONDS);
        if problems.found.is_empty() { Ok(settings) } else { Err(Invalid(problems.found)) }
    }
}

/// Where the resource is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Anywhere,
    Cluster,
}

struct Problems {
    found: Vec<Problem>,
    place: Place,
}

impl Problems {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.found.push(Problem { path: path.into(), message: message.into() });
    }

    fn range<T: PartialOrd + fmt::Display>(
        &mut self,
        path: impl Into<String>,
        value: Option<T>,
        allowed: RangeInclusive<T>,
    ) {
        if let Some(value) = value.filter(|value| !allowed.contains(value)) {
            self.add(path, format!("must be from {} to {}, not {value}", allowed.start(), allowed.end()));
        }
    }

    fn length(&mut self, path: &str, value: Option<&str>, limit: u64) {
        let Some(length) = value.map(|value| value.chars().count() as u64) else { return };
        if length == 0 || length > limit {
            self.add(path, format!("must have from 1 to {limit} characters, not {length}"));
        }
    }

    fn name(&mut self, name: Option<&str>) {
        let Some(name) = name else { return self.add("metadata.name", "is required") };
        let bytes = name.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        let good = bytes.len() <= limits::NAME_LENGTH
            && bytes.iter().all(inner)
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last().is_some_and(|byte| *byte != b'-');
        if !good {
            self.add(
                "metadata.name",
                format!(
                    "must start with a letter, hold only a-z, 0-9 and '-', end in a letter or digit, and be at most {} \
                     characters long",
                    limits::NAME_LENGTH
                ),
            );
        }
    }

    fn model(&mut self, model: &ModelSpec) {
        let ModelSpec { source, served_name, max_length, dtype: _, load_format: _, hub_token_secret } = model;
        self.source(source);
        self.length("spec.model.servedName", served_name.as_deref(), limits::SERVED_NAME_LENGTH);
        self.range("spec.model.maxLength", *max_length, 2..=limits::MAX_LENGTH);
        if let Some(SecretKey { name, key }) = hub_token_secret {
            self.object_name("spec.model.hubTokenSecret.name", Some(name));
            self.length("spec.model.hubTokenSecret.key", key.as_deref(), limits::OBJECT_NAME_LENGTH);
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if key.as_ref().is_some_and(|key| !key.bytes().all(good)) {
                self.add("spec.model.hubTokenSecret.key", "must hold letters, digits, '-', '_' and '.'");
            }
            if source.hub_id.is_none() {
                self.add("spec.model", "hubTokenSecret is for models of the hub: it needs source.hubId");
            }
        }
    }

    fn source(&mut self, source: &ModelSource) {
        let ModelSource { path, hub_id, revision, pvc, image, bundled, random } = source;
        let set = [
            path.is_some(),
            hub_id.is_some(),
            pvc.is_some(),
            image.is_some(),
            bundled.is_some(),
            random.is_some(),
        ];
        if set.iter().filter(|set| **set).count() != 1 {
            self.add(
                "spec.model.source",
                "exactly one of path, hubId, pvc, image, bundled and random must be set",
            );
        }
        self.length("spec.model.source.path", path.as_deref(), limits::PATH_LENGTH);
        if self.place == Place::Cluster && path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            self.add(
                "spec.model.source",
                "path must be absolute in a cluster: it is a folder inside the workers' containers",
            );
        }
        if let Some(hub_id) = hub_id {
            self.length("spec.model.source.hubId", Some(hub_id), limits::HUB_ID_LENGTH);
            if !is_hub_id(hub_id) {
                self.add(
                    "spec.model.source.hubId",
                    "must be organization/name, of letters, digits, '-', '_' and '.'",
                );
            }
        }
        self.relative_path("spec.model.source.revision", revision.as_deref(), limits::REVISION_LENGTH);
        if revision.is_some() && hub_id.is_none() {
            self.add("spec.model.source", "revision is that of a model on the hub: it needs hubId");
        }
        if let Some(PvcSource { claim_name, path }) = pvc {
            self.object_name("spec.model.source.pvc.claimName", Some(claim_name));
            self.relative_path("spec.model.source.pvc.path", path.as_deref(), limits::PATH_LENGTH);
        }
        if let Some(ImageSource { reference, path }) = image {
            self.image("spec.model.source.image.reference", Some(reference));
            self.relative_path("spec.model.source.image.path", path.as_deref(), limits::PATH_LENGTH);
        }
        if let Some(random) = random {
            self.range("spec.model.source.random.seed", random.seed, 0..=i32::MAX);
        }
    }

    fn relative_path(&mut self, path: &str, value: Option<&str>, limit: u64) {
        self.length(path, value, limit);
        let Some(value) = value.filter(|value| !value.is_empty()) else { return };
        let good = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                && part.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !value.split('/').all(good) {
            self.add(
                path,
                "must be parts of letters, digits, '-', '_' and '.' with '/' between them, none of which begins with \
                 '.' or '-'",
            );
        }
    }

    fn role(&mut self, path: &str, role: &RoleSpec) {
        let RoleSpec { replicas, tensor_parallel_size, engine, resources, pod_template } = role;
        self.range(format!("{path}.replicas"), *replicas, 0..=limits::REPLICAS);
        self.range(
            format!("{path}.tensorParallelSize"),
            *tensor_parallel_size,
            1..=limits::TENSOR_PARALLEL_SIZE,
        );
        self.engine(&format!("{path}.engine"), engine);
        self.resources(&format!("{path}.resources"), resources);
        if resources
            .limits
            .get(NVIDIA_GPU)
            .is_some_and(|gpus| !["0", "1"].contains(&gpus.to_string().as_str()))
        {
            self.add(
                path,
                "resources.limits['nvidia.com/gpu'] must be 0 or 1: a worker uses tensorParallelSize GPUs",
            );
        }
        if self.place == Place::Cluster
            && engine.gpu_memory_utilization_percent.is_some()
            && !resources.limits.keys().any(|name| name.starts_with(NVIDIA_PREFIX))
        {
            self.add(
                path,
                "engine.gpuMemoryUtilizationPercent needs a GPU: set resources.limits['nvidia.com/gpu']",
            );
        }
        self.pod(&format!("{path}.podTemplate"), pod_template);
    }

    fn engine(&mut self, path: &str, engine: &EngineSpec) {
        let EngineSpec {
            device,
            max_num_batched_tokens,
            max_num_seqs,
            kv_cache_bytes,
            num_blocks,
            gpu_memory_utilization_percent,
            enable_chunked_prefill: _,
            enable_prefix_caching: _,
        } = engine;
        if let Some(device) = device {
            let path = format!("{path}.device");
            self.length(&path, Some(device), limits::DEVICE_LENGTH);
            if !device.is_empty() && !is_device(device) {
                self.add(
                    path,
                    "must be auto, cpu, cuda, cuda:N, sim, or sim: with the speed of the simulation",
                );
            }
        }
        self.range(
            format!("{path}.maxNumBatchedTokens"),
            *max_num_batched_tokens,
            1..=limits::MAX_NUM_BATCHED_TOKENS,
        );
        self.range(format!("{path}.maxNumSeqs"), *max_num_seqs, 1..=limits::MAX_NUM_SEQS);
        let bytes = limits::KV_CACHE_BYTES_MIN..=limits::KV_CACHE_BYTES_MAX;
        self.range(format!("{path}.kvCacheBytes"), *kv_cache_bytes, bytes);
        self.range(format!("{path}.numBlocks"), *num_blocks, 1..=limits::NUM_BLOCKS);
        self.range(format!("{path}.gpuMemoryUtilizationPercent"), *gpu_memory_utilization_percent, 1..=100);
        if kv_cache_bytes.is_some() && num_blocks.is_some() {
            self.add(path, "kvCacheBytes and numBlocks both size the KV pool; set one of them");
        }
    }

    fn router(&mut self, router: &RouterSpec) {
        let RouterSpec {
            replicas,
            port,
            service: RouterService { type_: _, annotations },
            max_in_flight,
            request_timeout_seconds,
            max_wait_for_worker_seconds,
            routing: _,
            min_workers,
            resources,
            pod_template,
        } = router;
        self.range("spec.router.replicas", *replicas, 1..=limits::ROUTER_REPLICAS);
        self.range("spec.router.port", *port, 1..=65_535);
        self.text_map("spec.router.service.annotations", annotations, limits::VALUE_LENGTH);
        self.range("spec.router.maxInFlight", *max_in_flight, 1..=limits::MAX_IN_FLIGHT);
        self.range(
            "spec.router.requestTimeoutSeconds",
            *request_timeout_seconds,
            1..=limits::REQUEST_TIMEOUT_SECONDS,
        );
        self.range(
            "spec.router.maxWaitForWorkerSeconds",
            *max_wait_for_worker_seconds,
            0..=limits::MAX_WAIT_FOR_WORKER_SECONDS,
        );
        self.range("spec.router.minWorkers", *min_workers, 1..=limits::MIN_WORKERS);
        self.resources("spec.router.resources", resources);
        self.pod("spec.router.podTemplate", pod_template);
    }

    /// Where both numbers of replicas are given, and anything is to be served.
    fn min_workers(&mut self, router: &RouterSpec, prefill: &RoleSpec, decode: &RoleSpec) {
        let (Some(min_workers), Some(prefill), Some(decode)) =
            (router.min_workers, prefill.replicas, decode.replicas)
        else {
            return;
        };
        let workers = prefill.saturating_add(decode);
        if decode != 0 && min_workers > workers {
            self.add(
                "spec.router.minWorkers",
                format!("must be at most prefill.replicas + decode.replicas ({workers}), not {min_workers}: a router waits until so many are ready"),
            );
        }
    }

    fn monitoring(&mut self, monitoring: &MonitoringSpec) {
        let MonitoringSpec { pod_monitor } = monitoring;
        let Some(PodMonitorOptions { interval, labels }) = pod_monitor else { return };
        let path = "spec.monitoring.podMonitor";
        if let Some(interval) = interval {
            self.length(&format!("{path}.interval"), Some(interval), limits::INTERVAL_LENGTH);
            if !PodMonitorOptions::is_interval(interval) {
                self.add(format!("{path}.interval"), "must be a number with ms, s, m or h, for example 30s");
            }
        }
        self.text_map(&format!("{path}.labels"), labels, limits::LABEL_LENGTH);
        self.no_label_of_ours(path, labels);
    }

    /// By the router's own rules, so that a value that seeds the ConfigMap is never refused there.
    fn settings(&mut self, disaggregation: &DisaggregationSpec) -> RouterSettings {
        let DisaggregationSpec {
            max_local_prefill_length,
            max_prefill_queue_depth,
            fallback_policy,
            overlap_weight_percent,
        } = disaggregation;
        let mut settings = RouterSettings::default();
        let asked = [
            (MAX_LOCAL_PREFILL_LENGTH, max_local_prefill_length.map(|value| value.to_string())),
            (MAX_PREFILL_QUEUE_DEPTH, max_prefill_queue_depth.map(|value| value.to_string())),
            (FALLBACK_POLICY, fallback_policy.map(|value| value.to_string())),
            (OVERLAP_WEIGHT_PERCENT, overlap_weight_percent.map(|value| value.to_string())),
        ];
        for (key, value) in asked {
            let Some(value) = value else { continue };
            match settings.set(key, &value) {
                Ok(()) => {}
                Err(SettingsError::BadValue { rule, value, .. }) => {
                    self.add(format!("spec.disaggregation.{key}"), format!("must be {rule}, not {value}"));
                }
                Err(error) => self.add(format!("spec.disaggregation.{key}"), error.to_string()),
            }
        }
        settings
    }
}

/// `organization/name`, as the schema's pattern has it.
fn is_hub_id(id: &str) -> bool {
    let part = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        part.bytes().all(allowed) && part.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
    };
    id.split_once('/').is_some_and(|(organization, name)| part(organization) && part(name))
}

/// As the schema's pattern has it.
fn is_device(device: &str) -> bool {
    let (kind, argument) =
        device.split_once(':').map_or((device, None), |(kind, argument)| (kind, Some(argument)));
    let all = |argument: &str, allowed: fn(u8) -> bool| !argument.is_empty() && argument.bytes().all(allowed);
    match (kind, argument) {
        ("auto" | "cpu" | "cuda" | "sim", None) => true,
        ("cuda", Some(argument)) => all(argument, |byte| byte.is_ascii_digit()),
        ("sim", Some(argument)) => all(argument, |byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-=.,".contains(&byte)
        }),
        _ => false,
    }
}
