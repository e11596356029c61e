//! Images for tests of accounts: a program that prints the ids of its process.

use std::path::Path;
use std::time::Duration;

use agentbox_testing::tool::{Tool, ToolError};

use super::Archive;

const RECIPE: &str = include_str!("../../images/accounts.sh");
const BUILD_DEADLINE: Duration = Duration::from_secs(60);

/// Builds an image as the archive `path`. `config` is the image's `config` object, as JSON.
pub(crate) async fn build_accounts_image(
    name: &str,
    config: &str,
    path: &Path,
) -> Result<Archive, ToolError> {
    Tool::new("bash")
        .args(["-c", RECIPE, "accounts.sh", name, config])
        .args([path])
        .within(BUILD_DEADLINE)
        .run()
        .await?;
    Ok(Archive {
        image: name.to_owned(),
        path: path.to_owned(),
    })
}
