//! Networks, servers and disks that fail on the way.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::fake::{Behaviour, FakeHub, Fault};
use crate::{Home, NEEDED, SHARDS, content, model_files, names};

fn faults(faults: impl IntoIterator<Item = Fault>) -> Behaviour {
    Behaviour { faults: faults.into_iter().collect(), ..Behaviour::default() }
}

/// One large file, so that faults hit what they are meant for.
async fn one_large_file() -> FakeHub {
    let mut files = model_files();
    files.retain(|(name, bytes)| bytes.len() < 10_000 && !name.contains("index"));
    files.push(("tokenizer.json", b"{}".to_vec()));
    files.push(("model.safetensors", content(9, 1_000_000)));
    FakeHub::start("org/name", &files).await
}

const WEIGHTS: &str = "model.safetensors";

/// Where the storage was asked to begin.
fn starts(hub: &FakeHub) -> Vec<usize> {
    let stored = hub.seen().into_iter().filter(|request| request.storage);
    let start = |range: String| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok();
    stored.map(|request| request.range.map_or(0, |range| start(range).expect("a start and no end"))).collect()
}

#[tokio::test]
async fn a_cut_connection_is_taken_up_where_it_broke() {
    let hub = one_large_file().await;
    // More cuts than fruitless tries are allowed: each of them brings something.
    hub.behave(faults([100_000; 8].map(Fault::CutAfter)));
    let home = Home::new(&hub);
    let folder = home.fetch("org/name").await.unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), hub.bytes(WEIGHTS));
    assert_eq!(starts(&hub), (0..9).map(|cut| cut * 100_000).collect::<Vec<_>>());
    assert!(home.said().contains("model.safetensors broke off at 800.0 kB"), "{}", home.said());
}

#[tokio::test]
async fn the_next_start_goes_on_from_what_is_there() {
    let hub = one_large_file().await;
    let mut home = Home::new(&hub);
    home.config.silence = Duration::from_mins(1);
    hub.behave(faults([Fault::StallAfter(300_000)]));
    let part = home.blob(&hub.hash(WEIGHTS)).with_extension("incomplete");
    {
        let fetch = home.fetch("org/name");
        tokio::pin!(fetch);
        let has_come = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            while std::fs::metadata(&part).map_or(0, |part| part.len()) < 300_000 {
                ticks.tick().await;
            }
        };
        // Dropped in the middle, as by Ctrl-C.
        tokio::select! {
            ended = &mut fetch => panic!("{ended:?}"),
            () = has_come => {}
        }
    }
    hub.seen();
    let folder = home.fetch("org/name").await.unwrap();
    assert_eq!(starts(&hub), [300_000]);
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), hub.bytes(WEIGHTS));
    assert!(!part.exists());
}

#[tokio::test]
async fn parts_of_earlier_starts_are_checked() {
    let hub = one_large_file().await;
    let whole = hub.bytes(WEIGHTS).to_vec();
    for (name, part, asked) in [
        ("complete, and only not renamed", whole.clone(), vec![]),
        ("garbage", vec![0; 1000], vec![1000, 0]),
        ("complete garbage", vec![0; whole.len()], vec![0]),
        ("too long", vec![0; whole.len() + 1], vec![0]),
    ] {
        let home = Home::new(&hub);
        let blob = home.blob(&hub.hash(WEIGHTS));
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(blob.with_extension("incomplete"), part).unwrap();
        let folder = home.fetch("org/name").await.unwrap();
        assert!(std::fs::read(folder.join(WEIGHTS)).unwrap() == whole, "{name}");
        assert_eq!(starts(&hub), asked, "{name}");
    }
}

#[tokio::test]
async fn what_is_no_file_in_the_cache_is_refused_and_not_waited_for() {
    let hub = one_large_file().await;
    let fifo = |path: &std::path::Path| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let home = Home::new(&hub);
    let part = home.blob(&hub.hash(WEIGHTS)).with_extension("incomplete");
    fifo(&part);
    let error = home.failure("org/name").await;
    assert_eq!(error, format!("{}: is a pipe (FIFO); a regular file is needed", part.display()));

    // Where the commit of a branch is remembered: as good as not there, and written anew.
    std::fs::remove_file(&part).unwrap();
    let reference = part.ancestors().nth(2).unwrap().join("refs/main");
    fifo(&reference);
    home.fetch("org/name").await.unwrap();
    assert!(reference.is_file());
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_sends_all_again() {
    let hub = one_large_file().await;
    hub.behave(Behaviour { ignores_ranges: true, ..faults([Fault::CutAfter(500_000)]) });
    let home = Home::new(&hub);
    let folder = home.fetch("org/name").await.unwrap();
    assert_eq!(starts(&hub), [0, 500_000]);
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), hub.bytes(WEIGHTS));
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let hub = one_large_file().await;
    hub.behave(faults([503, 429, 502].map(Fault::Refuse)));
    let home = Home::new(&hub);
    home.fetch("org/name").await.unwrap();
    assert!(home.said().contains("answers 503 Service Unavailable"), "{}", home.said());
}

#[tokio::test]
async fn silence_has_an_end() {
    let hub = one_large_file().await;
    hub.behave(Behaviour { always_stalls: true, ..Behaviour::default() });
    let home = Home::new(&hub);
    let begun = Instant::now();
    let error = home.failure("org/name").await;
    // Five tries of 0.3 s of silence each, and the waits between them.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(starts(&hub).len(), 5);
    assert!(error.starts_with("downloading model.safetensors of org/name: "), "{error}");
    assert!(error.contains("timed out") && error.ends_with("goes on from there"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said() {
    let hub = one_large_file().await;
    let mut home = Home::new(&hub);
    home.config.endpoint = "http://127.0.0.1:9".to_owned();
    let error = home.failure("org/name").await;
    assert!(
        error.starts_with("asking http://127.0.0.1:9 for org/name: ") && error.contains("refused"),
        "{error}"
    );
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    home.config.endpoint = format!("http://{}", silent.local_addr().unwrap());
    let error = home.failure("org/name").await;
    assert!(error.contains("timed out"), "{error}");
}

#[tokio::test]
async fn bytes_that_were_not_announced_are_thrown_away() {
    for (behaviour, message) in [
        (
            Behaviour { one_byte_less: true, ..Behaviour::default() },
            "model.safetensors of org/name: the server sends 999999 bytes, and the hub announced 1000000",
        ),
        (
            Behaviour { wrong_byte: true, ..Behaviour::default() },
            "model.safetensors of org/name: its hash is ",
        ),
    ] {
        let hub = one_large_file().await;
        hub.behave(behaviour);
        let home = Home::new(&hub);
        let error = home.failure("org/name").await;
        assert!(error.starts_with(message) && error.ends_with("It has been thrown away"), "{error}");
        let blob = home.blob(&hub.hash(WEIGHTS));
        assert!(!blob.exists() && !blob.with_extension("incomplete").exists());
        // The server is repaired; nothing of the bad file is in the way.
        hub.behave(Behaviour::default());
        home.fetch("org/name").await.unwrap();
    }
}

/// `disagg-worker` for `org/name` of `hub`, with a file system of its own of `size` mounted at `at`; `None` where the machine
/// does not let us mount one.
#[allow(clippy::print_stderr, reason = "why a test is skipped")]
fn worker_beside_a_mount(hub: &FakeHub, home: &Path, at: &Path, size: &str) -> Option<Command> {
    let mount = format!("mount -t tmpfs -o size={size} tmpfs {}", at.display());
    let unshared = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command
    };
    let allowed = unshared(&mount).output();
    if !allowed.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this machine does not let us mount a file system of our own: {allowed:?}");
        return None;
    }
    let worker = env!("CARGO_BIN_EXE_disagg-worker");
    let mut command = unshared(&format!("{mount} && exec {worker} --model org/name --device cpu"));
    command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", home).env_remove("HF_HUB_CACHE");
    Some(command)
}

/// What the kernel says of a full disk, in the middle of a download: one file lies in a file system that is too small.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_is_said() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    let home = Home::new(&hub);
    let part = home.blob(&hub.hash(SHARDS[0])).with_extension("incomplete");
    let full = part.parent().unwrap().parent().unwrap().join("full");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::create_dir(&full).unwrap();
    symlink(full.join("part"), &part).unwrap();
    let Some(mut command) = worker_beside_a_mount(&hub, home.path(), &full, "16k") else { return };
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("no space for org/name in ") && log.contains("HF_HOME"), "{log}");
    // With room again the rest comes.
    std::fs::remove_file(&part).unwrap();
    assert_eq!(names(&home.fetch("org/name").await.unwrap()), NEEDED);
}

/// A disk that is too small is noticed before anything is downloaded. It needs a file system of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_too_small_is_said_before() {
    let hub = FakeHub::start("org/name", &model_files()).await;
    let home = tempfile::tempdir().unwrap();
    let Some(mut command) = worker_beside_a_mount(&hub, home.path(), home.path(), "1m") else { return };
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("no space for org/name in ") && log.contains("5.0 MB more are needed, "), "{log}");
    assert!(hub.seen().iter().all(|request| !request.path.contains("0000")), "no weights were asked for");
}
