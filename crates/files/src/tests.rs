use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use super::*;

/// Gives the result of `work`, or fails when it hangs.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("it does not hang")
}

fn refused(path: &Path) -> String {
    let path = path.to_owned();
    in_time(move || read(&path, 1000)).expect_err("refused").to_string()
}

#[test]
fn what_is_no_file_is_refused_by_name_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let _socket = UnixListener::bind(at("socket")).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    symlink("/dev/zero", at("endless")).unwrap();
    symlink("fifo", at("link")).unwrap();
    for (name, kind) in [
        ("fifo", "is a pipe (FIFO)"),
        ("link", "is a pipe (FIFO)"),
        ("socket", "is a socket"),
        ("folder", "is a folder"),
        ("endless", "is a device"),
    ] {
        let error = refused(&at(name));
        assert_eq!(error, format!("{}: {kind}; a regular file is needed", at(name).display()));
    }
    assert!(refused(&at("absent")).contains("absent: No such file"));
}

#[test]
fn what_takes_its_place_after_the_look_is_refused_too() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let opened = in_time(move || open_with(&fifo, File::options().read(true)).map(|_| ()));
    assert!(matches!(opened, Err(FileError::NotAFile { .. })), "{opened:?}");
}

#[test]
fn a_file_is_read_up_to_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings");
    std::fs::write(&path, "12345").unwrap();
    symlink("settings", folder.path().join("link")).unwrap();
    assert_eq!(read(&folder.path().join("link"), 5).unwrap(), b"12345");
    let error = read(&path, 4).unwrap_err().to_string();
    assert_eq!(error, format!("{}: has more than the 4 bytes that are accepted", path.display()));
    // A file without blocks on the disk, larger than any memory.
    let huge = File::create(folder.path().join("huge")).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert!(refused(&folder.path().join("huge")).contains("more than the 1000 bytes"));
    std::fs::write(&path, [0xff]).unwrap();
    assert!(matches!(read_text(&path, 5), Err(FileError::NotText { .. })));
}

#[test]
fn a_file_that_tells_no_size_is_bounded_as_it_is_read() {
    // Files of /proc have the size 0 and bytes all the same.
    let error = in_time(|| read(Path::new("/proc/self/status"), 10)).unwrap_err();
    assert!(matches!(error, FileError::TooLarge { limit: 10, .. }), "{error}");
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_written_file_is_whole_and_an_error_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep").join("settings.yaml");
    write(&path, b"old").unwrap();
    write(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    // A folder stands where the file is to go, so that the last step fails.
    let taken = folder.path().join("deep").join("taken");
    std::fs::create_dir_all(taken.join("full")).unwrap();
    write(&taken, b"new").unwrap_err();
    assert_eq!(names(path.parent().unwrap()), ["settings.yaml", "taken"]);
}

#[test]
fn leftovers_of_killed_processes_are_removed_when_they_are_old() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let old = SystemTime::now() - Duration::from_hours(2);
    let age = |name: &str| File::open(at(name)).unwrap().set_modified(old).unwrap();
    std::fs::create_dir(at("model.tmp-1")).unwrap();
    std::fs::write(at("model.tmp-1").join("config.json"), "{}").unwrap();
    std::fs::write(at("model.tmp-2"), "").unwrap();
    for name in ["model.tmp-1", "model.tmp-2"] {
        age(name);
    }
    // Of a process that may be writing now; and what others have put there.
    std::fs::create_dir(at("model.tmp-3")).unwrap();
    for name in ["model", "my-model.tmp-1", "models.tmp-1"] {
        std::fs::create_dir(at(name)).unwrap();
        age(name);
    }
    let temporary = temporary_folder(folder.path(), "model").unwrap();
    let ours = temporary.path().file_name().unwrap().to_str().unwrap().to_owned();
    let mut wanted = ["model", "model.tmp-3", "models.tmp-1", "my-model.tmp-1", &ours].map(ToOwned::to_owned);
    wanted.sort();
    assert_eq!(names(folder.path()), wanted);
    drop(temporary);
    assert!(!at(&ours).exists());
}

#[test]
fn a_private_folder_is_ours_alone_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("private");
    private_folder(&path, "SOME_CACHE").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    private_folder(&path, "SOME_CACHE").unwrap();

    for mode in [0o770, 0o705, 0o755] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = private_folder(&path, "SOME_CACHE").unwrap_err().to_string();
        assert!(error.contains("private: can be entered by other users"), "{error}");
        assert!(error.contains("name another folder with SOME_CACHE"), "{error}");
    }
    let link = folder.path().join("link");
    symlink(folder.path(), &link).unwrap();
    assert!(private_folder(&link, "SOME_CACHE").unwrap_err().to_string().contains("is no folder"));
}

/// As root, who may give folders away.
#[test]
fn a_private_folder_of_another_user_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("private");
    private_folder(&path, "SOME_CACHE").unwrap();
    match std::os::unix::fs::chown(&path, Some(12_345), None) {
        Ok(()) => {
            let error = private_folder(&path, "SOME_CACHE").unwrap_err().to_string();
            assert!(error.contains("belongs to another user"), "{error}");
        }
        // Somebody else's folder that everybody has: root's, which we cannot write to.
        Err(_) => {
            private_folder(Path::new("/root"), "SOME_CACHE").unwrap_err();
        }
    }
}
