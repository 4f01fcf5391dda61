//! Models that need no files of the user: the demo model that is part of the executable, and random ones.
//!
//! Each is written into a folder when it is first used, and read from there like any other model.

use std::fmt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::error::ModelError;
use super::tiny;

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
    /// start at the same time and one that is interrupted does no harm. Blocks.
    pub fn write(self, cache: &Path) -> Result<Written, ModelError> {
        let name = match self {
            Self::Demo => format!("{DEMO_NAME}-{:016x}", digest(&DEMO_FILES)),
            Self::Random { seed } => {
                format!("random-{}-r{RANDOM_REVISION}-seed{seed}", env!("CARGO_PKG_VERSION"))
            }
        };
        let path = cache.join(&name);
        if path.is_dir() {
            return Ok(Written { path, new: false });
        }
        let temporary = cache.join(format!("{name}.tmp-{}", std::process::id()));
        match self {
            Self::Demo => {
                std::fs::create_dir_all(&temporary).map_err(ModelError::io(&temporary))?;
                for (name, content) in DEMO_FILES {
                    let file = temporary.join(name);
                    std::fs::write(&file, content).map_err(ModelError::io(&file))?;
                }
            }
            Self::Random { seed } => tiny::write(&temporary, seed)?,
        }
        if let Err(error) = std::fs::rename(&temporary, &path) {
            // Leftovers are only bytes in a cache.
            let _ = std::fs::remove_dir_all(&temporary);
            // Another process was quicker: its files are equal.
            if !path.is_dir() {
                return Err(ModelError::io(&path)(error));
            }
        }
        Ok(Written { path, new: true })
    }
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.write_str("bundled"),
            Self::Random { seed } => write!(f, "random:{seed}"),
        }
    }
}

/// Where a worker writes them: `disagg/models` in `XDG_CACHE_HOME` or `~/.cache`, or else in the folder for temporary
/// files.
pub fn default_cache() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("disagg").join("models")
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
    use crate::model::{Family, LoadFormat, LoadedModel, ModelSource};

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
        let path = BuiltIn::Demo.write(cache.path()).unwrap().path;
        // The other process was quicker between our check and our rename.
        let temporary = cache.path().join("other");
        tiny::write(&temporary, 1).unwrap();
        assert!(std::fs::rename(&temporary, &path).is_err(), "a whole folder is never replaced");
    }

    #[test]
    fn the_demo_model_loads_and_is_small() {
        let cache = tempfile::tempdir().unwrap();
        let path = BuiltIn::Demo.write(cache.path()).unwrap().path;
        let source = ModelSource { path, format: LoadFormat::Auto, seed: 0, served_model_name: None };
        assert_eq!(LoadedModel::load(&source).unwrap().config.family, Family::Llama);
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
