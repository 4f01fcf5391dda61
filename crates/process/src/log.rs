//! Logs of the long-running parts.

use tracing_subscriber::EnvFilter;

/// Logs to standard error from now on: `info`, unless `RUST_LOG` says otherwise. To be called once.
pub fn log_to_stderr(colours: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
