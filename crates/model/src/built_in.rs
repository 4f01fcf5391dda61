//! Models that need no files of the user: the demo model that is part of the executable, and random ones.
//!
//! Each is written into a folder when it is first used, and read from there like any other model.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use disagg_files as file;
use xxhash_rust::xxh3::Xxh3;

use crate::error::ModelError;
use crate::tiny;

/// Name of the demo model.
pub const DEMO_NAME: &str = "disagg-tiny";

/// Raise it when [`tiny::write`] writes other files for the same seed.
const RANDOM_REVISION: u32 = 1;

/// A file of the demo model.
macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../models/disagg-tiny/", $name)))
    };
}

/// Names and contents of all files of the demo model.
const DEMO_FILES: [(&str, &[u8]); 7] = [
    file!("config.json"),
    file!("generation_config.json"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
    file!("special_tokens_map.json"),
    file!("chat_template.jinja"),
    file!("model.safetensors"),
];

/// A model that needs no files. Written and read as `bundled`, `random` or `random:SEED`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BuiltIn {
    /// The demo model, disagg-tiny.
    Demo,
    /// A small model with random weights; equal seeds, equal weights.
    Random {
        /// The seed.
        seed: u64,
    },
}

/// A folder with a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The folder. A model with other contents has another one.
    pub path: PathBuf,
    /// It has just been written.
    pub new: bool,
}

impl BuiltIn {
    /// The model of this name, if there is one.
    pub fn named(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "bundled" => Some(Self::Demo),
            None if text == "random" => Some(Self::Random { seed: 0 }),
            Some(("random", seed)) => seed.parse().ok().map(|seed| Self::Random { seed }),
            _ => None,
        }
    }

    /// The folder of the model below `cache`. It appears there whole or not at all, so that several processes may
    /// start at the same time and one that is interrupted does no harm. A folder of its name whose files are others,
    /// because a disk was full or somebody has written to it, is replaced. Blocks.
    pub fn write(self, cache: &Path) -> Result<Written, ModelError> {
        let files: Vec<(&str, Cow<'static, [u8]>)> = match self {
            Self::Demo => DEMO_FILES.iter().map(|(name, content)| (*name, (*content).into())).collect(),
            Self::Random { seed } => {
                tiny::files(seed)?.into_iter().map(|(name, content)| (name, content.into())).collect()
            }
        };
        let name = match self {
            Self::Demo => format!("{DEMO_NAME}-{:016x}", digest(&DEMO_FILES)),
            Self::Random { seed } => {
                format!("random-{}-r{RANDOM_REVISION}-seed{seed}", env!("CARGO_PKG_VERSION"))
            }
        };
        let path = cache.join(&name);
        if holds(&path, &files) {
            return Ok(Written { path, new: false });
        }
        let temporary = file::temporary_folder(cache, &name)?;
        let new = temporary.path().join("new");
        tiny::write_files(&new, &files)?;
        // Fails if another process was quicker, or other files are there.
        if std::fs::rename(&new, &path).is_err() && !holds(&path, &files) {
            // Removed with the temporary folder.
            let _ = std::fs::rename(&path, temporary.path().join("old"));
            if let Err(error) = std::fs::rename(&new, &path)
                && !holds(&path, &files)
            {
                return Err(ModelError::io(&path)(error));
            }
        }
        Ok(Written { path, new: true })
    }
}

/// Whether the folder has these files, byte for byte, and nothing else.
fn holds(folder: &Path, files: &[(&str, Cow<'_, [u8]>)]) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    // One more is enough to tell.
    entries.take(files.len() + 1).count() == files.len()
        && files.iter().all(|(name, content)| {
            let there = file::read(&folder.join(name), content.len() as u64);
            there.is_ok_and(|there| there == **content)
        })
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.write_str("bundled"),
            Self::Random { seed } => write!(f, "random:{seed}"),
        }
    }
}

/// Where a worker writes them: `disagg/models` in `XDG_CACHE_HOME` or `~/.cache`, or else in a folder of this user's own
/// among the temporary files, where others could have put something under any name.
pub fn default_cache() -> Result<PathBuf, ModelError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    match base {
        Some(base) => Ok(base.join("disagg").join("models")),
        None => private_cache(&std::env::temp_dir()),
    }
}

/// A folder below `temporary` that nobody else can write to.
fn private_cache(temporary: &Path) -> Result<PathBuf, ModelError> {
    let folder = temporary.join("disagg");
    file::private_folder(&folder, "XDG_CACHE_HOME")?;
    Ok(folder.join("models"))
}

/// Of names and contents.
fn digest(files: &[(&str, &[u8])]) -> u64 {
    let mut hasher = Xxh3::new();
    for (name, content) in files {
        for part in [name.as_bytes(), content] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Family, ModelSource, OpenModel};

    #[test]
    fn each_is_written_once_and_whole() {
        let cache = tempfile::tempdir().unwrap();
        let models = [BuiltIn::Demo, BuiltIn::Random { seed: 7 }, BuiltIn::Random { seed: 8 }];
        for model in models {
            let first = model.write(cache.path()).unwrap();
            assert!(first.new, "{model}");
            assert_eq!(model.write(cache.path()).unwrap(), Written { path: first.path, new: false });
        }
        let entries: Vec<_> = std::fs::read_dir(cache.path()).unwrap().collect();
        assert_eq!(entries.len(), models.len(), "nothing temporary is left: {entries:?}");
    }

    #[test]
    fn several_may_write_it_at_once() {
        let cache = tempfile::tempdir().unwrap();
        let write = || BuiltIn::Demo.write(cache.path()).unwrap().path;
        let paths = std::thread::scope(|scope| {
            [(); 4].map(|()| scope.spawn(write)).map(|thread| thread.join().unwrap())
        });
        assert!(paths.iter().all(|path| *path == paths[0]));
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1, "nothing temporary is left");
        assert!(!BuiltIn::Demo.write(cache.path()).unwrap().new, "and it is whole");
    }

    #[test]
    fn a_folder_with_other_files_is_not_believed() {
        let cache = tempfile::tempdir().unwrap();
        let path = BuiltIn::Demo.write(cache.path()).unwrap().path;
        let config = path.join("config.json");
        let changes: [(&str, &dyn Fn()); 5] = [
            ("changed", &|| {
                let text = std::fs::read_to_string(&config).unwrap();
                std::fs::write(&config, text.replacen('1', "2", 1)).unwrap();
            }),
            ("cut short by a full disk", &|| std::fs::write(&config, "").unwrap()),
            ("not there", &|| std::fs::remove_file(&config).unwrap()),
            ("one more", &|| std::fs::write(path.join("additional.json"), "{}").unwrap()),
            ("no folder", &|| {
                std::fs::remove_dir_all(&path).unwrap();
                std::fs::write(&path, "").unwrap();
            }),
        ];
        for (what, change) in changes {
            change();
            assert_eq!(
                BuiltIn::Demo.write(cache.path()).unwrap(),
                Written { path: path.clone(), new: true },
                "{what}"
            );
            assert!(!BuiltIn::Demo.write(cache.path()).unwrap().new, "{what}: it is whole again");
            assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1, "{what}: nothing else is left");
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let files: Vec<(&str, &[u8])> = vec![("config.json", b"{}"), ("no/such/folder", b"")];
        let temporary = file::temporary_folder(cache.path(), "model").unwrap();
        tiny::write_files(&temporary.path().join("new"), &files).unwrap_err();
        drop(temporary);
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn without_a_home_the_cache_is_a_folder_that_only_we_can_write_to() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let cache = private_cache(temporary.path()).unwrap();
        BuiltIn::Demo.write(&cache).unwrap();
        let folder = cache.parent().unwrap();
        assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        // Somebody was there before.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = private_cache(temporary.path()).unwrap_err().to_string();
        assert!(
            error.contains("can be entered by other users") && error.contains("XDG_CACHE_HOME"),
            "{error}"
        );
    }

    #[test]
    fn the_demo_model_loads_and_is_small() {
        let cache = tempfile::tempdir().unwrap();
        let path = BuiltIn::Demo.write(cache.path()).unwrap().path;
        let model = OpenModel::open(&ModelSource::of(path)).unwrap();
        assert_eq!(model.spec.family, Family::Llama);
        model.card.finish().unwrap();
        let bytes: usize = DEMO_FILES.iter().map(|(_, content)| content.len()).sum();
        assert!(bytes <= 8_000_000, "{bytes} bytes");
    }

    #[test]
    fn they_have_names() {
        for (text, model) in [
            ("bundled", Some(BuiltIn::Demo)),
            ("random", Some(BuiltIn::Random { seed: 0 })),
            ("random:7", Some(BuiltIn::Random { seed: 7 })),
            ("random:x", None),
            ("random:-1", None),
            ("bundled:1", None),
            ("./bundled", None),
        ] {
            assert_eq!(BuiltIn::named(text), model, "{text}");
        }
        let model = BuiltIn::Random { seed: 9 };
        assert_eq!(BuiltIn::named(&model.to_string()), Some(model));
    }
}
