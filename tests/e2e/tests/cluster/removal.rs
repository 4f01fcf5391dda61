//! Several deployments side by side, and what is left when they go.

use disagg_e2e::cluster::Namespace;
use disagg_e2e::eventually;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};
use serde_json::json;

use crate::serving::{CONVERGE, chat, part, spec};
use crate::session::operator;

/// Objects of every kind in the namespace that belong to the deployment, by label or by owner, as `kind/name`.
async fn belongings(namespace: &Namespace, kinds: &[ApiResource], deployment: &str) -> Vec<String> {
    let mut found = Vec::new();
    for kind in kinds {
        let api: Api<DynamicObject> =
            Api::namespaced_with(namespace.client().clone(), namespace.name(), kind);
        let list = match api.list(&ListParams::default()).await {
            Ok(list) => list,
            // Some kinds only exist to be created.
            Err(kube::Error::Api(status)) if status.code == 405 || status.code == 404 => continue,
            Err(error) => panic!("list {}: {error}", kind.plural),
        };
        for object in list {
            let metadata = &object.metadata;
            let labelled = metadata.labels.as_ref().is_some_and(|labels| {
                labels.get("disagg.dev/deployment").is_some_and(|value| value == deployment)
            });
            let owners = metadata.owner_references.iter().flatten();
            let owned =
                owners.into_iter().any(|owner| owner.kind == "DisaggDeployment" && owner.name == deployment);
            if labelled || owned {
                found.push(format!("{}/{}", kind.kind, metadata.name.as_deref().unwrap_or_default()));
            }
        }
    }
    found
}

/// Every kind that lives in namespaces and can be listed, but for Events.
async fn kinds(namespace: &Namespace) -> Vec<ApiResource> {
    let discovery = Discovery::new(namespace.client().clone()).run().await.expect("the kinds there are");
    let groups = discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
    let listed = groups.filter(|(kind, capabilities)| {
        capabilities.scope == Scope::Namespaced
            && capabilities.supports_operation(verbs::LIST)
            && kind.kind != "Event"
    });
    listed.map(|(kind, _)| kind).collect()
}

#[tokio::test]
async fn deployments_live_side_by_side_and_leave_nothing() {
    let here = Namespace::create(operator(), "e2e-side-a").await;
    let there = Namespace::create(operator(), "e2e-side-b").await;
    let mut other_model = spec(1, 1);
    other_model["model"]["source"]["random"]["seed"] = json!(5);
    other_model["router"]["replicas"] = json!(1);
    let mut plain = spec(1, 1);
    plain["router"]["replicas"] = json!(1);
    // The same name in two namespaces; and a name that begins like another.
    here.apply("one", &plain).await;
    here.apply("one-more", &other_model).await;
    there.apply("one", &plain).await;
    for (namespace, name) in [(&here, "one"), (&here, "one-more"), (&there, "one")] {
        namespace.condition(name, "Ready", "True", CONVERGE).await;
    }
    let one = chat(&here, "one", 400).await;
    let more = chat(&here, "one-more", 400).await;
    let elsewhere = chat(&there, "one", 400).await;
    assert_eq!(one.text, elsewhere.text, "the same model twice");
    assert_ne!(one.text, more.text, "another model");
    assert!(one.placement.remote && more.placement.remote && elsewhere.placement.remote);

    let kinds = kinds(&here).await;
    assert!(belongings(&here, &kinds, "one").await.len() > 8, "the search finds what there is");
    let before = here.ready_pods(&part("one-more", "decode"), 1, CONVERGE).await;
    here.deployments().delete("one", &DeleteParams::default()).await.expect("a deletion");
    eventually("nothing of the deployment to be left", CONVERGE, async || {
        let left = belongings(&here, &kinds, "one").await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    // The others do not notice.
    let after = here.ready_pods(&part("one-more", "decode"), 1, CONVERGE).await;
    assert_eq!(before[0].metadata.uid, after[0].metadata.uid);
    assert_eq!(chat(&here, "one-more", 400).await.text, more.text);
    assert_eq!(chat(&there, "one", 400).await.text, elsewhere.text);

    // A namespace goes as it is, with a live deployment in it.
    tokio::join!(here.delete(), there.delete());
}
