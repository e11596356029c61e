//! `boxd install <path>`: copies this program, for an init container that shares a
//! volume with the box.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
#[error("copying boxd failed")]
pub struct InstallError(#[from] io::Error);

/// Copies this program to `path`, mode 0755, by a rename: a file at `path` is always
/// complete.
///
/// # Errors
/// [`InstallError`].
pub fn install(path: &Path) -> Result<(), InstallError> {
    let temporary = path.with_extension("new");
    fs::copy("/proc/self/exe", &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, path)?;
    Ok(())
}
