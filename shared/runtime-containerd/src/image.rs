//! Classifies failed image pulls, and reads an image's configuration. Pure.

use std::collections::HashMap;
use std::time::Duration;

use agentbox_contracts::command::MAX_MAIN_COMMAND_BYTES;
use agentbox_runtime::image_pull::{is_transient_error, printable_image, public_cause};
use agentbox_runtime::{SecurityContext, image_reference};
use k8s_cri::v1::ImageStatusResponse;
use serde::Deserialize;

use crate::cri::CriError;
use crate::user_range;

/// The classes of a failed pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// No later attempt can succeed: no such image, no permission, no such registry.
    Final(String),
    /// The registry is busy, or the connection broke.
    Transient(String),
}

/// Whether containerd has this image by a digest of its repository: a pull adds one, and an import does
/// not.
pub fn was_pulled(status: &ImageStatusResponse, name: &str) -> bool {
    let prefix = format!("{}@", image_reference::repository(name));
    let images = status.image.iter();
    let mut digests = images.flat_map(|image| &image.repo_digests);
    name.contains('@') || digests.any(|digest| digest.starts_with(&prefix))
}

/// The cause that users read when a pull was ended because the file system is full.
pub const NO_SPACE: &str = "the machine has no space for images";

/// The message of a pull that was ended because the file system is full.
pub fn no_space(image: &str) -> String {
    format!(
        "cannot pull the image \"{}\": {NO_SPACE}",
        printable_image(image)
    )
}

/// Classifies containerd's error; `deadline` is the deadline of the pull.
pub fn classify_pull(image: &str, error: &CriError, deadline: Duration) -> PullFailure {
    let image = printable_image(image);
    match error {
        // containerd keeps the layers that arrived, and the next attempt continues.
        CriError::Deadline { .. } => PullFailure::Transient(format!(
            "the image \"{image}\" was not pulled within {} s",
            deadline.as_secs()
        )),
        CriError::Unavailable { .. } => PullFailure::Transient(format!(
            "cannot pull the image \"{image}\": the cluster does not answer"
        )),
        CriError::Refused { message, .. } => {
            let cause = public_cause(message);
            let text = format!("cannot pull the image \"{image}\": {cause}");
            if is_transient_error(message) {
                PullFailure::Transient(text)
            } else {
                PullFailure::Final(text)
            }
        }
    }
}

/// The fields of an image's configuration that the creation of a box depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `USER` of its Dockerfile: `user` or `user:group`, each a name or a number. Empty: root.
    pub user: String,
    /// `WORKDIR`. Empty: `/`.
    pub working_dir: String,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// The id of its unpacked layers. Empty: unknown.
    #[serde(skip)]
    pub chain_id: String,
}

/// containerd's description of an image.
#[derive(Deserialize)]
struct Info {
    #[serde(rename = "chainID", default)]
    chain_id: String,
    #[serde(rename = "imageSpec")]
    image: ImageSpec,
}

#[derive(Deserialize)]
struct ImageSpec {
    #[serde(default)]
    config: ImageConfig,
}

impl ImageConfig {
    /// Reads the `info` that containerd adds to a verbose image status.
    ///
    /// # Errors
    /// When it is missing or not JSON.
    pub fn read(info: &HashMap<String, String>) -> Result<Self, serde_json::Error> {
        let info: Info = serde_json::from_str(info.get("info").map_or("", String::as_str))?;
        Ok(Self {
            chain_id: info.chain_id,
            ..info.image.config
        })
    }

    /// The reason that the image cannot run with this spec.
    pub fn problem(&self, requested: Option<&SecurityContext>) -> Option<String> {
        if !self.working_dir.is_empty() && !self.working_dir.starts_with('/') {
            return Some(format!(
                "its working directory \"{}\" is not an absolute path",
                printable_image(&self.working_dir)
            ));
        }
        self.user_problem(requested)
    }

    /// The reason that the image's own user cannot exist in a user namespace.
    pub fn unmapped_user(&self, requested: Option<&SecurityContext>) -> Option<String> {
        if requested.is_some_and(|requested| requested.run_as_user.is_some()) {
            return None;
        }
        let mut ids = self.user.split(':').filter_map(|id| id.parse::<u64>().ok());
        let id = ids.find(|id| *id >= u64::from(user_range::LENGTH))?;
        Some(format!(
            "its user or group {id} is above {}, the last one of a box: give run_as_user",
            user_range::LENGTH - 1
        ))
    }

    /// Whether its user is root, as far as it can be told without the image's files.
    pub fn is_of_root(&self) -> bool {
        let user = self.user.split(':').next().unwrap_or_default();
        matches!(user, "" | "0" | "root")
    }

    /// The command that the image names, as Docker runs it: ENTRYPOINT, with CMD as its arguments.
    pub fn command(&self) -> Vec<String> {
        let parts = [&self.entrypoint, &self.cmd];
        parts.into_iter().flatten().flatten().cloned().collect()
    }

    /// The reason that this command cannot be a main command: the rules of `command` in a request.
    pub fn command_problem(&self) -> Option<String> {
        let words = self.command();
        if words.first().is_none_or(String::is_empty) {
            return Some(
                "its ENTRYPOINT and CMD name no program: give command instead of use_entrypoint"
                    .to_owned(),
            );
        }
        if words.iter().any(|word| word.contains('\0')) {
            return Some("its ENTRYPOINT or CMD contains NUL".to_owned());
        }
        let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
        (bytes > MAX_MAIN_COMMAND_BYTES).then(|| {
            format!("its ENTRYPOINT and CMD have more than {MAX_MAIN_COMMAND_BYTES} bytes: {bytes}")
        })
    }

    /// Decides about the image's own user as the kubelet does.
    fn user_problem(&self, requested: Option<&SecurityContext>) -> Option<String> {
        let requested = requested?;
        if requested.run_as_non_root != Some(true) || requested.run_as_user.is_some() {
            return None;
        }
        let user = self.user.split(':').next().unwrap_or_default();
        match user.parse::<i64>() {
            Ok(uid) if uid != 0 => None,
            Err(_) if !user.is_empty() => Some(format!(
                "run_as_non_root is set and its user \"{}\" is not numeric, so it may be root: \
                 give run_as_user",
                printable_image(user)
            )),
            _ => Some("run_as_non_root is set and its user is root: give run_as_user".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::Image;
    use serde_json::json;
    use tonic::Code;

    use super::*;

    #[test]
    fn imported_image_has_no_digest_of_its_repository() {
        let status = |digests: &[&str]| ImageStatusResponse {
            image: Some(Image {
                repo_digests: digests.iter().map(|name| (*name).to_owned()).collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (name, digests, pulled) in [
            (
                "docker.io/library/a:1",
                &["docker.io/library/ab@sha256:0"][..],
                false,
            ),
            (
                "docker.io/library/a:1",
                &["docker.io/library/a@sha256:0"],
                true,
            ),
            ("docker.io/library/a:1", &[], false),
            ("docker.io/library/a@sha256:0", &[], true),
        ] {
            assert_eq!(was_pulled(&status(digests), name), pulled, "{digests:?}");
        }
    }

    #[test]
    fn only_transient_pull_errors_are_retried() {
        let refused = |message: &str| CriError::Refused {
            operation: "PullImage",
            code: Code::Unknown,
            message: message.to_owned(),
        };
        for (message, transient) in [
            (
                "rpc error: code = NotFound desc = failed to resolve reference \"x\": x: not found",
                false,
            ),
            (
                "pull access denied, repository does not exist or may require authorization",
                false,
            ),
            ("dial tcp: lookup registry.invalid: no such host", false),
            ("dial tcp 127.0.0.1:1: connect: connection refused", false),
            ("invalid reference format", false),
            (
                "unexpected status code [manifests x]: 429 Too Many Requests",
                true,
            ),
            ("unexpected status: 503 Service Unavailable", true),
            ("read tcp: connection reset by peer", true),
        ] {
            let got = classify_pull("nope:1", &refused(message), Duration::from_secs(9));
            assert_eq!(
                matches!(got, PullFailure::Transient(_)),
                transient,
                "{message}"
            );
            let (PullFailure::Final(text) | PullFailure::Transient(text)) = got;
            assert!(text.contains("nope:1"), "{text}");
            for cause in ["dial", "127.0.0.1", "lookup", "manifests"] {
                assert!(!text.contains(cause), "{text}");
            }
        }
    }

    #[test]
    fn image_that_may_run_as_root_is_refused_for_non_root() {
        let image = |user: &str| ImageConfig {
            user: user.to_owned(),
            ..Default::default()
        };
        let non_root = SecurityContext {
            run_as_non_root: Some(true),
            ..Default::default()
        };
        let with_user = SecurityContext {
            run_as_user: Some(1000),
            ..non_root.clone()
        };
        for (image, requested, problem) in [
            (image("0"), Some(&non_root), true),
            (image("0:1000"), Some(&non_root), true),
            (image(""), Some(&non_root), true),
            (image("app"), Some(&non_root), true),
            (image("app:1000"), Some(&non_root), true),
            (image("1000"), Some(&non_root), false),
            (image("1000:0"), Some(&non_root), false),
            (image("0"), Some(&with_user), false),
            (image("0"), None, false),
        ] {
            assert_eq!(
                image.problem(requested).is_some(),
                problem,
                "{image:?} {requested:?}"
            );
        }
    }

    #[test]
    fn image_user_beyond_the_ids_of_a_box_is_a_problem_unless_another_is_requested() {
        let requested = SecurityContext {
            run_as_user: Some(1000),
            ..Default::default()
        };
        for (user, requested, problem) in [
            ("", None, false),
            ("alice", None, false),
            ("65535:65535", None, false),
            ("65536", None, true),
            ("0:1000670000", None, true),
            ("1000670000", Some(&SecurityContext::default()), true),
            ("1000670000", Some(&requested), false),
        ] {
            let image = ImageConfig {
                user: user.to_owned(),
                ..Default::default()
            };
            assert_eq!(image.unmapped_user(requested).is_some(), problem, "{user}");
        }
    }

    #[test]
    fn image_is_of_root_unless_it_names_another_user() {
        for (user, expected) in [
            ("", true),
            ("0", true),
            ("root:staff", true),
            ("1000", false),
            ("alice:0", false),
        ] {
            let image = ImageConfig {
                user: user.to_owned(),
                ..Default::default()
            };
            assert_eq!(image.is_of_root(), expected, "{user}");
        }
    }

    #[test]
    fn image_with_a_relative_working_directory_cannot_run() {
        for (working_dir, problem) in [("", false), ("/", false), ("/work", false), ("work", true)]
        {
            let image = ImageConfig {
                working_dir: working_dir.to_owned(),
                ..Default::default()
            };
            assert_eq!(image.problem(None).is_some(), problem, "{working_dir}");
        }
    }

    #[test]
    fn command_of_an_image_is_its_entrypoint_with_its_cmd() {
        let text = "x".repeat(MAX_MAIN_COMMAND_BYTES);
        let (long, most) = (text.as_str(), &text[..MAX_MAIN_COMMAND_BYTES - 3]);
        for (entrypoint, cmd, command, problem) in [
            (None, None, vec![], true),
            (Some(vec![]), Some(vec![]), vec![], true),
            (Some(vec![""]), Some(vec!["a"]), vec!["", "a"], true),
            (Some(vec!["a"]), None, vec!["a"], false),
            (None, Some(vec!["b", ""]), vec!["b", ""], false),
            (
                Some(vec!["a", "1"]),
                Some(vec!["b"]),
                vec!["a", "1", "b"],
                false,
            ),
            (Some(vec!["a"]), Some(vec!["\0"]), vec!["a", "\0"], true),
            (Some(vec!["a", most]), None, vec!["a", most], false),
            (Some(vec!["a"]), Some(vec![long]), vec!["a", long], true),
        ] {
            let words = |words: Vec<&str>| -> Vec<String> {
                words.into_iter().map(str::to_owned).collect()
            };
            let image = ImageConfig {
                entrypoint: entrypoint.map(words),
                cmd: cmd.map(words),
                ..Default::default()
            };
            assert_eq!(image.command(), command);
            let found = image.command_problem();
            assert_eq!(found.is_some(), problem, "{found:?}");
        }
    }

    #[test]
    fn image_configuration_is_read_from_the_verbose_status() {
        let info = |json: serde_json::Value| HashMap::from([("info".to_owned(), json.to_string())]);
        let of_user = json!({ "chainID": "sha256:0", "imageSpec": {
            "architecture": "amd64", "os": "linux",
            "config": {
                "Env": ["PATH=/"], "User": "alice:staff", "WorkingDir": "work",
                "Entrypoint": ["/run"], "Cmd": ["a", "b c"],
            },
            "rootfs": { "type": "layers", "diff_ids": [] },
        }});
        let config = ImageConfig::read(&info(of_user)).unwrap();
        assert_eq!(
            (config.user.as_str(), config.working_dir.as_str()),
            ("alice:staff", "work")
        );
        assert_eq!(config.chain_id, "sha256:0");
        assert_eq!(config.command(), ["/run", "a", "b c"]);
        let of_root = json!({ "imageSpec": { "config": {} } });
        assert_eq!(ImageConfig::read(&info(of_root)).unwrap().user, "");
        assert!(ImageConfig::read(&HashMap::new()).is_err());
    }
}
