//! The settings ConfigMap: metadata by server-side apply, data by a merge patch that is bound to what was read.

use disagg_api::kubernetes::conditions::CHILDREN_APPLIED;
use disagg_api::settings::KEYS;
use disagg_api::{RouterSettings, SettingsErrors};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};

use super::child::{Applying, MadeOrFound};
use super::problem::{Problem, Why};
use crate::client::is_conflict;
use crate::reconcile::ownership::{Held, Pairs, decide, patch};
use crate::reconcile::subject::Subject;
use crate::reconcile::validate::Wanted;

/// Field manager of the data. Not that of what is applied, which would own the keys that a person edits.
const SETTINGS_MANAGER: &str = "disagg-settings";
/// Somebody else may write between reading and patching; then it is read again.
const ATTEMPTS: usize = 4;

/// The ConfigMap as it is now.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct SettingsState {
    pub resource_version: String,
    /// Whether what it holds is valid. Routers judge the same data by the same rules.
    pub verdict: Result<RouterSettings, SettingsErrors>,
}

/// What came of the settings.
#[derive(Default)]
pub(super) struct Outcome {
    /// Nothing, if the ConfigMap is not there or not ours.
    pub state: Option<SettingsState>,
    pub problem: Option<Problem>,
}

/// Applies metadata and data.
pub(super) async fn apply(applying: &Applying<'_>, wanted: &Wanted, metadata: &ConfigMap) -> Outcome {
    let name = metadata.name_any();
    let mut state = None;
    let work = Box::pin(bring_about(applying, wanted, metadata, &mut state));
    let result = applying.within::<ConfigMap, _>(&name, work).await;
    Outcome { state, problem: result.err() }
}

/// `state` is what there is, so that it is known even if it cannot be changed.
async fn bring_about(
    applying: &Applying<'_>,
    wanted: &Wanted,
    metadata: &ConfigMap,
    state: &mut Option<SettingsState>,
) -> Result<(), Problem> {
    let name = metadata.name_any();
    let mut live = match applying.find_or_make(metadata).await? {
        // There is nothing in it yet.
        MadeOrFound::Made(made) => Some(*made),
        MadeOrFound::Found(found) => {
            *state = found.whole.as_ref().map(|live| as_it_is(&Held::of(live), live));
            match applying.update(metadata, &found).await? {
                Some(now) => Some(now),
                None => found.whole,
            }
        }
    };
    for _ in 0..ATTEMPTS {
        let current = match live.take() {
            Some(live) => live,
            None => applying.ask(&name).await?.and_then(|found| found.whole).ok_or_else(|| {
                Problem::new::<ConfigMap>(&name, Why::NotFound("it was deleted meanwhile".to_owned()))
            })?,
        };
        let version = current.resource_version().unwrap_or_default();
        let held = Held::of(&current);
        *state = Some(as_it_is(&held, &current));
        // Nothing was ever written into it: it is new, or its maker was killed before the data.
        let begin = if held == Held::default() { remembered(applying, wanted) } else { held.clone() };
        let decision = decide(&begin, &wanted.settings);
        let decided =
            |resource_version| SettingsState { resource_version, verdict: decision.verdict.clone() };
        let Some(patch) = patch(&held, &decision.next, &version) else {
            remember(applying, decision.next);
            *state = Some(decided(version));
            return Ok(());
        };
        let params =
            PatchParams { field_manager: Some(SETTINGS_MANAGER.to_owned()), ..PatchParams::default() };
        match applying.api::<ConfigMap>().patch(&name, &params, &Patch::Merge(&patch)).await {
            Ok(now) => {
                remember(applying, decision.next);
                *state = Some(decided(now.resource_version().unwrap_or_default()));
                return Ok(());
            }
            // Somebody was quicker: read it again.
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(Problem::of::<ConfigMap>(&name, &error)),
        }
    }
    let contended = "it is changed faster than it can be read".to_owned();
    Err(Problem::new::<ConfigMap>(&name, Why::Passing(contended)))
}

/// The state of a ConfigMap that stays as it is.
fn as_it_is(held: &Held, config_map: &ConfigMap) -> SettingsState {
    let resource_version = config_map.resource_version().unwrap_or_default();
    SettingsState { resource_version, verdict: held.verdict() }
}

fn remember(applying: &Applying<'_>, held: Held) {
    applying.memory.of(&applying.subject.id, |of| of.settings = Some(held));
}

/// What a new ConfigMap begins with: what was last seen in it, if it was there before. An operator
/// that did not see it go finds what the routers last applied in the status, which it wrote itself.
fn remembered(applying: &Applying<'_>, wanted: &Wanted) -> Held {
    let seen = applying.memory.of(&applying.subject.id, |of| of.settings.clone());
    seen.map(Held::restored).or_else(|| from_status(applying.subject, wanted)).unwrap_or_default()
}

/// With the resource as it was when the status was written, and every child applied, what it asks for has been written
/// before.
fn from_status(subject: &Subject, wanted: &Wanted) -> Option<Held> {
    let status = subject.status.as_ref()?;
    let mut conditions = status.conditions.iter();
    let kept_back = conditions.any(|found| found.type_ == CHILDREN_APPLIED && found.status != "True");
    if status.observed_generation != subject.generation || kept_back {
        return None;
    }
    let applied = status.settings.as_ref()?;
    let values = [
        applied.max_local_prefill_length.to_string(),
        applied.max_prefill_queue_depth.to_string(),
        applied.fallback_policy.to_string(),
        applied.overlap_weight_percent.to_string(),
    ];
    let good: Pairs = KEYS.iter().map(|&key| key.to_owned()).zip(values).collect();
    Some(Held { seeded: wanted.settings.clone(), last_good: Some(good), ..Held::default() })
}
