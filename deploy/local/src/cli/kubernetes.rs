//! `kubernetes`: extends the running Kubernetes of a test.

use super::KubernetesCommand;
use crate::image::programs::build_program_image;
use crate::kubernetes::addons::{self, Tools};

/// # Errors
/// When something cannot be built, or the cluster refuses it.
pub(super) async fn run(command: KubernetesCommand) -> anyhow::Result<()> {
    match command {
        KubernetesCommand::Build => addons::build(|step| eprintln!("{step}")).await?,
        KubernetesCommand::AddDns { endpoint } => {
            let tools = Tools::provide(|step| eprintln!("{step}")).await?;
            let directory = tempfile::tempdir()?;
            addons::add_dns(&endpoint, &tools, directory.path()).await?;
        }
        KubernetesCommand::PushProgram {
            endpoint,
            program,
            name,
        } => {
            let directory = tempfile::tempdir()?;
            let image =
                build_program_image(&program, "agentbox.local/program:1", directory.path()).await?;
            println!("{}", addons::push(&endpoint, &image, &name).await?);
        }
    }
    Ok(())
}
