//! One prompt of a request on its way to a worker, with its second attempt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_core::ModelFingerprint;
use futures::future::try_join_all;
use tokio::time::timeout_at;

use crate::app::App;
use crate::budget::Held;
use crate::generation::Started;
use crate::metrics::Stage;
use crate::model::Model;
use crate::openai::{Answer, ApiError, Endpoint, Request, Usage};
use crate::prepare::{Prepared, prepare};
use crate::routing::{self, Demand, NoPlan, Rules};
use crate::upstream::{Failure, Upstream};
use crate::workers::{Identity, ReadyWorker};

/// Attempts at a request that has sent nothing yet.
const ATTEMPTS_MAX: u32 = 2;
/// Between the seeds of a batch's prompts: any odd number whose multiples differ in all bits.
const SEED_STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// Refusals of one request by workers that take no new work. Not counted as attempts, since nothing has begun; bounded,
/// since nothing here is without a bound.
const REFUSALS_MAX: u32 = 32;
/// After a failure another worker, or a new life of the same, is waited for this long; then the same is asked again.
const AVOID_FOR: Duration = Duration::from_secs(2);

/// One prompt of a request in progress that has sent nothing to its client yet.
pub(crate) struct Call {
    app: Arc<App>,
    request: Arc<Request>,
    /// The memory of `request`.
    request_held: Arc<Held>,
    /// Which of the request's inputs.
    input: usize,
    /// Random; names the request everywhere.
    id: u128,
    created: u64,
    /// Seed for a request that brings none. The same in every attempt, so that both draw the same tokens.
    seed: u64,
    attempts: u32,
    refusals: u32,
    /// The connection on which the last attempt failed, when, and how.
    failed: Option<(u64, Instant, Failure)>,
    prepared: Option<(ModelFingerprint, u32, Arc<Prepared>)>,
}

/// A worker's answer that has begun, with all that is needed to read it.
pub(crate) struct Open {
    pub upstream: Upstream,
    /// How its prompt was prefilled.
    pub started: Started,
    pub model: Arc<Model>,
    pub prepared: Arc<Prepared>,
    pub decode: Arc<Identity>,
    /// The connection it comes by.
    pub session: u64,
}

/// The ready workers of one generation.
struct Generation {
    model: Arc<Model>,
    decoders: Vec<ReadyWorker>,
    all: Vec<ReadyWorker>,
}

impl Generation {
    /// What every worker of it can take.
    fn max_model_len(&self) -> u32 {
        let of_workers = self.decoders.iter().map(|worker| worker.identity.max_model_len);
        of_workers.min().unwrap_or(self.model.max_model_len).min(self.model.max_model_len)
    }
}

/// What there is to be found.
enum Look {
    Found(Generation),
    /// No ready worker.
    Nothing,
    /// Only the worker that has just failed.
    Avoiding {
        until: Instant,
    },
}

impl Open {
    /// The tokens of the prompt, and so many of output.
    pub(crate) fn usage(&self, completion_tokens: u32) -> Usage {
        let prompt = self.prepared.prompt.token_ids.len() as u32;
        Usage::new(prompt, completion_tokens, self.started.overlap_tokens.min(prompt))
    }
}

impl Call {
    /// A call for each input of `request`, whose memory is `held`. Of `id`, which is random, the upper half serves as seed.
    pub(crate) fn all(app: &Arc<App>, request: Request, held: Held, id: u128, created: u64) -> Vec<Self> {
        let (request, request_held) = (Arc::new(request), Arc::new(held));
        let call = |input| Self {
            app: Arc::clone(app),
            request: Arc::clone(&request),
            request_held: Arc::clone(&request_held),
            input,
            id,
            created,
            // Equal prompts of a batch draw different tokens.
            seed: ((id >> 64) as u64).wrapping_add((input as u64).wrapping_mul(SEED_STRIDE)),
            attempts: 0,
            refusals: 0,
            failed: None,
            prepared: None,
        };
        (0..request.inputs.len()).map(call).collect()
    }

    /// Index of its first choice among those of the whole request.
    pub(crate) fn first_choice(&self) -> u32 {
        self.input as u32 * self.request.n
    }

    /// What all parts of the answer repeat.
    pub(crate) fn answer(&self, model: &Model) -> Answer {
        let prefix = match self.request.endpoint {
            Endpoint::Completions => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        Answer {
            endpoint: self.request.endpoint,
            id: format!("{prefix}-{:032x}", self.id),
            created: self.created,
            model: model.name.clone(),
            system_fingerprint: model.system_fingerprint(),
            include_usage: self.request.include_usage,
        }
    }

    /// Tokenizes and checks the prompt if there is a worker for it, in a turn of the text pool that the caller has. What
    /// there is no worker for is prepared when one has been waited for.
    pub(crate) fn prepare_in_turn(&mut self) -> Result<(), ApiError> {
        if let Look::Found(generation) = self.look()? {
            let max_model_len = generation.max_model_len();
            let held = Held::none(&self.app.budget);
            let model = &generation.model;
            let prepared = prepare(&self.request, self.input, model, max_model_len, self.seed, held)?;
            self.observe(&prepared);
            self.prepared = Some((model.fingerprint, max_model_len, Arc::new(prepared)));
        }
        Ok(())
    }

    /// Makes sure that the prompt of each is tokenized and checked. Before any of several is sent to a worker, so that one
    /// that is refused costs no worker's time for the others.
    pub(crate) async fn check_all(calls: &mut [Self]) -> Result<(), ApiError> {
        let check = async |call: &mut Self| {
            let generation = call.generation().await?;
            call.prepare(&generation).await.map(drop)
        };
        try_join_all(calls.iter_mut().map(check)).await.map(drop)
    }

    /// Finds a worker and waits for its first token, with a second attempt if the first fails.
    pub(crate) async fn open(&mut self) -> Result<Open, ApiError> {
        loop {
            let generation = self.generation().await?;
            let prepared = self.prepare(&generation).await?;
            let choosing = Instant::now();
            let settings = self.app.settings.in_force();
            let strategy = self.app.routing;
            let rules = Rules { strategy, weights: settings.weights(), placement: settings.placement() };
            let demand = Demand {
                fingerprint: generation.model.fingerprint,
                prompt: &prepared.prompt.token_ids,
                cache_salt: &prepared.prompt.cache_salt,
            };
            let overlap = routing::overlap_tokens(&self.app.registry, demand, &generation.all);
            let draw = |pick| self.app.draws.next(strategy, self.id, pick);
            let (decoders, all) = (&generation.decoders, &generation.all);
            let plan = match routing::plan(demand, decoders, all, &overlap, &rules, draw) {
                Ok(plan) => plan,
                Err(NoPlan::Refused(reason)) => {
                    self.app.metrics.placement_refused(reason.as_str());
                    return Err(ApiError::no_prefill(reason.as_str()));
                }
                // A generation has decode workers.
                Err(NoPlan::NoDecodeWorker) => return Err(ApiError::internal("No decode worker to choose.")),
            };
            self.app.metrics.passed(Stage::Choose, choosing.elapsed());
            self.attempts += 1;
            let asking = Instant::now();
            let mut prompt = prepared.prompt.clone();
            prompt.request_id = format!("{:032x}-{}-{}", self.id, self.input, self.attempts);
            let fail = rules.placement.fallback == disagg_core::FallbackPolicy::Fail;
            match Upstream::open(&plan, prompt, rules.placement.max_local_prefill_length, fail).await {
                Ok((started, upstream)) => {
                    self.app.metrics.passed(Stage::Worker, asking.elapsed());
                    self.app.metrics.placed(started.remote, started.reason);
                    let decode = Arc::clone(&plan.decode.identity);
                    self.failed = None;
                    let session = plan.decode.session;
                    let model = generation.model;
                    return Ok(Open { upstream, started, model, prepared, decode, session });
                }
                Err(Failure::Refused(_)) if self.refusals < REFUSALS_MAX => {
                    self.attempts -= 1;
                    self.refusals += 1;
                    plan.decode.worker.refused(plan.decode.session);
                }
                Err(failure) => self.failed_on(plan.decode.session, failure)?,
            }
        }
    }

    /// An attempt has failed before anything was sent to the client. `Ok` if there is to be another.
    pub(crate) fn failed_on(&mut self, session: u64, failure: Failure) -> Result<(), ApiError> {
        tracing::info!(
            request = format!("{:032x}", self.id),
            attempt = self.attempts,
            ?failure,
            "attempt failed"
        );
        if let Failure::Invalid(message) = &failure {
            return Err(ApiError::refused_by_worker(message));
        }
        if self.attempts >= ATTEMPTS_MAX {
            return Err(match failure {
                Failure::Busy => ApiError::workers_busy(),
                Failure::Lost(message) | Failure::Refused(message) | Failure::Invalid(message) => {
                    ApiError::worker_failed(&message)
                }
            });
        }
        self.app.metrics.retried();
        self.failed = Some((session, Instant::now(), failure));
        Ok(())
    }

    /// Chooses among the generations of the model that have a ready decode worker, or waits for one.
    async fn generation(&self) -> Result<Generation, ApiError> {
        let mut changes = self.app.registry.changes();
        let wait_max = self.app.limits.worker_wait_max;
        let give_up = Instant::now() + wait_max;
        loop {
            changes.mark_unchanged();
            let wake = match self.look()? {
                Look::Found(generation) => return Ok(generation),
                Look::Nothing => give_up,
                Look::Avoiding { until } => until.min(give_up),
            };
            if Instant::now() >= give_up {
                let (model, seconds) = (&self.request.model, wait_max.as_secs());
                let mut message =
                    format!("No worker for the model `{model}` became ready within {seconds} seconds");
                if !self.app.ready() {
                    message = format!("{message}: {}", self.app.not_ready_because());
                }
                return Err(ApiError::no_worker(message + "."));
            }
            // Something has changed, or it is time to look again or to give up: the loop finds out which.
            let _ = timeout_at(wake.into(), changes.changed()).await;
        }
    }

    /// The generation to use now, if there is one.
    fn look(&self) -> Result<Look, ApiError> {
        let known = self.app.registry.models();
        let named: Vec<Arc<Model>> =
            known.iter().filter(|model| model.name == self.request.model).cloned().collect();
        if named.is_empty() && !known.is_empty() {
            return Err(ApiError::model_not_found(&self.request.model));
        }
        if !self.app.ready() {
            return Ok(Look::Nothing);
        }
        let all = self.app.registry.ready();
        let decodes = |worker: &&ReadyWorker| {
            worker.identity.role.decodes()
                && named.iter().any(|model| model.fingerprint == worker.identity.fingerprint)
        };
        let mut decoders: Vec<ReadyWorker> = all.iter().filter(decodes).cloned().collect();
        if let Some((session, at, failure)) = &self.failed {
            let others: Vec<ReadyWorker> =
                decoders.iter().filter(|worker| worker.session != *session).cloned().collect();
            if others.is_empty() && *failure == Failure::Busy {
                return Err(ApiError::workers_busy());
            }
            if others.is_empty() && !decoders.is_empty() && at.elapsed() < AVOID_FOR {
                return Ok(Look::Avoiding { until: *at + AVOID_FOR });
            }
            if !others.is_empty() {
                decoders = others;
            }
        }
        if decoders.is_empty() {
            return Ok(Look::Nothing);
        }
        // Each generation gets requests in proportion to its workers.
        let drawn = &decoders[(self.id % decoders.len() as u128) as usize];
        let fingerprint = drawn.identity.fingerprint;
        let model = named.into_iter().find(|model| model.fingerprint == fingerprint);
        decoders.retain(|worker| worker.identity.fingerprint == fingerprint);
        Ok(model.map_or(Look::Nothing, |model| Look::Found(Generation { model, decoders, all })))
    }

    /// The request for this generation; made once, and again only if the generation changed between attempts.
    async fn prepare(&mut self, generation: &Generation) -> Result<Arc<Prepared>, ApiError> {
        let model = &generation.model;
        let max_model_len = generation.max_model_len();
        if let Some((fingerprint, length, prepared)) = &self.prepared
            && *fingerprint == model.fingerprint
            && *length == max_model_len
        {
            return Ok(Arc::clone(prepared));
        }
        // What was made for another generation is given back first.
        self.prepared = None;
        let (request, for_model) = (Arc::clone(&self.request), Arc::clone(model));
        let (input, seed) = (self.input, self.seed);
        let held = Held::none(&self.app.budget);
        let bytes = self.request_held.bytes();
        let waiting = Instant::now();
        let made = self.app.text_pool.run(bytes, move || {
            let waited = waiting.elapsed();
            prepare(&request, input, &for_model, max_model_len, seed, held).map(|prepared| (prepared, waited))
        });
        let (prepared, waited) = made.await??;
        self.app.metrics.passed(Stage::TextQueue, waited);
        self.observe(&prepared);
        let prepared = Arc::new(prepared);
        self.prepared = Some((model.fingerprint, max_model_len, Arc::clone(&prepared)));
        Ok(prepared)
    }

    /// Counts the time that preparing took.
    fn observe(&self, prepared: &Prepared) {
        for (stage, took) in [(Stage::Render, prepared.rendering), (Stage::Tokenize, prepared.tokenizing)] {
            if let Some(took) = took {
                self.app.metrics.passed(stage, took);
            }
        }
    }
}
