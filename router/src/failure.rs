//! Which errors of a router's start would come again at every start.

use disagg_process::Failure;

use crate::config::ConfigError;
use crate::settings::SettingsFileError;

/// What the error that has ended a router says about another start.
pub fn failure(error: &anyhow::Error) -> Failure {
    error.chain().map(of_cause).find(|failure| *failure != Failure::Passing).unwrap_or(Failure::Passing)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Failure {
    if cause.is::<ConfigError>() {
        Failure::Refused
    } else if let Some(error) = cause.downcast_ref::<SettingsFileError>() {
        match error {
            SettingsFileError::File(error) if !error.is_final() => Failure::Passing,
            SettingsFileError::Silent(_) => Failure::Passing,
            SettingsFileError::File(_) | SettingsFileError::Invalid { .. } => Failure::Refused,
        }
    } else if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        Failure::of_listening(error)
    } else {
        Failure::Passing
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::config::SettingsSource;
    use crate::settings::LiveSettings;

    #[tokio::test]
    async fn errors_say_whether_another_start_may_go_well() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = disagg_process::listen(&taken.local_addr().unwrap().to_string()).await;
        let no_file = LiveSettings::start(SettingsSource::File("/nonexistent".into())).await.err().unwrap();
        let silent = SettingsFileError::Silent("/mnt/gone".into());
        for (error, wanted) in [
            (listening.context("cannot listen").unwrap_err(), Failure::AddressInUse),
            (ConfigError::WorkerAddress("nowhere".to_owned()).into(), Failure::Refused),
            (no_file.into(), Failure::Refused),
            (silent.into(), Failure::Passing),
            (anyhow::anyhow!("whatever"), Failure::Passing),
        ] {
            assert_eq!(failure(&error), wanted, "{error:#}");
        }
    }
}
