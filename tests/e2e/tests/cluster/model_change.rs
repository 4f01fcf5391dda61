//! Another model under load: served throughout, and every answer is the one or the other model's.

use std::collections::BTreeSet;

use disagg_e2e::cluster::{Load, Namespace};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::serving::{CONVERGE, load_image, load_plan, part, spec};
use crate::session::operator;

#[tokio::test]
async fn a_model_is_changed_under_load() {
    let namespace = Namespace::create(operator(), "e2e-model").await;
    namespace.apply("change", &spec(1, 2)).await;
    namespace.condition("change", "Ready", "True", CONVERGE).await;
    let plan = load_plan("change", 4);
    let load = Load::start(&namespace, "load", &load_image(), &plan).await;
    let old: BTreeSet<_> =
        namespace.pods(&part("change", "decode")).await.iter().map(|pod| pod.metadata.uid.clone()).collect();

    let other = json!({"spec": {"model": {"source": {"random": {"seed": 1}}}}});
    namespace
        .deployments()
        .patch("change", &PatchParams::default(), &Patch::Merge(other))
        .await
        .expect("a patch");
    disagg_e2e::eventually("both decode workers to be others", CONVERGE, async || {
        let now = namespace.pods(&part("change", "decode")).await;
        let left = now.iter().filter(|pod| old.contains(&pod.metadata.uid)).count();
        if left == 0 && now.len() == 2 { Ok(()) } else { Err(format!("{left} old of {}", now.len())) }
    })
    .await;
    namespace.condition("change", "Ready", "True", CONVERGE).await;
    load.more(plan.prompt_tokens.len() * 4).await;
    let report = load.stop().await;

    report.assert_none_failed();
    // Every prompt travels with the fingerprint of the model that its tokens are for, and a worker of another model
    // refuses it, as prefill and as decode worker. KV of one model under the weights of the other would be a second
    // answer here.
    let models = report.assert_answers_right();
    assert_eq!(models.len(), 2, "the old model and the new one: {models:?}");
    let answers = report.answers();
    for prompt in 0..plan.prompt_tokens.len() {
        let [old, new] = [models[0], models[1]].map(|model| &answers[&(prompt, model)]);
        assert_ne!(old, new, "the models can be told apart by prompt {prompt}");
    }
    let last = report.requests.iter().rev().take(plan.prompt_tokens.len());
    assert!(
        last.into_iter().all(|request| request.fingerprint.as_deref() == Some(models[1])),
        "the new one stays"
    );
    let (worst, median) = report.first_token_ms();
    eprintln!(
        "model change: {} requests; first token: median {median:.0} ms, at worst {:.0} ms more",
        report.requests.len(),
        worst - median,
    );
}
