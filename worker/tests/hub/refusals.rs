//! What the hub refuses, and what we refuse of what it has: one message that says what to do.

use serde_json::json;

use crate::fake::{Behaviour, FakeHub};
use crate::{Home, content, model_files};

fn gated() -> Behaviour {
    Behaviour { gated: Some("hf_good".to_owned()), ..Behaviour::default() }
}

#[tokio::test]
async fn a_gated_model_tells_which_licence_and_which_token() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    hub.behave(gated());
    for (home, token) in [
        (Home::new(&hub), "none is set now"),
        (Home::with_token(&hub, "hf_other"), "the one of HF_TOKEN was sent"),
    ] {
        let error = home.failure("org/name").await;
        let expected = format!(
            "org/name is gated: accept its licence at {}/org/name, then set HF_TOKEN (or HF_TOKEN_PATH) to a token of \
             that account ({token}). The hub says: Access to model org/name is restricted and you are not in the \
             authorized list.",
            hub.url
        );
        assert_eq!(error, expected);
        assert!(!error.contains("hf_other"), "tokens are secrets");
    }
    Home::with_token(&hub, "hf_good").fetch("org/name").await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    for home in [Home::new(&hub), Home::with_token(&hub, "hf_x")] {
        let error = home.failure("org/other").await;
        let expected =
            format!("org/other: there is no such model on {}, or it is private; for a private one", hub.url);
        assert!(error.starts_with(&expected) && error.contains("HF_TOKEN"), "{error}");
        assert!(error.ends_with("A folder of this name is not here either"), "{error}");
    }
    let error = Home::new(&hub).failure("org/name@v9").await;
    assert_eq!(error, format!("org/name: {} has no revision \"v9\" of it", hub.url));
}

#[tokio::test]
async fn what_is_no_hub_is_said() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    hub.behave(Behaviour { is_a_web_site: true, ..Behaviour::default() });
    let error = Home::new(&hub).failure("org/name").await;
    assert!(
        error.contains("is no list of a model's files") && error.ends_with("a Hugging Face hub?"),
        "{error}"
    );
}

#[tokio::test]
async fn a_model_that_cannot_be_served_costs_no_download() {
    let mut files = model_files();
    let config = files.iter_mut().find(|(name, _)| *name == "config.json").unwrap();
    config.1 = json!({"architectures": ["MambaForCausalLM"]}).to_string().into_bytes();
    let hub = FakeHub::start("org/name", &files).await;
    let error = Home::new(&hub).failure("org/name").await;
    assert!(
        error.starts_with("org/name: ") && error.contains("config.json: architectures: \"MambaForCausalLM\""),
        "{error}"
    );
    let files = hub.seen().iter().filter(|request| !request.path.ends_with("config.json")).count();
    assert_eq!(files, 1, "the list and the config");
}

#[tokio::test]
async fn what_a_model_lacks_is_named() {
    for (lacking, wanted) in [
        ("config.json", "org/name: it has no config.json"),
        ("tokenizer.json", "org/name: it has no tokenizer.json"),
        (
            "model.safetensors.index.json",
            "org/name: it has neither model.safetensors nor model.safetensors.index.json, but \
             model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, pytorch_model.bin; weights have to \
             be safetensors",
        ),
        ("model-00002-of-00002.safetensors", "org/name: it has no model-00002-of-00002.safetensors"),
    ] {
        let mut files = model_files();
        files.retain(|(name, _)| *name != lacking);
        let hub = FakeHub::start("org/name", &files).await;
        assert_eq!(Home::new(&hub).failure("org/name").await, wanted);
    }
    // A hash or a name is part of a path in the cache.
    let mut files = model_files();
    let index = files.iter_mut().find(|(name, _)| name.contains("index")).unwrap();
    index.1 = json!({"weight_map": {"a": "../../../x"}}).to_string().into_bytes();
    files.push(("../../../x", content(1, 10)));
    let hub = FakeHub::start("org/name", &files).await;
    let error = Home::new(&hub).failure("org/name").await;
    assert!(error.contains("\"../../../x\" is not a file name"), "{error}");
}
