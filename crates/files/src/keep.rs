//! Files and folders that we write for later: whole or not there, without leftovers, and ours.

use std::fs::{DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::FileError;

/// Between the name of what is being written and a random end. Whatever is called so is ours to remove.
const TEMPORARY: &str = ".tmp-";

/// A leftover of a process that was killed is this old before it is removed; writing takes seconds.
const STALE_AFTER: Duration = Duration::from_hours(1);

/// Entries of a folder that are looked at for leftovers.
const ENTRIES_MAX: usize = 4096;

/// Leftovers that are removed at once.
const REMOVED_MAX: usize = 16;

/// Writes a file so that a reader sees the old bytes or the new, and never half of them. Makes the folder if need be.
/// An error, such as a full disk, leaves nothing behind; what killed processes have left is removed.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let not_a_name = || io::Error::new(io::ErrorKind::InvalidInput, "names no file");
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(FileError::io(path)(not_a_name()));
    };
    // Of a bare file name, the parent is an empty path.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    std::fs::create_dir_all(folder).map_err(FileError::io(folder))?;
    remove_stale(folder, name);
    let mut file = tempfile::Builder::new()
        .prefix(&format!("{name}{TEMPORARY}"))
        // Less what the process's mask takes away.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(FileError::io(path))?;
    // Dropped, it is removed.
    file.write_all(bytes).map_err(FileError::io(path))?;
    file.persist(path).map_err(|error| FileError::io(path)(error.error))?;
    Ok(())
}

/// A folder in `parent` to write into what will be renamed to `name`. It is removed when it is dropped, and those of
/// killed processes are removed now. Makes `parent` if need be.
pub fn temporary_folder(parent: &Path, name: &str) -> Result<TempDir, FileError> {
    std::fs::create_dir_all(parent).map_err(FileError::io(parent))?;
    remove_stale(parent, name);
    tempfile::Builder::new()
        .prefix(&format!("{name}{TEMPORARY}"))
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .map_err(FileError::io(parent))
}

/// Removes what earlier processes have begun to write for `name` in `folder` and have not ended. What cannot be removed
/// does no harm.
fn remove_stale(folder: &Path, name: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let prefix = format!("{name}{TEMPORARY}");
    let is_stale = |entry: &std::fs::DirEntry| {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix));
        let changed = || entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = |changed| SystemTime::now().duration_since(changed).ok();
        named && changed().and_then(age).is_some_and(|age| age > STALE_AFTER)
    };
    let stale = entries.flatten().take(ENTRIES_MAX).filter(is_stale).take(REMOVED_MAX);
    for path in stale.map(|entry| entry.path()).collect::<Vec<_>>() {
        // Neither follows a link.
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
    }
}

/// Makes a folder that nobody else can read or write, or sees that it is one. Somebody else's, one that others can
/// enter, or a link is refused; `variable` is what the message tells to name another with. Its parent must exist.
pub fn private_folder(path: &Path, variable: &'static str) -> Result<(), FileError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(FileError::io(path)(error)),
    }
    let refuse = |problem| Err(FileError::NotPrivate { path: path.to_owned(), problem, variable });
    // Not that of what a link points to.
    let metadata = std::fs::symlink_metadata(path).map_err(FileError::io(path))?;
    if !metadata.is_dir() {
        return refuse("is no folder");
    }
    if metadata.mode() & 0o077 != 0 {
        return refuse("can be entered by other users");
    }
    // What we make is ours: no other way to learn our user is both safe and portable.
    match tempfile::tempfile_in(path).and_then(|file| file.metadata()) {
        Ok(ours) if ours.uid() == metadata.uid() => Ok(()),
        Ok(_) => refuse("belongs to another user"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refuse("belongs to another user"),
        Err(error) => Err(FileError::io(path)(error)),
    }
}
