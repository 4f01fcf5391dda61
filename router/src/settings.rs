//! The routing settings in force, and the file they are read from. (Those of a ConfigMap: `kubernetes`.)

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disagg_api::RouterSettings;
use disagg_core::{FallbackPolicy, PlacementSettings, RoutingWeights};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::SettingsSource;

/// How often the file is read. Watching by polling works for every kind of mount, ConfigMap volumes included.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// A settings file is a few lines; a larger one is a mistake.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsFileError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path}: {problem}")]
    Invalid { path: PathBuf, problem: disagg_api::SettingsErrors },
}

/// What is in force, and what is wrong with what should be.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct InForce {
    pub settings: RouterSettings,
    /// Why the source, as it is now, is not in force.
    pub problem: Option<String>,
    /// Of a ConfigMap: the version that was looked at last.
    pub resource_version: Option<String>,
    /// The source was looked at. Before that, `settings` are the defaults.
    pub known: bool,
}

/// The settings in force; every request reads them once.
#[derive(Clone)]
pub(crate) struct LiveSettings {
    values: watch::Receiver<Arc<InForce>>,
    /// Where they come from, for people: `flags`, a path, or a ConfigMap.
    pub(crate) source: Arc<str>,
}

impl LiveSettings {
    /// Settings that somebody else keeps up to date.
    pub(crate) fn new(values: watch::Receiver<Arc<InForce>>, source: impl Into<Arc<str>>) -> Self {
        Self { values, source: source.into() }
    }

    /// Reads the settings for the first time; here a bad file is an error, since there are no values before it. The
    /// future keeps them up to date and has to be polled along with the router.
    pub(crate) async fn start(
        source: SettingsSource,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), SettingsFileError> {
        let (settings, file) = match source {
            SettingsSource::Flags(settings) => (settings, None),
            SettingsSource::File(path) => (read(&path).await?, Some(path)),
        };
        let now = InForce { settings, ..InForce::default() };
        let (sender, values) = watch::channel(Arc::new(now));
        let source = file.as_ref().map_or("flags".to_owned(), |file| file.display().to_string());
        let keep_up = async move {
            match file {
                Some(path) => follow(&path, &sender).await,
                None => std::future::pending().await,
            }
        };
        Ok((Self::new(values, source), keep_up))
    }

    /// What is in force now.
    pub(crate) fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.values.borrow())
    }
}

impl Default for InForce {
    fn default() -> Self {
        Self { settings: RouterSettings::default(), problem: None, resource_version: None, known: true }
    }
}

impl InForce {
    /// Says what has changed from `before`, where anything has.
    pub(crate) fn log_change(&self, before: &Self) {
        match &self.problem {
            None if before.problem.is_none() && before.settings == self.settings => {}
            None => tracing::info!(settings = ?self.settings, "settings applied"),
            Some(problem) => tracing::warn!(%problem, settings = ?self.settings, "settings not applied"),
        }
    }

    /// The settings as placement takes them.
    pub(crate) fn placement(&self) -> PlacementSettings {
        PlacementSettings {
            max_local_prefill_length: self.settings.max_local_prefill_length,
            max_prefill_queue_depth: self.settings.max_prefill_queue_depth,
            fallback: match self.settings.fallback_policy {
                disagg_api::FallbackPolicy::Local => FallbackPolicy::Local,
                disagg_api::FallbackPolicy::Fail => FallbackPolicy::Fail,
            },
        }
    }

    /// The settings as the choice of a decode worker takes them.
    pub(crate) fn weights(&self) -> RoutingWeights {
        RoutingWeights { overlap_percent: self.settings.overlap_weight_percent }
    }
}

/// Applies every good edit. A bad one changes nothing but the problem shown.
async fn follow(path: &Path, sender: &watch::Sender<Arc<InForce>>) {
    let mut ticks = interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let before = Arc::clone(&sender.borrow());
        let now = match read(path).await {
            Ok(settings) => InForce { settings, ..InForce::default() },
            Err(error) => InForce { problem: Some(error.to_string()), ..(*before).clone() },
        };
        if now == *before {
            continue;
        }
        now.log_change(&before);
        sender.send_replace(Arc::new(now));
    }
}

async fn read(path: &Path) -> Result<RouterSettings, SettingsFileError> {
    let failed = |source| SettingsFileError::Read { path: path.to_owned(), source };
    let size = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(SettingsFileError::TooLarge { path: path.to_owned() });
    }
    let text = tokio::fs::read_to_string(path).await.map_err(failed)?;
    RouterSettings::from_yaml(&text)
        .map_err(|problem| SettingsFileError::Invalid { path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until(settings: &mut LiveSettings, wanted: impl Fn(&InForce) -> bool) {
        let waited = settings.values.wait_for(|value| wanted(value));
        tokio::time::timeout(Duration::from_secs(10), waited).await.expect("in time").expect("open");
    }

    #[tokio::test]
    async fn a_good_edit_applies_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.yaml");
        std::fs::write(&path, "maxLocalPrefillLength: 100\n").unwrap();
        let (mut settings, keep_up) = LiveSettings::start(SettingsSource::File(path.clone())).await.unwrap();
        let keep_up = tokio::spawn(keep_up);
        assert_eq!(settings.in_force().placement().max_local_prefill_length, 100);

        std::fs::write(&path, "maxLocalPrefillLength: 7\n").unwrap();
        until(&mut settings, |now| now.settings.max_local_prefill_length == 7).await;
        std::fs::write(&path, "maxLocalPrefillLength: lots\n").unwrap();
        until(&mut settings, |now| now.problem.as_ref().is_some_and(|p| p.contains("lots"))).await;
        assert_eq!(settings.in_force().settings.max_local_prefill_length, 7);
        std::fs::remove_file(&path).unwrap();
        until(&mut settings, |now| now.problem.as_ref().is_some_and(|p| p.contains("cannot read"))).await;
        std::fs::write(&path, "fallbackPolicy: Fail\n").unwrap();
        until(&mut settings, |now| now.problem.is_none()).await;
        assert_eq!(settings.in_force().placement().fallback, FallbackPolicy::Fail);
        keep_up.abort();
    }

    #[tokio::test]
    async fn a_bad_file_at_the_start_is_an_error() {
        let missing = LiveSettings::start(SettingsSource::File("/nonexistent/settings".into())).await;
        assert!(missing.err().unwrap().to_string().contains("/nonexistent/settings"));
    }
}
