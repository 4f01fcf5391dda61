//! `disagg up`: one deployment as processes on this machine.
//!
//! [`Plan`] says what to run, [`Layout`] where, the [`Supervisor`] keeps it running, `readiness` tells when it serves,
//! and [`Up`] brings them together and ends them in order.

mod args;
mod banner;
mod cluster_only;
mod engine_args;
mod environment;
mod gpus;
mod layout;
mod model;
mod plan;
mod ports;
mod readiness;
mod running;
mod signals;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use disagg_api::{DisaggDeployment, RouterSettings};
use disagg_process::file;
use disagg_worker::args::Device;
use disagg_worker::cuda::gpus::Gpu;
use disagg_worker::model::{BuiltIn, ModelSpec};
use disagg_worker::{cuda, hub};

pub(crate) use args::UpArgs;
use layout::{Common, Layout};
use plan::{Model, Plan};
use running::Up;
use signals::Signals;

use crate::console::Console;
use crate::supervise::{Output, Policy, Supervisor};

/// A deployment's file is a page; a larger one is a mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Time beyond its own drain bound after which a process is killed.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// Runs until a signal, or until something cannot be kept running.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    let (deployment, folder) = read_deployment(args.file.as_deref())?;
    let shown = args.file.as_deref().map_or("the built-in demo".into(), Path::to_string_lossy);
    let mut plan = Plan::new(deployment, &folder, &args).with_context(|| format!("cannot run {shown}"))?;
    let layout = Layout::new(&plan, &args)?;
    let mut signals = Signals::new()?;
    let console = Arc::new(Console::stderr(layout.names.clone()));

    let said = Arc::clone(&console);
    let lines: hub::Lines = Arc::new(move |line| said.say(line));
    let model_folder = tokio::select! {
        folder = model::prepare(&plan.model, plan.load_format, lines) => folder?,
        name = signals.next() => {
            console.say(&format!("{name}: stopped before anything was started"));
            return Ok(ExitCode::SUCCESS);
        }
    };
    describe(&console, &plan, &model_folder);
    if let Some(warning) = banner::open_to_others(layout.router) {
        console.say(&warning);
    }
    let gpus = deal_gpus(&plan, &model_folder.path).await?;
    for (name, gpu) in layout.names.iter().skip(1).zip(&gpus) {
        if let Some(gpu) = gpu {
            console.say(&format!("{name} computes on {}, {}", gpu.name, gpu.uuid));
        }
    }
    plan.settings = write_settings(&layout.settings, args.settings.is_some(), plan.settings)?;

    let policy = Policy {
        restart_delay_min: Duration::from_millis(200),
        restart_delay_max: Duration::from_secs(10),
        stable_after: Duration::from_secs(30),
        start_attempts: 3,
        stop_grace: Duration::from_secs(plan.drain_seconds.into()) + STOP_MARGIN,
        silence_max: Duration::from_secs(args.max_silence_seconds.into()),
    };
    let common = Common { plan: &plan, model: &model_folder.path, gpus: &gpus, verbose: args.verbose };
    let output: Arc<dyn Output> = Arc::clone(&console) as _;
    let (supervisor, events) = Supervisor::start(layout.processes(&common)?, policy, &output)?;
    let mut up = Up::new(common, layout, &console, supervisor, events)?;
    let outcome =
        up.keep_running(Duration::from_secs(args.startup_timeout_seconds.into()), &mut signals).await;
    let killed = up.stop(&mut signals).await;
    outcome.map(|code| killed.unwrap_or(code))
}

/// The deployment, and the folder that relative paths in it begin from.
fn read_deployment(file: Option<&Path>) -> anyhow::Result<(DisaggDeployment, PathBuf)> {
    let Some(file) = file else { return Ok((DisaggDeployment::from_yaml(plan::DEMO)?, PathBuf::new())) };
    let text = file::read_text(file, FILE_BYTES_MAX).context("-f")?;
    let deployment =
        DisaggDeployment::from_yaml(&text).with_context(|| format!("cannot run {}", file.display()))?;
    Ok((deployment, file.parent().unwrap_or(Path::new("")).to_owned()))
}

/// The GPU of each worker that computes on one.
async fn deal_gpus(plan: &Plan, model: &Path) -> anyhow::Result<Vec<Option<Gpu>>> {
    let model = model.to_owned();
    let devices: Vec<Device> =
        plan.workers().iter().map(|worker| worker.device().unwrap_or_default()).collect();
    let deal = move || {
        // What is wrong with the folder is the workers' to say.
        let can_use_gpus = ModelSpec::read(&model).is_ok_and(|spec| cuda::check_config(&spec).is_ok());
        gpus::deal(&devices, can_use_gpus, cuda::gpus::list())
    };
    // The driver takes its time.
    Ok(tokio::task::spawn_blocking(deal).await??)
}

/// Makes the file that the router follows and `disagg threshold` changes; gives what is in it. A file of the user's
/// stays as it is.
fn write_settings(path: &Path, of_the_user: bool, seed: RouterSettings) -> anyhow::Result<RouterSettings> {
    if of_the_user && path.exists() {
        let text = file::read_text(path, RouterSettings::FILE_BYTES_MAX).context("--settings")?;
        return RouterSettings::from_yaml(&text).with_context(|| format!("--settings {}", path.display()));
    }
    file::write(path, seed.to_yaml().as_bytes()).context("cannot write the settings")?;
    Ok(seed)
}

fn describe(console: &Console, plan: &Plan, folder: &model::Folder) {
    let path = folder.path.display();
    match plan.model {
        Model::BuiltIn(BuiltIn::Demo) => {
            console.say(&format!("model: disagg-tiny, part of disagg, in {path}"));
        }
        Model::BuiltIn(BuiltIn::Random { .. }) if folder.made => {
            console.say(&format!("made a small random model in {path}"));
        }
        Model::Hub(ref model) => console.say(&format!("model: {model} from the hub, in {path}")),
        _ => console.say(&format!("model: {path}")),
    }
    let about = match plan.model {
        Model::BuiltIn(BuiltIn::Demo) => "it answers questions about disagg and knows nothing else",
        Model::BuiltIn(BuiltIn::Random { .. }) => "its weights are random: it talks nonsense",
        Model::Folder(_) | Model::Hub(_) => "",
    };
    if !about.is_empty() {
        console.say(&format!("{about}. --model takes a folder, or ORG/NAME on the hub"));
    }
    let (prefill, decode) = (plan.prefill.count, plan.decode.count);
    console.say(&format!("starting 1 router, {prefill} prefill and {decode} decode worker(s)"));
}
