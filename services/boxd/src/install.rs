//! `boxd install <path>`: copies this program, for an init container that shares a
//! volume with the box.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
#[error("boxd could not be copied")]
pub struct InstallError(#[from] io::Error);

/// Whole or not at all: whoever finds `path` finds a complete program, mode 0755.
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
