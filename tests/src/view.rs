//! A second view of a folder, as a network mount is one: a FUSE file system that passes on what registryd does,
//! locks included, and that a test can make hang or fail.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    SessionACL, TimeOrNow, WriteFlags,
};

use crate::network::SYSTEM_PATH;
use crate::process::run;

/// How a [`View`] behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As the folder behind it.
    Passing,
    /// Nothing is answered.
    Hanging,
    /// Nothing that changes something is answered; reading goes on.
    WritesHanging,
    /// Everything fails with this error number.
    Failing(i32),
}

/// No hang is longer: a process that waits for a file system can't be ended before it answers.
const HANG_LIMIT: Duration = Duration::from_secs(60);
/// Everything is asked anew, as NFS does on opening.
const TTL: Duration = Duration::ZERO;

/// The mounted view; unmounted with this value. Declare it after the nodes that use it, so that it goes first.
pub struct View {
    gate: Arc<Gate>,
    path: PathBuf,
    session: Option<BackgroundSession>,
}

impl View {
    /// Shows `folder` at `path`, which is created. `None`, with a loud line, where this user cannot mount.
    pub fn mount(folder: &Path, path: &Path) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let gate = Arc::new(Gate { mode: Mutex::new(Mode::Passing), changed: Condvar::new() });
        let passthrough = Passthrough {
            folder: folder.into(),
            gate: gate.clone(),
            names: Mutex::default(),
            files: Mutex::default(),
            next: AtomicU64::new(1),
        };
        let mut config = Config::default();
        config.acl = SessionACL::All;
        // One of them may hang in writing.
        config.n_threads = Some(2);
        config.mount_options = vec![MountOption::FSName("mesh-test".into()), MountOption::AutoUnmount];
        match fuser::spawn_mount(passthrough, path, &config) {
            Ok(session) => Some(Self { gate, path: path.into(), session: Some(session) }),
            Err(error) => {
                crate::skipped(&format!("no FUSE mounts here ({error}): a mount that hangs is not tested"));
                None
            }
        }
    }

    /// A handle for another thread, which may make it hang and go on.
    pub fn handle(&self) -> Handle {
        Handle(self.gate.clone())
    }

    /// Behaves like this from now on; what hangs goes on.
    pub fn set(&self, mode: Mode) {
        self.gate.set(mode);
    }
}

/// Changes how a [`View`] behaves.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Gate>);

impl Handle {
    /// As [`View::set`].
    pub fn set(&self, mode: Mode) {
        self.0.set(mode);
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.set(Mode::Failing(libc::EIO));
        run(Command::new("umount").env("PATH", SYSTEM_PATH).arg("--lazy").arg(&self.path));
        drop(self.session.take());
    }
}

#[derive(Debug)]
struct Gate {
    mode: Mutex<Mode>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
        self.changed.notify_all();
    }

    /// Returns when the operation may go on.
    fn pass(&self, changes: bool) -> Result<(), Errno> {
        let held = |mode: &mut Mode| *mode == Mode::Hanging || (changes && *mode == Mode::WritesHanging);
        let (mode, waited) =
            self.changed.wait_timeout_while(self.mode.lock().unwrap(), HANG_LIMIT, held).unwrap();
        match *mode {
            Mode::Failing(code) => Err(Errno::from_i32(code)),
            _ if waited.timed_out() => Err(Errno::EIO),
            _ => Ok(()),
        }
    }
}

/// One flat folder. Inode numbers are those of the files behind, but for the root.
struct Passthrough {
    folder: PathBuf,
    gate: Arc<Gate>,
    /// Which name an inode was found under last.
    names: Mutex<HashMap<u64, OsString>>,
    files: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
}

impl Passthrough {
    fn path(&self, name: &OsStr) -> PathBuf {
        self.folder.join(name)
    }

    fn path_of(&self, ino: INodeNo) -> Result<PathBuf, Errno> {
        if ino == INodeNo::ROOT {
            return Ok(self.folder.clone());
        }
        let name = self.names.lock().unwrap().get(&ino.0).cloned().ok_or(Errno::ESTALE)?;
        let path = self.path(&name);
        // Somebody may have put another file there since.
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.ino() == ino.0 => Ok(path),
            _ => Err(Errno::ESTALE),
        }
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<File>, Errno> {
        self.files.lock().unwrap().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn hold(&self, file: File) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.files.lock().unwrap().insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn found(&self, name: &OsStr) -> Result<FileAttr, Errno> {
        let metadata = fs::symlink_metadata(self.path(name))?;
        self.names.lock().unwrap().insert(metadata.ino(), name.into());
        Ok(self.attributes(&metadata))
    }

    fn attributes(&self, metadata: &Metadata) -> FileAttr {
        let at = |seconds: i64, nanos: i64| UNIX_EPOCH + Duration::new(seconds as u64, nanos as u32);
        let root = metadata.is_dir();
        FileAttr {
            ino: if root { INodeNo::ROOT } else { INodeNo(metadata.ino()) },
            size: metadata.len(),
            blocks: metadata.blocks(),
            atime: at(metadata.atime(), metadata.atime_nsec()),
            mtime: at(metadata.mtime(), metadata.mtime_nsec()),
            ctime: at(metadata.ctime(), metadata.ctime_nsec()),
            crtime: UNIX_EPOCH,
            kind: if root { FileType::Directory } else { FileType::RegularFile },
            perm: (metadata.mode() & 0o7777) as u16,
            nlink: metadata.nlink() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// Answers with what the block gives.
macro_rules! answer {
    ($reply:ident, $outcome:expr, $with:expr) => {{
        let attempt = || -> Result<_, Errno> { $outcome };
        match attempt() {
            Ok(value) => $with($reply, value),
            Err(error) => $reply.error(error),
        }
    }};
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it, locks would hold within this view only.
        config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS).map_err(|_| io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.gate.pass(false).and_then(|()| self.found(name)), |reply: ReplyEntry, found| {
            reply.entry(&TTL, &found, Generation(0))
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        answer!(
            reply,
            {
                self.gate.pass(false)?;
                let metadata = match handle {
                    Some(handle) => self.file(handle)?.metadata()?,
                    None => fs::symlink_metadata(self.path_of(ino)?)?,
                };
                Ok(self.attributes(&metadata))
            },
            |reply: ReplyAttr, found| reply.attr(&TTL, &found)
        );
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                let path = self.path_of(ino)?;
                if let Some(size) = size {
                    match handle {
                        Some(handle) => self.file(handle)?.set_len(size)?,
                        None => OpenOptions::new().write(true).open(&path)?.set_len(size)?,
                    }
                }
                if let Some(mode) = mode {
                    fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
                }
                if uid.is_some() || gid.is_some() {
                    chown(&path, uid, gid)?;
                }
                Ok(self.attributes(&fs::symlink_metadata(path)?))
            },
            |reply: ReplyAttr, found| reply.attr(&TTL, &found)
        );
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                Ok(fs::remove_file(self.path(name))?)
            },
            |reply: ReplyEmpty, ()| reply.ok()
        );
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                fs::rename(self.path(name), self.path(new))?;
                self.found(new).map(drop)
            },
            |reply: ReplyEmpty, ()| reply.ok()
        );
    }

    fn link(&self, _: &Request, ino: INodeNo, _: INodeNo, new: &OsStr, reply: ReplyEntry) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                fs::hard_link(self.path_of(ino)?, self.path(new))?;
                self.found(new)
            },
            |reply: ReplyEntry, found| reply.entry(&TTL, &found, Generation(0))
        );
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer!(
            reply,
            {
                let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
                self.gate.pass(write)?;
                let mut options = OpenOptions::new();
                options.read(flags.acc_mode() != OpenAccMode::O_WRONLY).write(write);
                options.truncate(write && flags.0 & libc::O_TRUNC != 0);
                Ok(self.hold(options.open(self.path_of(ino)?)?))
            },
            // Never the page cache: the file behind may change at any time.
            |reply: ReplyOpen, handle| reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO)
        );
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).mode(mode & !umask);
                options.create_new(flags & libc::O_EXCL != 0).truncate(flags & libc::O_TRUNC != 0);
                let file = options.open(self.path(name))?;
                Ok((self.found(name)?, self.hold(file)))
            },
            |reply: ReplyCreate, (found, handle)| reply.created(
                &TTL,
                &found,
                Generation(0),
                handle,
                FopenFlags::FOPEN_DIRECT_IO
            )
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(
            reply,
            {
                self.gate.pass(false)?;
                let mut data = vec![0; size as usize];
                let length = self.file(handle)?.read_at(&mut data, offset)?;
                data.truncate(length);
                Ok(data)
            },
            |reply: ReplyData, data: Vec<u8>| reply.data(&data)
        );
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                Ok(self.file(handle)?.write_at(data, offset)?)
            },
            |reply: ReplyWrite, length| reply.written(length as u32)
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // Its lock goes with it.
        self.files.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                Ok(self.file(handle)?.sync_all()?)
            },
            |reply: ReplyEmpty, ()| reply.ok()
        );
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                Ok(File::open(&self.folder)?.sync_all()?)
            },
            |reply: ReplyEmpty, ()| reply.ok()
        );
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        kind: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // Only flock comes here, since only its capability was asked for, and registryd never blocks in it.
        answer!(
            reply,
            {
                self.gate.pass(true)?;
                let file = self.file(handle)?;
                if kind == libc::F_UNLCK {
                    return Ok(file.unlock()?);
                }
                file.try_lock().map_err(|error| match error {
                    TryLockError::WouldBlock => Errno::EAGAIN,
                    TryLockError::Error(error) => error.into(),
                })
            },
            |reply: ReplyEmpty, ()| reply.ok()
        );
    }
}
