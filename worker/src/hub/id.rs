//! What `--model` names: a folder, a model on the hub, or one that needs no files.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::model::built_in::{BuiltIn, DEMO_NAME};
use std::sync::Arc;

/// Bytes of `ORG/NAME`; the hub itself allows 96 for each half.
const ID_BYTES_MAX: usize = 200;
const REVISION_BYTES_MAX: usize = 200;

/// The branch that is meant when no revision is named.
const DEFAULT_REVISION: &str = "main";

/// A model on the hub, `ORG/NAME[@REVISION]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HubModel {
    id: Arc<str>,
    revision: Option<Arc<str>>,
}

/// Text that names no model on the hub.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadHubModel {
    /// The part before the `@`.
    #[error(
        "{0:?} is no model on the hub: write ORG/NAME, of letters, digits, '-', '_' and '.', for example \
         Qwen/Qwen3-0.6B"
    )]
    Id(String),
    /// The part behind it.
    #[error(
        "{0:?} is no revision: write a branch, tag or commit, of letters, digits, '-', '_', '.' and '/' with no part \
         beginning with '.' or '-'"
    )]
    Revision(String),
}

impl HubModel {
    /// `id` is `ORG/NAME`; without a revision the branch `main` is meant.
    pub fn new(id: &str, revision: Option<&str>) -> Result<Self, BadHubModel> {
        // Both become parts of paths and of URLs.
        let good_part = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            part.bytes().all(allowed) && !part.is_empty() && !part.starts_with(['.', '-'])
        };
        let halves = id.split_once('/').filter(|_| id.len() <= ID_BYTES_MAX);
        if !halves.is_some_and(|(org, name)| good_part(org) && good_part(name)) {
            return Err(BadHubModel::Id(id.to_owned()));
        }
        if let Some(revision) = revision
            && !(revision.len() <= REVISION_BYTES_MAX && revision.split('/').all(good_part))
        {
            return Err(BadHubModel::Revision(revision.to_owned()));
        }
        Ok(Self { id: id.into(), revision: revision.map(Into::into) })
    }

    /// `ORG/NAME`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A branch, a tag or a commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// Whether the revision is a commit, which never means anything else later.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(self.revision())
    }
}

/// The full hash of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

impl FromStr for HubModel {
    type Err = BadHubModel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('@') {
            Some((id, revision)) => Self::new(id, Some(revision)),
            None => Self::new(text, None),
        }
    }
}

/// Where a model is: what `--model` takes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ModelRef {
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
    /// To be downloaded, unless it is in the cache.
    Hub(HubModel),
    /// To be written on the spot.
    BuiltIn(BuiltIn),
}

impl ModelRef {
    /// What exists is a folder, and so is what cannot be a name on the hub. A folder called `bundled` is `./bundled`.
    pub fn of(text: &str) -> Self {
        if let Some(model) = BuiltIn::named(text) {
            return Self::BuiltIn(model);
        }
        match text.parse() {
            Ok(model) if !Path::new(text).exists() => Self::Hub(model),
            _ => Self::Folder(PathBuf::from(text)),
        }
    }

    /// The name that clients use when no other is given: the folder's, or `ORG/NAME`. `None` for a folder such as `/`.
    pub fn default_name(&self) -> Option<String> {
        match self {
            Self::Folder(folder) => {
                // `.` and `..` have no name until they are resolved.
                let resolved = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
                resolved.file_name().and_then(|name| name.to_str()).map(str::to_owned)
            }
            Self::Hub(model) => Some(model.id.as_ref().to_owned()),
            Self::BuiltIn(BuiltIn::Demo) => Some(DEMO_NAME.to_owned()),
            Self::BuiltIn(BuiltIn::Random { .. }) => Some("random".to_owned()),
        }
    }
}

impl FromStr for ModelRef {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::of(text))
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Hub(model) => model.fmt(f),
            Self::BuiltIn(model) => model.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_on_the_hub_has_two_halves_and_perhaps_a_revision() {
        let model: HubModel = "Qwen/Qwen3-0.6B".parse().expect("valid");
        assert_eq!((model.id(), model.revision(), model.is_commit()), ("Qwen/Qwen3-0.6B", "main", false));
        let commit = "a".repeat(40);
        let model: HubModel = format!("a/b@{commit}").parse().expect("valid");
        assert_eq!((model.revision(), model.is_commit()), (commit.as_str(), true));
        let model: HubModel = "a/b@refs/pr/1".parse().expect("valid");
        assert_eq!((model.revision(), model.to_string().as_str()), ("refs/pr/1", "a/b@refs/pr/1"));
    }

    #[test]
    fn what_would_leave_the_cache_is_no_name() {
        for bad in ["", "a", "/a", "a/", "a/b/c", "../b", "a/..", "./a/b", "a/b c", "-a/b", "~/m"] {
            assert!(matches!(bad.parse::<HubModel>(), Err(BadHubModel::Id(_))), "{bad}");
        }
        for bad in ["a/b@", "a/b@..", "a/b@x/../y", "a/b@/x", "a/b@-x", "a/b@x?y", "a/b@x@y"] {
            assert!(matches!(bad.parse::<HubModel>(), Err(BadHubModel::Revision(_))), "{bad}");
        }
        assert!(format!("a/{}", "b".repeat(300)).parse::<HubModel>().is_err());
    }

    #[test]
    fn folders_go_first() {
        let hub = ModelRef::of("org/name@v1");
        assert_eq!(hub, ModelRef::Hub(HubModel::new("org/name", Some("v1")).expect("valid")));
        assert_eq!(hub.default_name().as_deref(), Some("org/name"));
        // Tests run in the crate's folder.
        assert_eq!(ModelRef::of("src/hub"), ModelRef::Folder("src/hub".into()));
        assert_eq!(ModelRef::of("bundled"), ModelRef::BuiltIn(BuiltIn::Demo));
        assert_eq!(ModelRef::of("random:3").default_name().as_deref(), Some("random"));
        for path in ["/models/llama", "./org/name", "llama", "a/b/c", "./bundled", "random:"] {
            assert_eq!(ModelRef::of(path), ModelRef::Folder(path.into()));
        }
        assert_eq!(ModelRef::of("./models/llama/.").default_name().as_deref(), Some("llama"));
    }
}
