//! What to run: one deployment and the flags, made into processes. Pure, but for the paths of files it names.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use disagg_api::crd::{DisaggDeployment, EngineSpec, Invalid, ModelSource, RandomModel, WorkerFlags};
use disagg_api::settings::RouterSettings;
use disagg_core::{Dtype, LoadFormat, Role, RoutingStrategy};
use disagg_worker::args::Device;
use disagg_worker::hub::{BadHubModel, HubModel, ModelRef};
use disagg_worker::model::BuiltIn;

use super::args::UpArgs;
use super::cluster_only;

/// The deployment that runs without `-f`.
pub(crate) const DEMO: &str = include_str!("../../../deploy/samples/demo.yaml");

/// The port when neither flag nor file names one.
const PORT_DEFAULT: u16 = 8181;

/// Longest time for open answers to end when neither flag nor file names one.
const DRAIN_SECONDS_DEFAULT: u32 = 10;

/// The most workers that `up` runs; each holds a whole model.
const WORKERS_MAX: u32 = 64;

/// A deployment that can not be run here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A field that has no effect without a cluster is refused, not passed over.
    #[error("{field}: {message}")]
    Refused { field: String, message: String },
}

/// Everything that is to run.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    pub(crate) served_name: String,
    pub(crate) model: Model,
    pub(crate) load_format: LoadFormat,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) kv_cache_dtype: Option<Dtype>,
    pub(crate) max_length: Option<i32>,
    pub(crate) block_size: Option<i32>,
    pub(crate) prefill: Workers,
    pub(crate) decode: Workers,
    /// 0: any free one.
    pub(crate) port: u16,
    pub(crate) settings: RouterSettings,
    pub(crate) router: RouterLimits,
    /// Longest time for open answers to end.
    pub(crate) drain_seconds: u32,
}

/// Limits of the router that the resource sets.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct RouterLimits {
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) request_timeout_seconds: Option<u32>,
    pub(crate) max_wait_for_worker_seconds: Option<u32>,
    pub(crate) routing: Option<RoutingStrategy>,
    pub(crate) min_workers: Option<u32>,
}

/// Where the model comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Model {
    Folder(PathBuf),
    /// On the hub, or in its cache.
    Hub(HubModel),
    /// To be written on the spot.
    BuiltIn(BuiltIn),
}

/// The workers of one role.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Workers {
    pub(crate) count: u32,
    pub(crate) engine: EngineSpec,
}

impl Plan {
    /// Applies the flags to the deployment and checks the result. `folder` is where the deployment's file lies;
    /// relative paths in it begin there.
    pub(crate) fn new(
        mut deployment: DisaggDeployment,
        folder: &Path,
        args: &UpArgs,
    ) -> Result<Self, PlanError> {
        apply_flags(&mut deployment, args);
        let settings = deployment.validate()?;
        let served_name = deployment.served_name().to_owned();
        let spec = deployment.spec;
        if let Some((field, why)) = cluster_only::field(&spec) {
            return Err(PlanError::Refused { field, message: why.to_owned() });
        }

        let model = model(spec.model.source, folder, args)?;
        if let Some(replicas @ 2..) = spec.router.replicas {
            return Err(PlanError::Refused {
                field: "spec.router.replicas".to_owned(),
                message: format!("`disagg up` runs one router, not {replicas}; leave the field out"),
            });
        }
        let workers = |role: disagg_api::crd::RoleSpec| Workers {
            count: role.replicas.map_or(1, number),
            engine: role.engine,
        };
        let (prefill, decode) = (workers(spec.prefill), workers(spec.decode));
        check_device("spec.prefill.engine.device", &prefill.engine)?;
        check_device("spec.decode.engine.device", &decode.engine)?;
        if decode.count == 0 {
            return Err(PlanError::Refused {
                field: "spec.decode.replicas".to_owned(),
                message: "`disagg up` needs at least one decode worker to be ready".to_owned(),
            });
        }
        let workers = prefill.count.saturating_add(decode.count);
        if let Some(min_workers) = spec.router.min_workers.map(number).filter(|wanted| *wanted > workers) {
            return Err(PlanError::Refused {
                field: "spec.router.minWorkers".to_owned(),
                message: format!("{min_workers} workers are never ready: {workers} are to run"),
            });
        }
        if workers > WORKERS_MAX {
            return Err(PlanError::Refused {
                field: "spec.prefill.replicas and spec.decode.replicas".to_owned(),
                message: format!("`disagg up` runs at most {WORKERS_MAX} workers on one machine"),
            });
        }
        Ok(Self {
            served_name,
            model,
            load_format: spec.model.load_format.unwrap_or_default(),
            dtype: spec.model.dtype,
            kv_cache_dtype: spec.kv_cache.dtype,
            max_length: spec.model.max_length,
            block_size: spec.kv_cache.block_size,
            prefill,
            decode,
            port: args
                .port
                .or_else(|| spec.router.port.and_then(|port| port.try_into().ok()))
                .unwrap_or(PORT_DEFAULT),
            settings,
            router: RouterLimits {
                max_in_flight: spec.router.max_in_flight.map(number),
                request_timeout_seconds: spec.router.request_timeout_seconds.map(number),
                max_wait_for_worker_seconds: spec.router.max_wait_for_worker_seconds.map(number),
                routing: spec.router.routing,
                min_workers: spec.router.min_workers.map(number),
            },
            drain_seconds: args
                .drain_seconds
                .or(spec.drain_seconds.map(number))
                .unwrap_or(DRAIN_SECONDS_DEFAULT),
        })
    }

    /// Roles and numbers of all workers, in the order in which they start.
    pub(crate) fn workers(&self) -> Vec<Worker<'_>> {
        let of =
            |role, workers: &Workers| (0..workers.count).map(move |index| Worker { plan: self, role, index });
        of(Role::Prefill, &self.prefill).chain(of(Role::Decode, &self.decode)).collect()
    }
}

/// As the workers will read it: better one message now than one from each of them.
fn check_device(field: &'static str, engine: &EngineSpec) -> Result<(), PlanError> {
    match engine.device.as_deref().map(str::parse::<Device>) {
        Some(Err(bad)) => Err(PlanError::Refused { field: field.to_owned(), message: bad.to_string() }),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// One worker of a plan.
#[derive(Clone, Copy)]
pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    role: Role,
    index: u32,
}

impl Worker<'_> {
    /// Its name, for example `prefill-0`.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.role, self.index)
    }

    fn engine(&self) -> &EngineSpec {
        if self.role == Role::Prefill { &self.plan.prefill.engine } else { &self.plan.decode.engine }
    }

    /// What it computes on, if that is said. [`Plan::new`] has checked the text.
    pub(crate) fn device(&self) -> Option<Device> {
        self.engine().device.as_deref().and_then(|device| device.parse().ok())
    }

    /// Arguments of `disagg`.
    pub(crate) fn args(&self, model_folder: &Path, listen: &str, probes: &str) -> Vec<OsString> {
        let plan = self.plan;
        // A GPU that was chosen by number is the only one that its worker sees.
        let device = self.device().map(|device| match device {
            Device::Cuda(_) => Device::Cuda(0).to_string(),
            other => other.to_string(),
        });
        let flags = WorkerFlags {
            name: &self.name(),
            role: self.role.as_str(),
            listen,
            advertise: None,
            metrics_listen: probes,
            model: &model_folder.to_string_lossy(),
            served_name: &plan.served_name,
            load_format: plan.load_format,
            dtype: plan.dtype,
            kv_cache_dtype: plan.kv_cache_dtype,
            max_length: plan.max_length,
            block_size: plan.block_size,
            device: device.as_deref(),
            engine: self.engine(),
            drain_seconds: plan.drain_seconds,
            exit_with_stdin: true,
        };
        let words = flags.flags().into_iter().map(|flag| flag.word().into());
        std::iter::once("worker".into()).chain(words).collect()
    }
}

/// Arguments of `disagg` for the router.
pub(crate) fn router_args(
    plan: &Plan,
    listen: SocketAddr,
    admin: SocketAddr,
    workers: &[String],
    settings: &Path,
) -> Vec<OsString> {
    let mut args = Args::new("router");
    args.flag("--listen", listen.to_string());
    args.flag("--admin-listen", admin.to_string());
    for worker in workers {
        args.flag("--worker", worker);
    }
    args.flag("--settings", settings);
    let RouterLimits {
        max_in_flight,
        request_timeout_seconds,
        max_wait_for_worker_seconds,
        routing,
        min_workers,
    } = plan.router;
    args.option("--max-in-flight", max_in_flight);
    args.option("--request-timeout-seconds", request_timeout_seconds);
    args.option("--max-wait-for-worker-seconds", max_wait_for_worker_seconds);
    args.option("--routing", routing);
    args.option("--min-workers", min_workers);
    args.flag("--drain-timeout-seconds", plan.drain_seconds.to_string());
    args.0.push("--exit-with-stdin".into());
    args.0
}

struct Args(Vec<OsString>);

impl Args {
    fn new(command: &str) -> Self {
        Self(vec![command.into()])
    }

    fn flag(&mut self, name: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref();
        if value.as_encoded_bytes().starts_with(b"-") {
            // In one word: alone it would be taken for a flag.
            let mut word = OsString::from(name);
            word.push("=");
            word.push(value);
            self.0.push(word);
        } else {
            self.0.extend([name.into(), value.to_owned()]);
        }
    }

    fn option(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.flag(name, value.to_string());
        }
    }
}

/// What the flag names, or else the resource. Without both the built-in demo is the resource, so [`DEMO`] says what
/// `disagg up` alone serves.
fn model(source: ModelSource, folder: &Path, args: &UpArgs) -> Result<Model, PlanError> {
    match (&args.model, source) {
        (Some(ModelRef::Folder(flag)), _) => Ok(Model::Folder(flag.clone())),
        (Some(ModelRef::Hub(flag)), _) => Ok(Model::Hub(flag.clone())),
        (Some(ModelRef::BuiltIn(flag)), _) => Ok(Model::BuiltIn(*flag)),
        (None, ModelSource { path: Some(path), .. }) => Ok(Model::Folder(folder.join(path))),
        (None, ModelSource { hub_id: Some(id), revision, .. }) => {
            let refused = |error: BadHubModel| PlanError::Refused {
                field: "spec.model.source.hubId".to_owned(),
                message: error.to_string(),
            };
            HubModel::new(&id, revision.as_deref()).map(Model::Hub).map_err(refused)
        }
        (None, ModelSource { random: Some(RandomModel { seed }), .. }) => {
            Ok(Model::BuiltIn(BuiltIn::Random { seed: seed.map_or(0, number).into() }))
        }
        // Of what is left, validation lets pass only `bundled`.
        (None, _) => Ok(Model::BuiltIn(BuiltIn::Demo)),
    }
}

fn apply_flags(deployment: &mut DisaggDeployment, args: &UpArgs) {
    let spec = &mut deployment.spec;
    if let Some(model) = &args.model {
        // `model` has the flag itself; the source only has to be valid.
        spec.model.source = ModelSource { path: Some(model.to_string()), ..ModelSource::default() };
        // The name in the demo says nothing about this model; the name in a user's own file was meant.
        if args.file.is_none() {
            spec.model.served_name = model.default_name().or_else(|| spec.model.served_name.take());
        }
    }
    if let Some(name) = &args.served_model_name {
        spec.model.served_name = Some(name.clone());
    }
    if let Some(format) = args.load_format {
        spec.model.load_format = Some(format);
    }
    if let Some(dtype) = args.dtype {
        spec.model.dtype = Some(dtype);
    }
    if let Some(dtype) = args.kv_cache_dtype {
        spec.kv_cache.dtype = Some(dtype);
    }
    set(&mut spec.kv_cache.block_size, args.block_size);
    set(&mut spec.prefill.replicas, args.prefill);
    set(&mut spec.decode.replicas, args.decode);
    set(&mut spec.model.max_length, args.max_model_len);
    for role in [&mut spec.prefill, &mut spec.decode] {
        args.engine.apply(&mut role.engine);
        if let Some(device) = args.device {
            role.engine.device = Some(device.to_string());
        }
    }
    spec.router.routing = args.routing.or(spec.router.routing);
    set(&mut spec.router.min_workers, args.min_workers);
    set(&mut spec.disaggregation.max_local_prefill_length, args.max_local_prefill_length);
}

/// The command line has checked that the number fits.
fn set(field: &mut Option<i32>, flag: Option<u32>) {
    if let Some(value) = flag {
        *field = Some(i32::try_from(value).unwrap_or(i32::MAX));
    }
}

/// Validation has checked that the number is not negative.
fn number(value: i32) -> u32 {
    value.unsigned_abs()
}

#[cfg(test)]
mod tests;
