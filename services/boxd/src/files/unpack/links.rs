//! The links of an archive. One that replaces a file or a link does so by a rename.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Stat, linkat, symlinkat};
use rustix::io::Errno;

use super::super::failure::{OnPath as _, Result};
use super::super::location::{Location, file_type, open_directory};
use super::super::tar::Entry;
use super::super::temporary::Hidden;
use super::names::{check_target, names};
use super::{Unpacking, refused};

impl Unpacking<'_> {
    pub fn unpack_symbolic_link(
        &self,
        entry: &Entry,
        directory: OwnedFd,
        name: &[u8],
        names: &[Vec<u8>],
    ) -> Result<()> {
        check_target(&entry.link, names.len() - 1).map_err(|rule| refused(entry, rule))?;
        self.check_replaceable(entry, &directory, name, true)?;
        let made = self.make_link(entry, directory, name, |directory, name| {
            symlinkat(entry.link.as_slice(), directory, name)
        })?;
        self.set_owner(entry, &made.directory, name, FileType::Symlink)
    }

    pub fn unpack_hard_link(&self, entry: &Entry, directory: OwnedFd, name: &[u8]) -> Result<()> {
        let target = names(&entry.link).map_err(|rule| refused(entry, rule))?;
        let Some((last, parents)) = target.split_last() else {
            return Err(refused(entry, "is a hard link to no file"));
        };
        let mut from = open_directory(&self.root, b".").on(self.path)?;
        for parent in parents {
            from = self.enter(entry, &from, parent, false)?;
        }
        let is_file = |stat: Stat| file_type(&stat).is_file();
        let found = self.existing(entry, &from, last)?;
        let Some(found) = found.filter(|stat| is_file(*stat)) else {
            let rule = "is a hard link to something that is not a file of the directory";
            return Err(refused(entry, rule));
        };
        let present = self.existing(entry, &directory, name)?;
        if present
            .is_some_and(|present| (present.st_dev, present.st_ino) == (found.st_dev, found.st_ino))
        {
            return Ok(());
        }
        self.check_replaceable(entry, &directory, name, false)?;
        self.make_link(entry, directory, name, |directory, name| {
            linkat(&from, last.as_slice(), directory, name, AtFlags::empty())
        })?;
        Ok(())
    }

    /// Creates a link by `make`; a file or link that it replaces stays until then.
    fn make_link(
        &self,
        entry: &Entry,
        directory: OwnedFd,
        name: &[u8],
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<Location> {
        let target = Location {
            directory,
            name: name.to_vec(),
            path: self.path_of(entry),
        };
        match make(&target.directory, name) {
            Ok(()) => return Ok(target),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed(entry, errno)),
        }
        let hidden = Hidden::note(&target).on(&target.path)?;
        make(&target.directory, hidden.name()).map_err(|errno| self.failed(entry, errno))?;
        let published = hidden.publish(true);
        published.map_err(|errno| self.not_replaced(entry, errno))?;
        Ok(target)
    }
}
