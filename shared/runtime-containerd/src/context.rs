//! The driver's configuration, connections and files, which every module uses.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;

use crate::box_state::StateStore;
use crate::config::Config;
use crate::cri::Cri;
use crate::disk::Disk;
use crate::firewall::Firewall;
use crate::image_access::ImageAccess;
use crate::image_files::KnownImages;
use crate::pulled_images::PulledImages;

/// One driver's configuration and clients. Each module adds the operations of its noun.
#[derive(Debug)]
pub struct Context {
    pub config: Config,
    pub cri: Cri,
    pub states: StateStore,
    pub firewall: Firewall,
    pub image_access: ImageAccess,
    pub pulled_images: PulledImages,
    pub known_images: KnownImages,
}

impl Context {
    pub fn new(config: Config) -> Self {
        Self {
            cri: Cri::new(&config.socket, config.call_deadline()),
            states: StateStore::new(&config.state_dir),
            firewall: Firewall::new(&config),
            image_access: ImageAccess::new(config.image_records_dir()),
            pulled_images: PulledImages::new(config.image_records_dir()),
            known_images: KnownImages::default(),
            config,
        }
    }

    pub fn output_directory(&self, id: &EnvironmentId) -> PathBuf {
        self.states.directory(id).join("output")
    }

    /// The tmpfs with the box's other files in memory.
    pub fn memory_directory(&self, id: &EnvironmentId) -> PathBuf {
        self.states.directory(id).join("memory")
    }

    pub fn disk(&self, id: &EnvironmentId) -> Disk {
        Disk::of(&self.states.directory(id))
    }

    /// The box's instance of devpts, in a directory that only root can enter.
    pub fn terminals_directory(&self, id: &EnvironmentId) -> PathBuf {
        self.states.directory(id).join("terminals/pts")
    }

    /// Long enough for another replica to create or remove the box.
    pub fn lock_deadline(&self) -> Duration {
        let seconds = self.config.sandbox_deadline_s + self.config.start_deadline_s;
        Duration::from_secs(seconds)
    }
}

/// The PATH with the sbin directories, which contain conntrack and mkfs and which a service's PATH may lack.
pub fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!("{inherited}:/usr/local/sbin:/usr/sbin:/sbin")
}
