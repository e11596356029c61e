//! Checks the files of an image that containerd and runc read to find the user of a container, before
//! the container is created. A read of a FIFO or of a device may never end, and a very large file
//! takes long; containerd then keeps a thread and a temporary mount.
//!
//! * I1. The image is not trusted: a path is resolved within the image's root, and no file is opened
//!   for reading.
//! * I2. An image is checked once: its layers do not change.
//! * I3. The view of a replica that was killed is unmounted and removed by a later check.
//! * I4. An image that cannot be checked is not refused. [`crate::user_files`] and the deadlines of
//!   the calls then bound what it can do.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentbox_contracts::ErrorChain;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use tonic::Status;

use crate::context::Context;
use crate::cri::CriError;
use crate::image::ImageConfig;
use crate::snapshots::{self, Mount};
use crate::tmpfs;

/// The largest user file that is accepted, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;
/// The images whose result is kept. Beyond it, all are checked again.
const MAX_KNOWN: usize = 4096;
/// The age at which a view is one of a replica that was killed. A check takes far less.
const MAX_VIEW_AGE: Duration = Duration::from_secs(600);
/// The directories of a box that are not the image's.
const REPLACED: [&str; 3] = ["dev", "proc", "sys"];
const SNAPSHOTTERS: &str = "io.containerd.snapshotter.v1.";
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// One of the files, and the causes for the user.
struct UserFile {
    path: &'static str,
    not_regular: &'static str,
    too_large: &'static str,
    link: &'static str,
}

const USER_FILES: [UserFile; 2] = [
    UserFile {
        path: "etc/passwd",
        not_regular: "its passwd file is not a regular file",
        too_large: "its passwd file is larger than 1 MiB",
        link: "its passwd file is a link that leads to no file of the image",
    },
    UserFile {
        path: "etc/group",
        not_regular: "its group file is not a regular file",
        too_large: "its group file is larger than 1 MiB",
        link: "its group file is a link that leads to no file of the image",
    },
];

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("the snapshotter of containerd is unknown")]
    Snapshotter(#[from] CriError),
    #[error("containerd gave no view of the image")]
    View(#[from] Status),
    #[error("containerd gave no view of the image within {0:?}")]
    Deadline(Duration),
    #[error("the view of the image could not be opened")]
    Open(#[from] io::Error),
    #[error("the check panicked")]
    Panicked(#[from] tokio::task::JoinError),
}

/// The result of each image that was checked, by its chain id.
#[derive(Debug, Default)]
pub struct KnownImages(Mutex<BTreeMap<String, Option<&'static str>>>);

impl KnownImages {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<&'static str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, chain_id: &str) -> Option<Option<&'static str>> {
        self.lock().get(chain_id).copied()
    }

    fn insert(&self, chain_id: &str, problem: Option<&'static str>) {
        let mut known = self.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(chain_id.to_owned(), problem);
    }
}

impl Context {
    /// The reason that the user files of the image cannot be read. `None` also if it could not be
    /// checked.
    pub async fn user_file_problem(&self, image: &ImageConfig) -> Option<&'static str> {
        let chain_id = image.chain_id.as_str();
        if chain_id.is_empty() {
            return None;
        }
        if let Some(known) = self.known_images.get(chain_id) {
            return known;
        }
        match self.check_user_files(chain_id).await {
            Ok(problem) => {
                self.known_images.insert(chain_id, problem);
                problem
            }
            Err(error) => {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    chain_id,
                    "could not check the user files of an image"
                );
                None
            }
        }
    }

    async fn check_user_files(&self, chain_id: &str) -> Result<Option<&'static str>, CheckError> {
        let storage = self.cri.storage_directory().await?;
        let snapshotter = storage.as_deref().and_then(snapshotter_of);
        let snapshotter = snapshotter.unwrap_or(DEFAULT_SNAPSHOTTER);
        let key = unique_key();
        let within = self.config.call_deadline();
        let viewing = snapshots::view(&self.cri, snapshotter, &key, chain_id);
        let mounts = tokio::time::timeout(within, viewing)
            .await
            .map_err(|_| CheckError::Deadline(within))??;
        let views = self.config.state_dir.join("image-views");
        let directory = views.join(&key);
        let checking = move || {
            remove_old_views(&views, MAX_VIEW_AGE);
            check(&mounts, &directory)
        };
        let checked = tokio::task::spawn_blocking(checking).await;
        let removing = snapshots::remove(&self.cri, snapshotter, &key);
        // Best effort: containerd's garbage collection removes it.
        let _ = tokio::time::timeout(within, removing).await;
        Ok(checked??)
    }
}

/// The snapshotter whose directory this is.
fn snapshotter_of(directory: &str) -> Option<&str> {
    let name = Path::new(directory).file_name()?.to_str()?;
    name.strip_prefix(SNAPSHOTTERS)
}

/// The key of a view, which no other process uses.
fn unique_key() -> String {
    static VIEWS: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    let view = VIEWS.fetch_add(1, Ordering::Relaxed);
    format!("agentbox-view-{}-{view}-{now}", std::process::id())
}

fn check(mounts: &[Mount], directory: &Path) -> io::Result<Option<&'static str>> {
    let [mount] = mounts else {
        return Err(io::Error::other("a view must be one mount"));
    };
    let root = match mount.kind.as_str() {
        // An image with one layer.
        "bind" => File::open(&mount.source)?,
        "overlay" => {
            let mut options = mount.options.iter();
            let layers = options.find_map(|option| option.strip_prefix("lowerdir="));
            let layers = layers.ok_or_else(|| io::Error::other("an overlay has no layers"))?;
            open_overlay(layers, directory)?
        }
        kind => {
            let message = format!("views of type {kind} are not supported");
            return Err(io::Error::other(message));
        }
    };
    Ok(problem(&root))
}

/// Opens the root of an overlay of these layers, separated by colons. The mount has no place in the
/// file system any more, and ends with the returned file.
fn open_overlay(layers: &str, directory: &Path) -> io::Result<File> {
    std::fs::create_dir_all(directory.join("root"))?;
    let opened = mount_overlay(layers, directory);
    remove_view(directory)?;
    opened
}

fn mount_overlay(layers: &str, directory: &Path) -> io::Result<File> {
    let root = directory.join("root");
    // The kernel accepts one page of options, and an image has up to 127 layers with long paths.
    let base = File::open(directory)?;
    let mut short = Vec::new();
    for (index, layer) in layers.split(':').enumerate() {
        symlink(layer, directory.join(index.to_string()))?;
        short.push(format!("/proc/self/fd/{}/{index}", base.as_raw_fd()));
    }
    let options = format!("lowerdir={}", short.join(":"));
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        flags,
        Some(options.as_str()),
    )?;
    File::open(root)
}

/// Unmounts and removes the directory of a view.
fn remove_view(directory: &Path) -> io::Result<()> {
    let root = directory.join("root");
    tmpfs::unmount(&root)?;
    // Not recursive: nothing of an image is removed, whatever happened above.
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path == root {
            std::fs::remove_dir(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    std::fs::remove_dir(directory)
}

/// Removes the views of replicas that were killed during a check. Best effort: the next check tries
/// again.
fn remove_old_views(views: &Path, max_age: Duration) {
    for entry in std::fs::read_dir(views).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age >= max_age) {
            let _ = remove_view(&entry.path());
        }
    }
}

/// The first problem of the user files below `root`.
fn problem(root: &File) -> Option<&'static str> {
    USER_FILES.iter().find_map(|file| problem_of(root, file))
}

fn problem_of(root: &File, file: &UserFile) -> Option<&'static str> {
    let open = |flags: OFlag| {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | flags)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(root, file.path, how).map(File::from)
    };
    let found = match open(OFlag::empty()) {
        Ok(found) => found,
        Err(Errno::ELOOP) => return Some(file.link),
        // A link to nothing in the image leads to something in the box, such as a device.
        Err(Errno::ENOENT) => {
            return open(OFlag::O_NOFOLLOW).is_ok().then_some(file.link);
        }
        Err(_) => return None,
    };
    if is_replaced(root, &found) {
        return Some(file.link);
    }
    let metadata = found.metadata().ok()?;
    if !metadata.is_file() {
        return Some(file.not_regular);
    }
    (metadata.len() > MAX_BYTES).then_some(file.too_large)
}

/// Whether a file is below a directory that the box does not have from its image.
fn is_replaced(root: &File, found: &File) -> bool {
    let path = |file: &File| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let (Ok(root), Ok(found)) = (path(root), path(found)) else {
        return false;
    };
    let Ok(inside) = found.strip_prefix(&root) else {
        return false;
    };
    let first = inside.components().next();
    REPLACED
        .iter()
        .any(|replaced| first == Some(Component::Normal(OsStr::new(replaced))))
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// The problem of an image whose `/etc/passwd` is made by `make`.
    fn problem_with(make: impl Fn(&Path)) -> Option<&'static str> {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("group"), "root:x:0:").unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/zero"), "").unwrap();
        std::fs::write(root.path().join("users"), "root:x:0:0::/:/").unwrap();
        make(&etc.join("passwd"));
        problem(&File::open(root.path()).unwrap())
    }

    #[test]
    fn only_a_small_regular_file_of_the_image_is_accepted() {
        let [passwd, _] = &USER_FILES;
        let link = |to: &'static str| move |path: &Path| symlink(to, path).unwrap();
        assert_eq!(problem_with(|_| {}), None);
        assert_eq!(
            problem_with(|path| std::fs::write(path, "x").unwrap()),
            None
        );
        assert_eq!(problem_with(link("/users")), None);
        assert_eq!(problem_with(link("../users")), None);
        for to in [
            "passwd",
            "/dev/stdin",
            "../../../dev/zero",
            "/dev/zero",
            "nothing",
        ] {
            assert_eq!(problem_with(link(to)), Some(passwd.link), "{to}");
        }
        let fifo = |path: &Path| mkfifo(path, Mode::S_IRWXU).unwrap();
        assert_eq!(problem_with(fifo), Some(passwd.not_regular));
        let directory = |path: &Path| std::fs::create_dir(path).unwrap();
        assert_eq!(problem_with(directory), Some(passwd.not_regular));
        let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert_eq!(problem_with(socket), Some(passwd.not_regular));
        let sparse = |path: &Path| File::create(path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(problem_with(sparse), Some(passwd.too_large));
    }

    #[test]
    fn overlay_of_many_layers_is_opened_and_leaves_no_directory() {
        let work = tempfile::tempdir().unwrap();
        let mut layers = Vec::new();
        for number in 0..100 {
            let layer = work.path().join("x".repeat(100)).join(number.to_string());
            std::fs::create_dir_all(&layer).unwrap();
            layers.push(layer.to_str().unwrap().to_owned());
        }
        let lowest = Path::new(&layers[99]).join("etc");
        std::fs::create_dir(&lowest).unwrap();
        mkfifo(&lowest.join("group"), Mode::S_IRWXU).unwrap();
        let directory = work.path().join("view");
        let mount = Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                "index=off".to_owned(),
                format!("lowerdir={}", layers.join(":")),
            ],
        };
        let checked = check(&[mount], &directory).unwrap();
        assert_eq!(checked, Some(USER_FILES[1].not_regular));
        assert!(!directory.exists());
    }

    #[test]
    fn view_of_a_killed_replica_is_removed() {
        let views = tempfile::tempdir().unwrap();
        let view = views.path().join("view");
        std::fs::create_dir_all(view.join("root")).unwrap();
        symlink("/etc", view.join("0")).unwrap();
        remove_old_views(views.path(), MAX_VIEW_AGE);
        assert!(view.exists());
        remove_old_views(views.path(), Duration::ZERO);
        assert!(!view.exists());
        assert!(Path::new("/etc").exists());
    }

    #[test]
    fn snapshotter_is_known_by_its_directory() {
        let directory = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
        assert_eq!(snapshotter_of(directory), Some("overlayfs"));
        assert_eq!(snapshotter_of("/var/lib/containerd"), None);
    }
}
