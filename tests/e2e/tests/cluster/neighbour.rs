//! An operator for one namespace beside the one that the chart installs for all: each resource has one of them.

use std::time::Duration;

use disagg_e2e::cluster::{Namespace, Operator};
use disagg_e2e::eventually;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use super::serving::CONVERGE;
use super::session::operator;

/// The default of operators: a shorter one is lost, as it should be, when a loaded machine stalls for two thirds of it.
const LEASE: Duration = Duration::from_secs(15);

/// The image of the routers' Deployment, which each of the two operators has another default for.
async fn image(namespace: &Namespace) -> Result<(String, i64), String> {
    let found =
        namespace.api::<Deployment>().get_opt("shared-router").await.map_err(|error| error.to_string())?;
    let found = found.ok_or("no Deployment")?;
    let template = found.spec.and_then(|spec| spec.template.spec).ok_or("no pods")?;
    let image = template.containers[0].image.clone().unwrap_or_default();
    Ok((image, found.metadata.generation.unwrap_or_default()))
}

async fn image_is(namespace: &Namespace, ours: bool) -> i64 {
    let what =
        if ours { "the image of the namespace's operator" } else { "the image of the chart's operator" };
    eventually(what, CONVERGE, async || {
        let (image, generation) = image(namespace).await?;
        if image.contains("not-there") == ours { Ok(generation) } else { Err(image) }
    })
    .await
}

#[tokio::test]
async fn the_operator_of_all_namespaces_leaves_one_to_the_operator_of_that_namespace() {
    let cluster = operator();
    let namespace = Namespace::create(cluster, "e2e-neighbour").await;
    let spec = json!({
        "model": { "source": { "random": {} } }, "prefill": { "replicas": 0 }, "decode": { "replicas": 0 },
        "router": { "replicas": 1, "podTemplate": { "nodeSelector": { "example.com/nowhere": "1" } } },
    });
    namespace.apply("shared", &spec).await;
    image_is(&namespace, false).await;

    let mut own = Operator::of_release(cluster, &namespace, "e2e-neighbour/disagg", LEASE);
    let taken = image_is(&namespace, true).await;
    eventually("an Event of the operator that leaves the resource", CONVERGE, async || {
        let reason = "--field-selector=reason=LeftToAnotherOperator";
        let told = namespace.kubectl(&["get", "events", reason, "--output=jsonpath={.items[*].message}"])?;
        if told.contains("e2e-neighbour/disagg/operator-pod") { Ok(()) } else { Err(told) }
    })
    .await;
    // Both hear of it; one acts. Every change of the resource is one change of the Deployment.
    for round in 1..=3 {
        let mut changed = spec.clone();
        changed["router"]["maxInFlight"] = json!(100 + round);
        namespace.apply("shared", &changed).await;
        eventually("the change, once", CONVERGE, async || {
            let (image, generation) = image(&namespace).await?;
            let as_it_should_be = image.contains("not-there") && generation == taken + round;
            if as_it_should_be { Ok(()) } else { Err(format!("{image}, {generation} after {taken}")) }
        })
        .await;
    }
    assert!(!own.reconciles().await.contains_key("failure"), "{}", own.log());

    // Its operator has ended, and nobody else holds the Lease for as long as it says.
    own.end().await;
    image_is(&namespace, false).await;
}
