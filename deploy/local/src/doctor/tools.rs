//! The checks of the programs: whether they are there, and their versions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::paths::cache_directory;
use agentbox_testing::tool::Tool;

use super::Finding;
use crate::cli::require_packages;
use crate::kubernetes::build::Programs;
use crate::{nats, postgres};

const DEADLINE: Duration = Duration::from_secs(10);
const PREPARE: &str = "run `agentbox-local prepare`, which installs and builds what is missing";

pub(super) async fn examine() -> Vec<Finding> {
    let cache = cache_directory();
    let runtime = |name| Programs::cached_or_installed(&cache, name, name);
    vec![
        firewall().await,
        packages().await,
        program("nats-server", nats::server::installed(&cache).await).await,
        program("postgres", postgres::server()).await,
        program("containerd", Some(runtime("containerd"))).await,
        program("runc", Some(runtime("runc"))).await,
    ]
}

/// The first line that a program prints about its version.
async fn first_line(program: &Path) -> Result<String, String> {
    let output = Tool::new(program)
        .args(["--version"])
        .within(DEADLINE)
        .run();
    match output.await {
        Ok(text) => Ok(text.lines().next().unwrap_or_default().trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn program(name: &'static str, path: Option<PathBuf>) -> Finding {
    let Some(path) = path else {
        return Finding::failure(name, "it is not installed", PREPARE);
    };
    match first_line(&path).await {
        Ok(line) if line.is_empty() => Finding::ok(name, path.display().to_string()),
        Ok(line) => Finding::ok(name, line),
        Err(error) => Finding::failure(name, error, PREPARE),
    }
}

/// Whether nftables works: it needs the program, the kernel's part and the rights.
async fn firewall() -> Finding {
    let listed = Tool::new("nft").args(["list", "tables"]).within(DEADLINE);
    match listed.run().await {
        Ok(_) => match first_line(Path::new("nft")).await {
            Ok(line) => Finding::ok("nft", line),
            Err(error) => Finding::failure("nft", error, PREPARE),
        },
        Err(error) => Finding::failure(
            "nft",
            error.to_string(),
            "install nftables, load the module nf_tables, and run it as root: boxes have no network policy without it",
        ),
    }
}

async fn packages() -> Finding {
    match require_packages().await {
        Ok(()) => Finding::ok("packages", "all that the programs require are installed"),
        Err(error) => Finding::failure("packages", format!("{error:#}"), PREPARE),
    }
}
