//! `disagg threshold`: shows and changes `maxLocalPrefillLength` of a running deployment, without a restart.
//!
//! It edits the settings file that the router watches, then asks the router what is in force: what is printed is true,
//! not hoped for.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use disagg_api::RouterSettings;
use disagg_api::settings::MAX_LOCAL_PREFILL_LENGTH;
use disagg_process::file;
use tokio::time::{Instant, interval};

use crate::console;
use crate::router_client::{ADMIN_URL, RouterClient, Settings};

/// The router takes a change over within a second.
const PATIENCE: Duration = Duration::from_secs(5);

const ASK_EVERY: Duration = Duration::from_millis(100);

/// Show or change the threshold of a running deployment
///
/// Prompts with more net-new tokens than this (those that the decode worker has not cached) are prefilled on a prefill
/// worker, all others where they are decoded.
#[derive(Args, Debug)]
pub(crate) struct ThresholdArgs {
    /// URL of the router's admin port: by default one above the port of its API
    #[arg(long, env = "DISAGG_ADMIN", value_name = "URL", default_value = ADMIN_URL, global = true)]
    admin: String,

    #[command(subcommand)]
    command: ThresholdCommand,
}

#[derive(Subcommand, Debug)]
enum ThresholdCommand {
    /// Print the threshold in force, in tokens
    Get,
    /// Change it; new requests follow within a second
    Set {
        /// In tokens
        tokens: u32,
    },
}

pub(crate) async fn run(args: &ThresholdArgs) -> anyhow::Result<ExitCode> {
    let client = RouterClient::new(&args.admin)?;
    let settings = client.settings().await?;
    if let Some(problem) = &settings.problem {
        console::note(&format!("the settings file is not in force: {problem}"));
    }
    if let ThresholdCommand::Set { tokens } = args.command {
        let file = settings.file().context(
            "this router reads no settings file (`disagg router --settings FILE`, or `disagg up`), so its threshold \
             can not be changed while it runs",
        )?;
        write(file, tokens)?;
        wait_for(&client, tokens).await?;
    }
    console::print(&format!("{}\n", threshold(&client.settings().await?)?));
    Ok(ExitCode::SUCCESS)
}

/// The file with its threshold changed and all else kept.
fn write(path: &Path, tokens: u32) -> anyhow::Result<()> {
    let shown = path.display();
    let text = file::read_text(path, RouterSettings::FILE_BYTES_MAX)
        .context("cannot read the file that the router watches; is it on this machine?")?;
    let mut settings =
        RouterSettings::from_yaml(&text).with_context(|| format!("{shown} is not valid; repair it first"))?;
    settings.set(MAX_LOCAL_PREFILL_LENGTH, &tokens.to_string())?;
    file::write(path, settings.to_yaml().as_bytes()).context("cannot write the settings")
}

async fn wait_for(client: &RouterClient, tokens: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = interval(ASK_EVERY);
    loop {
        ticks.tick().await;
        let settings = client.settings().await?;
        if threshold(&settings)? == u64::from(tokens) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = settings.problem.unwrap_or_else(|| "it does not say why".to_owned());
            bail!("the router has not taken the change over in {} s: {why}", PATIENCE.as_secs());
        }
    }
}

/// A number, or digits as a ConfigMap has them.
fn threshold(settings: &Settings) -> anyhow::Result<u64> {
    let value = settings.values.get(MAX_LOCAL_PREFILL_LENGTH);
    let number = value.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
    number.with_context(|| format!("the router does not tell its {MAX_LOCAL_PREFILL_LENGTH}"))
}
