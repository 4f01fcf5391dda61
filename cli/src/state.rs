//! Where things are kept between runs, by the XDG rules: models that were made on the spot in the cache folder, and the
//! settings of what runs in the state folder.

use std::path::PathBuf;

use anyhow::Context as _;

/// Folder for what can be made again.
pub(crate) fn cache_folder() -> anyhow::Result<PathBuf> {
    folder("XDG_CACHE_HOME", ".cache")
}

/// The settings file of the deployment whose router listens on `port`. The router watches it.
pub(crate) fn settings_file(port: u16) -> anyhow::Result<PathBuf> {
    Ok(folder("XDG_STATE_HOME", ".local/state")?.join(format!("up-{port}")).join("settings.yaml"))
}

fn folder(variable: &str, below_home: &str) -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)));
    Ok(base.with_context(|| format!("neither {variable} nor HOME names a folder"))?.join("disagg"))
}
