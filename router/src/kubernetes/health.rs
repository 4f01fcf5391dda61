//! Whether what is read from the API server arrives.

use parking_lot::Mutex;

/// One thing that is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Feed {
    /// Where the workers are.
    EndpointSlices,
    /// The routing settings.
    ConfigMap,
}

impl Feed {
    pub(crate) const ALL: [Self; 2] = [Self::EndpointSlices, Self::ConfigMap];

    /// Name in messages and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::EndpointSlices => "endpointslices",
            Self::ConfigMap => "configmap",
        }
    }
}

#[derive(Clone, Default)]
struct State {
    /// It was listed once.
    synced: bool,
    /// Why the last attempt failed, until one works.
    problem: Option<String>,
}

/// The state of every feed. Written by the watches, read by `/ready` and `/metrics`.
#[derive(Default)]
pub(crate) struct Health {
    feeds: [Mutex<State>; Feed::ALL.len()],
}

impl Health {
    /// An answer has come. Returns the problem that is over, if there was one.
    pub(super) fn works(&self, feed: Feed, synced: bool) -> Option<String> {
        let mut state = self.feeds[feed as usize].lock();
        state.synced |= synced;
        state.problem.take()
    }

    /// An attempt has failed. True if the problem is another than before.
    pub(super) fn failed(&self, feed: Feed, problem: String) -> bool {
        let mut state = self.feeds[feed as usize].lock();
        let news = state.problem.as_ref() != Some(&problem);
        state.problem = Some(problem);
        news
    }

    /// Whether this feed works now.
    pub(crate) fn is_up(&self, feed: Feed) -> bool {
        let state = self.feeds[feed as usize].lock();
        state.synced && state.problem.is_none()
    }

    /// What has to come before this router can serve for the first time. `None`: all was read once.
    pub(crate) fn missing(&self) -> Option<String> {
        Feed::ALL.into_iter().find_map(|feed| {
            let State { synced, problem } = self.feeds[feed as usize].lock().clone();
            let name = feed.as_str();
            match (synced, problem) {
                (true, _) => None,
                (false, None) => Some(format!("reading {name} from the Kubernetes API")),
                (false, Some(problem)) => {
                    Some(format!("cannot read {name} from the Kubernetes API, trying again: {problem}"))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_is_missing_until_it_was_read_once() {
        let health = Health::default();
        assert_eq!(health.missing().as_deref(), Some("reading endpointslices from the Kubernetes API"));
        health.works(Feed::EndpointSlices, true);
        assert!(health.failed(Feed::ConfigMap, "forbidden".to_owned()), "a new problem is told");
        assert!(!health.failed(Feed::ConfigMap, "forbidden".to_owned()), "once");
        let missing = health.missing().unwrap();
        assert!(missing.contains("configmap") && missing.ends_with("forbidden"), "{missing}");
        assert_eq!(health.works(Feed::ConfigMap, false).as_deref(), Some("forbidden"));
        assert!(health.missing().is_some(), "an answer is not yet all of it");
        health.works(Feed::ConfigMap, true);
        assert_eq!(health.missing(), None);
    }

    #[test]
    fn a_feed_that_fails_later_is_down_and_not_missing() {
        let health = Health::default();
        assert!(!health.is_up(Feed::ConfigMap));
        health.works(Feed::EndpointSlices, true);
        health.works(Feed::ConfigMap, true);
        assert!(health.is_up(Feed::ConfigMap));
        health.failed(Feed::ConfigMap, "away".to_owned());
        assert!(!health.is_up(Feed::ConfigMap) && health.is_up(Feed::EndpointSlices));
        assert_eq!(health.missing(), None, "what was read stays in force");
        // A list has begun: it is up again, and was never forgotten.
        health.works(Feed::ConfigMap, false);
        assert!(health.is_up(Feed::ConfigMap));
    }
}
