//! Rights that a daemon gives up before it serves anybody: writing outside its own folders, starting programs if it never
//! needs to, and sending signals to other processes (Landlock, landlock(7)).
//!
//! It comes on top of what a unit file does, and works in containers too. Rules belong to folders as they are when the
//! process starts, not to their names. So where a folder may be mounted or replaced later, writing is allowed from the
//! one above it on. A process that takes over from this one is confined as this one is.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, RestrictSelfError, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest rules that are asked for (Linux 6.12); an older kernel enforces those that it knows.
const RULES: ABI = ABI::V6;

/// What a process may still do.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    writes: Vec<PathBuf>,
    runs: bool,
}

/// What became of it.
#[derive(Debug)]
pub enum Confined {
    /// Nothing else can be written to than what is in these folders.
    To(Confinement),
    /// The kernel has no Landlock, or too many processes have taken over from each other to add rules. The latter are
    /// confined as the first one was.
    Not(String),
}

impl fmt::Display for Confined {
    /// As the first line of a log says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(needs) => write!(f, "confined by Landlock: writes only below {}", needs.shown()),
            Self::Not(why) => write!(f, "not confined by Landlock: {why}"),
        }
    }
}

impl Confinement {
    /// Allows writing in `folder`, which nobody replaces or mounts while the process runs. Where it does not exist yet, in
    /// the first one above it that does.
    #[must_use]
    pub fn writing(mut self, folder: &Path) -> Self {
        self.writes.extend(existing(folder).filter(|folder| !self.writes.contains(folder)));
        self
    }

    /// Allows writing in `folder`, which may be a link, and may be replaced by another one, as when it is put back from a
    /// copy.
    #[must_use]
    pub fn writing_replaceable(self, folder: &Path) -> Self {
        self.writing(folder).writing(folder.parent().unwrap_or(folder))
    }

    /// Allows writing in `folder`, which may be mounted or replaced at any time, or hang now.
    #[must_use]
    pub fn writing_mounted(mut self, folder: &Path) -> Self {
        let (told, answer) = mpsc::channel();
        let (path, looked) = (folder.to_owned(), folder.to_owned());
        // Not started: then it takes no time either.
        let _ = thread::Builder::new()
            .name("looks for mounts".into())
            .spawn(move || told.send(above_mount(&path)));
        let above = answer.recv_timeout(PATIENCE).ok().flatten();
        self.writes.push(above.unwrap_or_else(|| looked.ancestors().last().unwrap_or(&looked).to_owned()));
        self
    }

    /// Allows starting programs, which are confined as this one is.
    #[must_use]
    pub fn running_programs(self) -> Self {
        Self { runs: true, ..self }
    }

    /// Confines the calling thread and all that it starts. Call it while there is no other.
    ///
    /// # Errors
    /// The kernel refuses rules that it says it knows.
    pub fn apply(self) -> Result<Confined, RulesetError> {
        let mut read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
        if self.runs {
            read |= AccessFs::Execute;
        }
        let handled = AccessFs::from_all(RULES) & !AccessFs::IoctlDev;
        let write = handled & !AccessFs::Execute;
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(handled)?
            .scope(Scope::Signal)?
            .create()?
            .add_rules(path_beneath_rules(["/"], read))?
            .add_rules(path_beneath_rules(&self.writes, write))?
            .add_rules(path_beneath_rules(["/dev/null"], AccessFs::WriteFile | AccessFs::Truncate))?;
        match ruleset.restrict_self() {
            Ok(status) if status.ruleset == RulesetStatus::NotEnforced => {
                Ok(Confined::Not("this kernel has no Landlock, or it is turned off".into()))
            }
            Ok(_) => Ok(Confined::To(self)),
            Err(RulesetError::RestrictSelf(RestrictSelfError::RestrictSelfCall { source, .. }))
                if source.raw_os_error() == Some(TOO_MANY) =>
            {
                Ok(Confined::Not("as the process that this one took over from".into()))
            }
            Err(error) => Err(error),
        }
    }

    /// The folders that can be written to, in words.
    fn shown(&self) -> String {
        let folders: Vec<_> = self.writes.iter().map(|folder| folder.display().to_string()).collect();
        if folders.is_empty() { "nothing".into() } else { folders.join(", ") }
    }
}

/// E2BIG: each process that takes over adds a layer, and there are at most 16 (landlock_restrict_self(2)).
const TOO_MANY: i32 = 7;

/// How long a folder on a mount that hangs is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The path, or the first one above it that exists.
fn existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

/// What is above the folder, and above the mount that it is on.
fn above_mount(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    let found = existing(&folder)?.canonicalize().ok()?;
    let above = if found == folder || folder.exists() { found.parent().unwrap_or(&found) } else { &found };
    let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
    let (mut above, of_root) = (above, device(Path::new("/")));
    // Another file system than the root's comes and goes as a whole.
    while device(above) != of_root {
        above = above.parent()?;
    }
    Some(above.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_comes_later_is_covered_by_the_one_above() {
        let folder = std::env::temp_dir();
        let later = folder.join("mesh-no-such-folder/state");
        assert_eq!(Confinement::default().writing(&later).writes, std::slice::from_ref(&folder));
        assert_eq!(Confinement::default().writing_mounted(Path::new("/")).writes, [Path::new("/")]);
    }
}
