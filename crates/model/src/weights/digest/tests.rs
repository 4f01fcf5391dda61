//! Hashing of weights, and when it is not done again.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;

/// Several reads long.
const BYTES: usize = 2 * READ_BYTES + 12_345;

fn write(path: &Path, seed: u8) {
    let bytes: Vec<u8> = (0..BYTES).map(|i| (i.wrapping_mul(31) >> 7) as u8 ^ seed).collect();
    std::fs::write(path, bytes).unwrap();
}

fn digest(paths: &[&Path], cache: Option<&DigestCache>) -> u128 {
    let file = |path: &&Path| WeightFile {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        path: path.to_path_buf(),
        file: File::open(path).unwrap(),
    };
    WeightsDigest::start(paths.iter().map(file).collect(), cache).unwrap().finish().unwrap()
}

/// Flips a bit, and nothing else.
fn flip(path: &Path, offset: u64) {
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

/// A cache that takes files as they are, however new.
fn cache(folder: &Path) -> DigestCache {
    DigestCache::at(folder.join("cache"), Duration::ZERO)
}

#[test]
fn every_byte_counts_and_so_do_names_and_order() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    write(&one, 1);
    write(&two, 2);
    let whole = digest(&[&one, &two], None);
    assert_eq!(digest(&[&one, &two], None), whole);
    assert_ne!(digest(&[&two, &one], None), whole);
    assert_ne!(digest(&[&one], None), whole);
    for offset in [0, 1, READ_BYTES as u64 - 1, READ_BYTES as u64, BYTES as u64 / 3, BYTES as u64 - 1] {
        flip(&two, offset);
        assert_ne!(digest(&[&one, &two], None), whole, "byte {offset}");
        flip(&two, offset);
    }
    assert_eq!(digest(&[&one, &two], None), whole);
    let other = folder.path().join("other");
    std::fs::rename(&two, &other).unwrap();
    assert_ne!(digest(&[&one, &other], None), whole, "another name");
}

/// The entry is made to lie: whoever believes it has not read the file.
#[test]
fn a_known_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cache) = (folder.path().join("w"), cache(folder.path()));
    write(&path, 1);
    let truth = digest(&[&path], Some(&cache));
    assert_eq!(digest(&[&path], Some(&cache)), truth);
    let stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
    cache.put(&path, &stamp, 7).unwrap();
    assert_ne!(digest(&[&path], Some(&cache)), truth, "the cache was not asked");
    assert_eq!(digest(&[&path], None), truth);
}

#[test]
fn a_changed_file_is_hashed_again_whatever_its_size_and_times_say() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cache) = (folder.path().join("w"), cache(folder.path()));
    write(&path, 1);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let set_time = |time| File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    set_time(long_ago);
    let before = digest(&[&path], Some(&cache));

    // As an editor does it: the same size, another time.
    flip(&path, 7_000_000);
    let after = digest(&[&path], Some(&cache));
    assert_ne!(after, before);
    assert_eq!(after, digest(&[&path], None));

    // As `cp -p` and `rsync -t` do it: the same size, and the time of before.
    flip(&path, 7_000_001);
    set_time(long_ago);
    let back = digest(&[&path], Some(&cache));
    assert_ne!(back, after);
    assert_eq!(back, digest(&[&path], None));
}

/// Within one tick of the file system's clock a change leaves no trace.
#[test]
fn what_was_written_just_now_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    write(&path, 1);
    let hour = DigestCache::at(folder.path().join("cache"), Duration::from_hours(1));
    digest(&[&path], Some(&hour));
    assert!(!folder.path().join("cache").exists());
}

#[test]
fn without_a_cache_that_can_be_used_everything_is_hashed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    write(&path, 1);
    let truth = digest(&[&path], None);
    // No folder can be made below a file.
    let nowhere = DigestCache::at(path.join("cache"), Duration::ZERO);
    assert_eq!(digest(&[&path], Some(&nowhere)), truth);

    let cache = cache(folder.path());
    digest(&[&path], Some(&cache));
    let entry = std::fs::read_dir(folder.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    for broken in [b"{".to_vec(), b"{}".to_vec(), vec![b' '; 1 << 20]] {
        std::fs::write(&entry, broken).unwrap();
        assert_eq!(digest(&[&path], Some(&cache)), truth);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    write(&path, 1);
    // A descriptor for writing alone.
    let file = File::options().write(true).open(&path).unwrap();
    let file = WeightFile { name: "w".into(), path: path.clone(), file };
    let error = WeightsDigest::start(vec![file], None).unwrap().finish().unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
}
