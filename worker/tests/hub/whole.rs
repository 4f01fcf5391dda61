//! Downloads that succeed.

use disagg_worker::model::LoadFormat;

use crate::fake::{COMMIT, FakeHub};
use crate::{Home, NEEDED, SHARDS, model_files, names};

#[tokio::test]
async fn what_a_worker_needs_is_fetched_and_nothing_else() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    let home = Home::with_token(&hub, "hf_secret");
    let folder = home.fetch("org/name").await.unwrap();
    assert_eq!(folder, home.config.cache.join("models--org--name/snapshots").join(COMMIT));
    assert_eq!(names(&folder), NEEDED);
    for name in NEEDED {
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), hub.bytes(name), "{name}");
        // As huggingface_hub has it: a link to a blob of the content's hash.
        let link = std::fs::read_link(folder.join(name)).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("../../blobs/{}", hub.hash(name)));
    }
    let reference = home.config.cache.join("models--org--name/refs/main");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), COMMIT);
    assert_eq!(
        names(&home.config.cache.join("models--org--name/blobs")).len(),
        NEEDED.len(),
        "no parts left"
    );

    let seen = hub.seen();
    for request in &seen {
        let secret = (!request.storage).then_some("Bearer hf_secret");
        assert_eq!(request.authorization.as_deref(), secret, "the token is for the hub alone: {request:?}");
        assert!(!request.path.contains("README") && !request.path.contains("pytorch"), "{request:?}");
    }
    let stored: Vec<&str> =
        seen.iter().filter(|request| request.storage).map(|request| request.path.as_str()).collect();
    assert_eq!(stored.len(), 3, "each large file once: {stored:?}");
    assert!(
        home.said().contains("downloading org/name: ") && home.said().ends_with("are there"),
        "{}",
        home.said()
    );
}

#[tokio::test]
async fn what_is_cached_is_asked_for_once_and_served_offline() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    let mut home = Home::new(&hub);
    let folder = home.fetch("org/name").await.unwrap();
    hub.seen();

    assert_eq!(home.fetch("org/name").await.unwrap(), folder);
    let paths: Vec<String> = hub.seen().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/models/org/name/revision/main"], "only what main is now");
    // A commit stays what it is.
    assert_eq!(home.fetch(&format!("org/name@{COMMIT}")).await.unwrap(), folder);
    assert_eq!(hub.seen(), []);

    home.config.offline = true;
    assert_eq!(home.fetch("org/name").await.unwrap(), folder);
    assert_eq!(hub.seen(), []);
    let error = home.failure("org/name@v2").await;
    assert!(error.contains("org/name@v2 is not complete in") && error.contains("HF_HUB_OFFLINE"), "{error}");
    std::fs::remove_file(home.blob(&hub.hash(SHARDS[1]))).unwrap();
    let error = home.failure("org/name").await;
    assert!(error.contains("org/name is not complete in"), "a shard is gone: {error}");
}

#[tokio::test]
async fn without_a_hub_the_cache_is_used_and_that_is_said() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    let mut home = Home::new(&hub);
    let folder = home.fetch("org/name").await.unwrap();
    home.config.endpoint = "http://127.0.0.1:9".to_owned();
    assert_eq!(home.fetch("org/name").await.unwrap(), folder);
    assert!(home.said().contains("Using org/name as it is in the cache"), "{}", home.said());
}

#[tokio::test]
async fn dummy_weights_need_no_weights() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    let home = Home::new(&hub);
    let folder = home.fetch_as("org/name", LoadFormat::Dummy).await.unwrap();
    assert!(folder.join("tokenizer.json").is_file() && !folder.join(SHARDS[0]).exists());
    assert!(hub.seen().iter().all(|request| !request.path.contains("safetensors")));
    // What is there then is not all that real weights need.
    home.fetch("org/name").await.unwrap();
    assert_eq!(names(&folder), NEEDED);
}

#[tokio::test]
async fn one_file_of_weights_goes_before_several() {
    let mut files = model_files();
    files.push(("model.safetensors", vec![7; 50_000]));
    let hub = FakeHub::start("org/name", &files).await;
    let home = Home::new(&hub);
    let folder = home.fetch("org/name").await.unwrap();
    assert!(folder.join("model.safetensors").is_file() && !folder.join(SHARDS[0]).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_download_once() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    let home = Home::new(&hub);
    let (one, two) = tokio::join!(home.fetch("org/name"), home.fetch("org/name"));
    assert_eq!(names(&one.unwrap()), NEEDED);
    assert_eq!(names(&two.unwrap()), NEEDED);
    let stored = hub.seen().into_iter().filter(|request| request.storage).count();
    assert_eq!(stored, 3, "each large file once");
}
