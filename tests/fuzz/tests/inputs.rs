//! Each target with every file of its corpus, and with random changes of these: DISAGG_FUZZ_INPUTS of each file
//! (default 300; `make fuzz` takes many more). The changes are the same in every run.

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let value = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((value ^ value >> 31) % below.max(1) as u64) as usize
    }
}

/// What parsers stumble over.
const PIECES: [&[u8]; 18] = [
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"99999999999999999999",
    b"\"\"",
    b"{}",
    b"[]",
    b"[[[[[[[[",
    b"{\"a\":",
    b"\\ud800",
    b"\xff\xfe",
    b"\0",
    b"\n",
    b"&a *a",
    b"{{ ",
    b"%}",
];

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(16)).min(bytes.len());
    match random.below(6) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
        3 => drop(bytes.splice(at..end, PIECES[random.below(PIECES.len())].iter().copied())),
        4 => {
            let from = random.below(other.len() + 1);
            let to = (from + random.below(64)).min(other.len());
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        _ => bytes.truncate(at),
    }
}

fn run(name: &str) {
    let target = disagg_fuzz::target(name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let changes = std::env::var("DISAGG_FUZZ_INPUTS").map_or(300, |text| text.parse().unwrap());
    let try_one = |bytes: &[u8]| {
        let outcome = catch_unwind(AssertUnwindSafe(|| target(bytes)));
        let shown = bytes.escape_ascii();
        assert!(outcome.is_ok(), "{name} fails with the input \"{shown}\"; put it into its corpus");
    };
    let mut random = Random(1);
    for file in &files {
        try_one(file);
        for _ in 0..changes {
            let mut bytes = file.clone();
            for _ in 0..=random.below(4) {
                let other = &files[random.below(files.len())];
                change(&mut bytes, other, &mut random);
            }
            try_one(&bytes);
        }
    }
}

/// A test for each target, and one that none is missing.
macro_rules! tests {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                run(stringify!($target));
            }
        )*

        #[test]
        fn every_target_has_a_test() {
            assert_eq!(disagg_fuzz::TARGETS.map(|(name, _)| name), [$(stringify!($target)),*]);
        }
    };
}

tests!(http_body custom_resource settings model_config tokenizer chat_template protobuf);
