//! The routing settings in force, and the file they are read from. (Those of a ConfigMap: `kubernetes`.)

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disagg_api::RouterSettings;
use disagg_core::{PlacementSettings, RoutingWeights};
use disagg_process::file::{self, FileError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::SettingsSource;

/// How often the file is read. Watching by polling works for every kind of mount, ConfigMap volumes included.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// A file system that takes longer than this to answer has gone away, as a network's may.
const READ_MAX: Duration = Duration::from_secs(5);

/// The settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsFileError {
    #[error("cannot read {0}")]
    File(#[from] FileError),
    #[error("cannot read {}: its file system has not answered for {} s", .0.display(), READ_MAX.as_secs())]
    Silent(PathBuf),
    #[error("{}: {problem}", path.display())]
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
            SettingsSource::File(path) => (settled(&mut reading(&path), &path).await?, Some(path)),
        };
        let now = InForce { settings, ..InForce::default() };
        let (sender, values) = watch::channel(Arc::new(now));
        let source = file.as_ref().map_or("flags".to_owned(), |file| file.display().to_string());
        let keep_up = async move {
            match file {
                Some(path) => follow(&path, &sender, reading).await,
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
            fallback: self.settings.fallback_policy,
        }
    }

    /// The settings as the choice of a decode worker takes them.
    pub(crate) fn weights(&self) -> RoutingWeights {
        RoutingWeights { overlap_percent: self.settings.overlap_weight_percent }
    }
}

/// A read under way, on a thread that may wait for a file system.
type Reading = JoinHandle<Result<RouterSettings, SettingsFileError>>;

/// Applies every good edit. A bad one changes nothing but the problem shown; so does a file system that does not
/// answer, which is waited for with one thread and no more.
async fn follow(path: &Path, sender: &watch::Sender<Arc<InForce>>, read: impl Fn(&Path) -> Reading) {
    let mut ticks = interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut reading = read(path);
        let mut result = settled(&mut reading, path).await;
        let silent = matches!(result, Err(SettingsFileError::Silent(_)));
        apply(result, sender);
        if silent {
            result = reading.await.unwrap_or_else(|_| Err(SettingsFileError::Silent(path.to_owned())));
            apply(result, sender);
        }
    }
}

fn apply(result: Result<RouterSettings, SettingsFileError>, sender: &watch::Sender<Arc<InForce>>) {
    let before = Arc::clone(&sender.borrow());
    let now = match result {
        Ok(settings) => InForce { settings, ..InForce::default() },
        Err(error) => InForce { problem: Some(error.to_string()), ..(*before).clone() },
    };
    if now != *before {
        now.log_change(&before);
        sender.send_replace(Arc::new(now));
    }
}

/// What the read has given, or that it takes too long.
async fn settled(reading: &mut Reading, path: &Path) -> Result<RouterSettings, SettingsFileError> {
    match timeout(READ_MAX, reading).await {
        Ok(Ok(result)) => result,
        // Its thread is gone with the runtime.
        Ok(Err(_)) | Err(_) => Err(SettingsFileError::Silent(path.to_owned())),
    }
}

fn reading(path: &Path) -> Reading {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let text = file::read_text(&path, RouterSettings::FILE_BYTES_MAX)?;
        RouterSettings::from_yaml(&text).map_err(|problem| SettingsFileError::Invalid { path, problem })
    })
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
        assert_eq!(settings.in_force().placement().fallback, disagg_core::FallbackPolicy::Fail);
        keep_up.abort();
    }

    /// Puts something in the place of the settings file.
    type Put<'a> = &'a dyn Fn(&Path);

    #[tokio::test]
    async fn what_takes_the_place_of_the_file_neither_hangs_nor_fills_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.yaml");
        let good = "maxLocalPrefillLength: 100\n";
        std::fs::write(&path, good).unwrap();
        let (mut settings, keep_up) = LiveSettings::start(SettingsSource::File(path.clone())).await.unwrap();
        let keep_up = tokio::spawn(keep_up);
        let fifo = |path: &Path| {
            assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        };
        let hostile: [(&str, Put<'_>); 4] = [
            ("is a device", &|path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
            ("is a pipe (FIFO)", &fifo),
            ("is a folder", &|path| std::fs::create_dir(path).unwrap()),
            ("more than the 65536 bytes", &|path| {
                std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
            }),
        ];
        for (problem, put) in hostile {
            std::fs::remove_file(&path).unwrap();
            put(&path);
            until(&mut settings, |now| now.problem.as_ref().is_some_and(|said| said.contains(problem))).await;
            assert_eq!(settings.in_force().settings.max_local_prefill_length, 100);
            let started = LiveSettings::start(SettingsSource::File(path.clone())).await;
            assert!(started.err().unwrap().to_string().contains(problem));
            std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path)).unwrap();
            std::fs::write(&path, good).unwrap();
            until(&mut settings, |now| now.problem.is_none()).await;
        }
        keep_up.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_does_not_answer_is_told_and_one_read_waits_for_it() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let (sender, values) = watch::channel(Arc::new(InForce::default()));
        let mut settings = LiveSettings::new(values, "a file");
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        let (reads, silent) = (AtomicU32::new(0), parking_lot::Mutex::new(Some(answered)));
        let read = |_: &Path| -> Reading {
            reads.fetch_add(1, Ordering::Relaxed);
            let silent = silent.lock().take();
            tokio::spawn(async move {
                if let Some(answered) = silent {
                    answered.await.unwrap();
                }
                Ok(RouterSettings { max_local_prefill_length: 7, ..RouterSettings::default() })
            })
        };
        let seen = async {
            until(&mut settings, |now| {
                now.problem.as_ref().is_some_and(|said| said.contains("has not answered for 5 s"))
            })
            .await;
            tokio::time::advance(READ_MAX * 10).await;
            tokio::task::yield_now().await;
            assert_eq!(reads.load(Ordering::Relaxed), 1, "no second thread waits beside the first");
            answer.send(()).unwrap();
            until(&mut settings, |now| now.problem.is_none()).await;
            assert_eq!(settings.in_force().settings.max_local_prefill_length, 7);
        };
        tokio::select! {
            () = follow(Path::new("a file"), &sender, read) => panic!("it has ended"),
            () = seen => {}
        }
    }

    #[tokio::test]
    async fn a_bad_file_at_the_start_is_an_error() {
        let missing = LiveSettings::start(SettingsSource::File("/nonexistent/settings".into())).await;
        assert!(missing.err().unwrap().to_string().contains("/nonexistent/settings"));
    }
}
