//! The processes of one cluster, in the order in which they are stopped.

use super::process_group::ProcessGroup;
use super::state_file::StateFile;

pub(super) struct ClusterProcesses {
    /// Stopped first, because it would create again what is removed.
    pub(super) kubelet: ProcessGroup,
    /// containerd, and for a Kubernetes the process that holds the node's namespaces.
    pub(super) containerd: ProcessGroup,
    /// Stopped last: containerd calls them when it removes a Pod's network.
    pub(super) control_plane: ProcessGroup,
}

impl ClusterProcesses {
    pub(super) fn new(state_file: &StateFile) -> Self {
        let group = || ProcessGroup::new(state_file.clone());
        Self {
            kubelet: group(),
            containerd: group(),
            control_plane: group(),
        }
    }
}
