//! The users of the box, from its `/etc/passwd` and `/etc/group`.
//!
//! A command or a file operation may be another user's than boxd's own. boxd must be root for that. A
//! uid that `/etc/passwd` does not name has gid 0, no other groups and the home `/`, as in Docker.
//!
//! The box's user is boxd's own, unless a claim gives the box another one. Then that one is in the place of
//! boxd's own in every rule: as if boxd had been started by it.
//!
//! * I1. The files belong to the box: at most [`MAX_FILE_BYTES`] of each are read, only of a regular
//!   file, and lines that cannot be parsed are skipped.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use agentbox_contracts::error::{ErrorCode, shortened};
use nix::unistd::{getegid, geteuid};

use crate::regular_file;

/// The longest part of `/etc/passwd` and of `/etc/group` that is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The most supplementary groups of a user; the kernel allows 65,536.
const MAX_GROUPS: usize = 1024;
/// The longest name that metadata shows, in characters.
const MAX_NAME_CHARACTERS: usize = 64;

/// The box's user, if a claim has given it another one than boxd's own.
static GIVEN: OnceLock<User> = OnceLock::new();

/// A user of the box who is not boxd's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// Empty when `/etc/passwd` does not name the uid.
    pub name: String,
    pub home: Option<PathBuf>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("user: `{}` does not exist in the environment", shortened(.0))]
    NotFound(String),
    #[error(
        "user: the environment runs as uid {own}, and only root may act as another user, is `{}`",
        shortened(.user)
    )]
    NotAllowed { user: String, own: u32 },
}

impl UserError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::UserNotFound,
            Self::NotAllowed { .. } => ErrorCode::UserNotAllowed,
        }
    }
}

impl User {
    /// The user that `text` names: `name`, `uid`, `name:group` or `uid:gid`; for an empty text the box's.
    /// `None` for boxd's own.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn resolve(text: &str) -> Result<Option<Self>, UserError> {
        let given = Self::of_box();
        if text.is_empty() {
            return Ok(given);
        }
        let own = match &given {
            Some(given) => (given.uid, given.gid),
            None => (geteuid().as_raw(), getegid().as_raw()),
        };
        let other = Accounts::read().resolve(text, own)?;
        Ok(other.or(given))
    }

    /// The box's user; `None`: boxd's own.
    #[must_use]
    pub fn of_box() -> Option<Self> {
        GIVEN.get().cloned()
    }

    /// The user whom a claim gives the box: with the groups and the home that a container runtime finds for
    /// its uid. `None`: boxd's own.
    ///
    /// # Errors
    /// [`UserError`] when boxd is not root.
    pub fn with_uid(uid: u32) -> Result<Option<Self>, UserError> {
        Accounts::read().with_uid(uid, geteuid().as_raw())
    }

    /// Makes this user the box's. A second call does nothing.
    pub fn give_to_box(self) {
        let _ = GIVEN.set(self);
    }

    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.home.clone().unwrap_or_else(|| PathBuf::from("/"))
    }

    /// The home of boxd's own user.
    #[must_use]
    pub fn own_home() -> PathBuf {
        let accounts = Accounts::read();
        let account = accounts.of_uid(geteuid().as_raw());
        account
            .and_then(Account::absolute_home)
            .unwrap_or_else(|| PathBuf::from("/"))
    }

    /// The variables that a command of this user has unless its caller sets them. Those of the box's user
    /// are the box's.
    #[must_use]
    pub fn variables(&self) -> Vec<(OsString, OsString)> {
        if GIVEN.get() == Some(self) {
            return Vec::new();
        }
        let mut variables = vec![("HOME".into(), self.home().into_os_string())];
        if !self.name.is_empty() {
            variables.push(("USER".into(), self.name.clone().into()));
        }
        variables
    }

    /// Whether the permission bits let this user execute a program, or pass through a directory.
    /// Access control lists are not considered.
    #[must_use]
    pub fn may_execute(&self, mode: u32, owner: u32, group: u32) -> bool {
        if self.uid == 0 {
            return mode & 0o111 != 0;
        }
        let bit = if owner == self.uid {
            0o100
        } else if group == self.gid || self.groups.contains(&group) {
            0o010
        } else {
            0o001
        };
        mode & bit != 0
    }
}

/// The names of the box's users and groups, for metadata.
pub struct Names(Accounts);

impl Names {
    /// Reads the files once.
    #[must_use]
    pub fn read() -> Self {
        Self(Accounts::read())
    }

    /// The name of a uid; empty when there is none.
    #[must_use]
    pub fn user(&self, uid: u32) -> String {
        let account = self.0.users.iter().find(|account| account.uid == uid);
        account.map_or_else(String::new, |account| bounded(&account.name))
    }

    /// The name of a gid; empty when there is none.
    #[must_use]
    pub fn group(&self, gid: u32) -> String {
        let group = self.0.groups.iter().find(|group| group.gid == gid);
        group.map_or_else(String::new, |group| bounded(&group.name))
    }

    /// The uid of a name or of a number.
    #[must_use]
    pub fn uid(&self, text: &str) -> Option<u32> {
        let account = self.0.users.iter().find(|account| account.name == text);
        account.map_or_else(|| number(text), |account| Some(account.uid))
    }

    /// The gid of a name or of a number.
    #[must_use]
    pub fn gid(&self, text: &str) -> Option<u32> {
        self.0.gid(text)
    }
}

fn bounded(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARACTERS).collect()
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl Account {
    fn absolute_home(&self) -> Option<PathBuf> {
        let is_absolute = self.home.starts_with('/');
        is_absolute.then(|| PathBuf::from(&self.home))
    }
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The parsed files.
#[derive(Default)]
struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

impl Accounts {
    fn read() -> Self {
        Self::parse(&read("/etc/passwd"), &read("/etc/group"))
    }

    /// passwd(5): `name:password:uid:gid:comment:home:shell`. group(5): `name:password:gid:members`.
    fn parse(passwd: &str, group: &str) -> Self {
        let user = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
            let uid = number(fields.nth(1)?)?;
            let gid = number(fields.next()?)?;
            let home = fields.nth(1).unwrap_or_default().to_owned();
            Some(Account {
                name,
                uid,
                gid,
                home,
            })
        };
        let group_of = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
            let gid = number(fields.nth(1)?)?;
            let members = fields.next().unwrap_or_default().split(',');
            Some(Group {
                name,
                gid,
                members: members.map(str::to_owned).collect(),
            })
        };
        Self {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(group_of).collect(),
        }
    }

    fn resolve(&self, text: &str, own: (u32, u32)) -> Result<Option<User>, UserError> {
        let not_found = || UserError::NotFound(text.to_owned());
        let (name, group) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (text, None),
        };
        let account = self.users.iter().find(|account| account.name == name);
        let account = account.or_else(|| self.of_uid(number(name)?));
        let uid = match account {
            Some(account) => account.uid,
            None => number(name).ok_or_else(not_found)?,
        };
        let given_gid = group
            .map(|group| self.gid(group).ok_or_else(not_found))
            .transpose()?;
        if uid == own.0 && given_gid.is_none_or(|gid| gid == own.1) {
            return Ok(None);
        }
        if own.0 != 0 {
            return Err(UserError::NotAllowed {
                user: text.to_owned(),
                own: own.0,
            });
        }
        Ok(Some(self.user(uid, account, given_gid)))
    }

    fn with_uid(&self, uid: u32, own: u32) -> Result<Option<User>, UserError> {
        if uid == u32::MAX {
            return Err(UserError::NotFound(uid.to_string()));
        }
        if uid == own {
            return Ok(None);
        }
        if own != 0 {
            return Err(UserError::NotAllowed {
                user: uid.to_string(),
                own,
            });
        }
        Ok(Some(self.user(uid, self.of_uid(uid), None)))
    }

    /// The user of a uid, whose account is `account`; with a given group, that group only.
    fn user(&self, uid: u32, account: Option<&Account>, given_gid: Option<u32>) -> User {
        let gid = given_gid
            .or(account.map(|account| account.gid))
            .unwrap_or(0);
        let groups = match (account, given_gid) {
            (Some(account), None) => self.groups_of(&account.name),
            _ => Vec::new(),
        };
        User {
            uid,
            gid,
            groups,
            name: account.map_or_else(String::new, |account| account.name.clone()),
            home: account.and_then(Account::absolute_home),
        }
    }

    fn of_uid(&self, uid: u32) -> Option<&Account> {
        self.users.iter().find(|account| account.uid == uid)
    }

    fn gid(&self, text: &str) -> Option<u32> {
        let group = self.groups.iter().find(|group| group.name == text);
        group.map_or_else(|| number(text), |group| Some(group.gid))
    }

    fn groups_of(&self, name: &str) -> Vec<u32> {
        let of_user = self
            .groups
            .iter()
            .filter(|group| group.members.iter().any(|member| member == name));
        of_user.map(|group| group.gid).take(MAX_GROUPS).collect()
    }
}

/// A uid or gid. The largest number is no id: system calls use it for "unchanged".
fn number(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = is_number.then(|| text.parse().ok()).flatten()?;
    (id != u32::MAX).then_some(id)
}

/// The text of a file; empty when it cannot be read.
fn read(path: &str) -> String {
    let bytes = regular_file::read(Path::new(path), MAX_FILE_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
