//! One watch, for as long as the router lives: through lost connections, expired versions, an API server that is away,
//! and objects that do not parse.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::{Feed, Health};

/// Pause after a failure: grows from the first to the last. An edit made while the API server was away is in force
/// within the last of its return.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The server ends a watch after this many seconds, and it is taken up where it ended. Short, since a connection whose
/// other end vanished is noticed only then.
const WATCH_SECONDS: u32 = 20;

/// Calls `changed` with all objects, by name, once they are known and after every change. Never ends.
pub(super) async fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    health: &Health,
    feed: Feed,
    mut changed: impl FnMut(&BTreeMap<String, K>),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let name = feed.as_str();
    let mut objects = Objects { known: BTreeMap::new(), relisted: None, feed };
    let config = config.timeout(WATCH_SECONDS);
    let start = || watcher::watcher(api.clone(), config.clone()).boxed();
    let mut events = start();
    let mut pause = BACKOFF.0;
    // The stream of a watcher has no end.
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                pause = BACKOFF.0;
                let synced = objects.take(event);
                if let Some(problem) = health.works(feed, synced) {
                    tracing::info!(feed = name, after = %problem, "the Kubernetes API answers again");
                }
                if synced {
                    changed(&objects.known);
                }
            }
            Err(error) => {
                let problem = describe(&error);
                if health.failed(feed, problem.clone()) {
                    tracing::warn!(feed = name, %problem, "cannot watch; what is known stays in force");
                }
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
                // With a list, not with the watch where it ended: the list's answer tells that all is well again,
                // while a watch is silent until something changes.
                events = start();
            }
        }
    }
}

/// What is known, and what a new list has brought so far.
struct Objects<K> {
    known: BTreeMap<String, K>,
    relisted: Option<BTreeMap<String, K>>,
    feed: Feed,
}

impl<K: Resource + Clone> Objects<K> {
    /// True if `known` is complete and may be another now.
    fn take(&mut self, event: Event<DeserializeGuard<K>>) -> bool {
        match event {
            Event::Init => {
                self.relisted = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                let (name, object) = self.parsed(object);
                if let (Some(object), Some(relisted)) = (object, &mut self.relisted) {
                    relisted.insert(name, object);
                }
                false
            }
            Event::InitDone => {
                if let Some(relisted) = self.relisted.take() {
                    self.known = relisted;
                }
                true
            }
            Event::Apply(object) => {
                if let (name, Some(object)) = self.parsed(object) {
                    self.known.insert(name, object);
                }
                self.relisted.is_none()
            }
            Event::Delete(object) => {
                self.known.remove(&object.name_any());
                self.relisted.is_none()
            }
        }
    }

    /// An object that cannot be read is as it was before, if it was, and holds up nothing else.
    fn parsed(&self, object: DeserializeGuard<K>) -> (String, Option<K>) {
        let name = object.name_any();
        match object.0 {
            Ok(object) => (name, Some(object)),
            Err(invalid) => {
                tracing::warn!(feed = self.feed.as_str(), object = name, error = %invalid.error,
                    "an object cannot be read and is passed over");
                let before = self.known.get(&name).cloned();
                (name, before)
            }
        }
    }
}

/// One line for people.
fn describe(error: &watcher::Error) -> String {
    let source = match error {
        watcher::Error::InitialListFailed(source)
        | watcher::Error::WatchStartFailed(source)
        | watcher::Error::WatchFailed(source) => source,
        watcher::Error::WatchError(status) => return status.message.clone(),
        watcher::Error::NoResourceVersion => return error.to_string(),
    };
    match source {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                cause = inner.source();
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str, data: &Value) -> DeserializeGuard<ConfigMap> {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data,
        });
        serde_json::from_value(object).unwrap()
    }

    fn good(name: &str) -> DeserializeGuard<ConfigMap> {
        object(name, &json!({ "a": "b" }))
    }

    fn objects() -> Objects<ConfigMap> {
        Objects { known: BTreeMap::new(), relisted: None, feed: Feed::ConfigMap }
    }

    fn names(objects: &Objects<ConfigMap>) -> Vec<&str> {
        objects.known.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_list_counts_when_it_is_whole() {
        let mut objects = objects();
        for part in [Event::Init, Event::InitApply(good("a")), Event::InitApply(good("b"))] {
            assert!(!objects.take(part), "half a list is not told of");
            assert!(names(&objects).is_empty());
        }
        assert!(objects.take(Event::InitDone));
        assert_eq!(names(&objects), ["a", "b"]);
        assert!(objects.take(Event::Apply(good("c"))));
        assert!(objects.take(Event::Delete(good("a"))));
        assert_eq!(names(&objects), ["b", "c"]);
    }

    #[test]
    fn what_went_while_the_watch_was_away_is_gone_after_the_next_list() {
        let mut objects = objects();
        for event in [Event::Init, Event::InitApply(good("a")), Event::InitApply(good("b")), Event::InitDone]
        {
            objects.take(event);
        }
        objects.take(Event::Init);
        objects.take(Event::InitApply(good("b")));
        assert_eq!(names(&objects), ["a", "b"], "what is known stays in force until the list is whole");
        objects.take(Event::InitDone);
        assert_eq!(names(&objects), ["b"]);
    }

    #[test]
    fn an_object_that_cannot_be_read_is_as_it_was() {
        let mut objects = objects();
        objects.take(Event::Init);
        objects.take(Event::InitApply(good("a")));
        objects.take(Event::InitDone);
        let bad = || json!({ "a": ["no text"] });
        assert!(objects.take(Event::Apply(object("a", &bad()))));
        assert_eq!(objects.known["a"].data.as_ref().unwrap()["a"], "b");
        objects.take(Event::Init);
        objects.take(Event::InitApply(object("a", &bad())));
        objects.take(Event::InitApply(object("new", &bad())));
        objects.take(Event::InitDone);
        assert_eq!(names(&objects), ["a"], "one that was never read is passed over");
    }
}
