//! A library for LD_PRELOAD that takes the place of the C library's functions that change files. It counts those below
//! one folder and disturbs some of them. The campaign sets it up by these variables:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `SHIM_ROOT` | the folder, without symbolic links; the others have no effect without it |
//! | `SHIM_FILES` | count only paths that contain one of these texts, separated by commas; empty: all |
//! | `SHIM_OPS` | count only these: `open` (to write), `write`, `fsync`, `rename`, `mkdir`, `unlink`; empty: all |
//! | `SHIM_RANK` | the rank that is disturbed; empty: every rank |
//! | `SHIM_FIRST`, `SHIM_COUNT` | the first operation that is disturbed, from 0, and how many are |
//! | `SHIM_ACTION` | `signal:N` to the process, `fail:ERRNO`, `pause:MILLISECONDS`, `power` |
//! | `SHIM_LOG` | a folder, for a file a rank with a line for each operation below the root |
//! | `SHIM_SHADOW` | a [`Shadow`] of the flushes; at `power` the file `off` appears in it, and nothing goes on |
//! | `SHIM_FORGETS` | flushes of paths that contain this text do nothing: a fault of the program that must be noticed |
//!
//! Each function makes the system call by itself, so nothing has to be looked up in the C library.

mod shadow;

use nix::errno::Errno;
use nix::libc::{self, AT_FDCWD, c_char, c_int, c_long, c_uint, iovec, off_t, size_t, ssize_t};
use shadow::Shadow;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

struct Shim {
    root: PathBuf,
    files: Vec<String>,
    ops: Vec<String>,
    disturbed: std::ops::Range<u64>,
    action: Action,
    log: Option<PathBuf>,
    shadow: Option<(Shadow, PathBuf)>,
    forgets: Option<String>,
    seen: AtomicU64,
}

#[derive(Clone, Copy)]
enum Action {
    Signal(c_int),
    Fail(Errno),
    Pause(Duration),
    Power,
}

/// The functions of the C library have no other place for their state.
static SHIM: OnceLock<Option<Shim>> = OnceLock::new();

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn list(name: &str) -> Vec<String> {
    variable(name).map_or(Vec::new(), |value| value.split(',').map(String::from).collect())
}

impl Shim {
    fn from_environment() -> Option<Shim> {
        let root = variable("SHIM_ROOT")?.into();
        let number = |name: &str| variable(name).map_or(0, |value| value.parse().expect("a number"));
        let rank = variable("OMPI_COMM_WORLD_RANK").unwrap_or("0".into());
        let is_disturbed = variable("SHIM_RANK").is_none_or(|disturbed| disturbed == rank);
        let (first, count) = (number("SHIM_FIRST"), if is_disturbed { number("SHIM_COUNT") } else { 0 });
        Some(Shim {
            root,
            files: list("SHIM_FILES"),
            ops: list("SHIM_OPS"),
            disturbed: first..first.saturating_add(count),
            action: Action::parse(&variable("SHIM_ACTION").unwrap_or("pause:0".into())),
            log: variable("SHIM_LOG").map(|dir| Path::new(&dir).join(rank)),
            shadow: variable("SHIM_SHADOW").map(|dir| (Shadow((&dir).into()), Path::new(&dir).join("off"))),
            forgets: variable("SHIM_FORGETS"),
            seen: AtomicU64::new(0),
        })
    }

    /// Called before each operation; the error is the one with which it fails.
    fn before(&self, op: &str, path: &Path) -> Result<(), Errno> {
        self.shadow.iter().filter(|(_, off)| off.exists()).for_each(|_| stand_still());
        self.write_log(op, path);
        let text = path.to_string_lossy();
        let among = |all: &[String], is: &dyn Fn(&String) -> bool| all.is_empty() || all.iter().any(is);
        let counts = among(&self.files, &|file| text.contains(file)) && among(&self.ops, &|name| name == op);
        match counts && self.disturbed.contains(&self.seen.fetch_add(1, Relaxed)) {
            true => self.disturb(),
            false => Ok(()),
        }
    }

    fn disturb(&self) -> Result<(), Errno> {
        match self.action {
            // SAFETY: it sends a signal and touches no memory.
            Action::Signal(signal) => _ = unsafe { libc::kill(libc::getpid(), signal) },
            Action::Fail(errno) => return Err(errno),
            Action::Pause(duration) => std::thread::sleep(duration),
            Action::Power => {
                let (_, off) = self.shadow.as_ref().expect("power is lost where a shadow is kept");
                File::create(off).expect("the shadow can be written");
                stand_still()
            }
        }
        Ok(())
    }

    fn write_log(&self, op: &str, path: &Path) {
        let Some(log) = &self.log else { return };
        let line = format!("{op} {}\n", path.strip_prefix(&self.root).unwrap_or(path).display());
        let file = File::options().create(true).append(true).open(log);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the log can be written");
    }

    fn flushed(&self, path: &Path) {
        let Some((shadow, _)) = &self.shadow else { return };
        // The file may have been removed since then.
        let _ = shadow.keep(path);
    }

    fn forgets(&self, path: &Path) -> bool {
        self.forgets.as_ref().is_some_and(|text| path.to_string_lossy().contains(text))
    }
}

impl Action {
    fn parse(text: &str) -> Action {
        let (name, number) = text.split_once(':').unwrap_or((text, "0"));
        let number: i32 = number.parse().expect("a number");
        match name {
            "signal" => Action::Signal(number),
            "fail" => Action::Fail(Errno::from_raw(number)),
            "pause" => Action::Pause(Duration::from_millis(number as u64)),
            "power" => Action::Power,
            _ => panic!("SHIM_ACTION={text}"),
        }
    }
}

/// The campaign kills this process.
fn stand_still() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The path of an open file, also where it was renamed since then.
fn of(fd: c_int) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

/// The path that the C library is asked for.
fn at(dir: c_int, path: *const c_char) -> PathBuf {
    // SAFETY: the caller of the C library passes a string that ends with a zero.
    let path = Path::new(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let base = |fd: c_int| if fd == AT_FDCWD { std::env::current_dir().unwrap_or_default() } else { of(fd) };
    if path.is_absolute() { path.into() } else { base(dir).join(path) }
}

/// Makes `call` unless it has to fail. Calls for other paths only pass through here.
fn disturbed(op: &str, path: impl FnOnce() -> PathBuf, call: impl FnOnce() -> c_long) -> c_long {
    let Some(shim) = SHIM.get_or_init(Shim::from_environment).as_ref().filter(|_| !op.is_empty()) else {
        return call();
    };
    let path = path();
    if !path.starts_with(&shim.root) {
        return call();
    }
    if let Err(errno) = shim.before(op, &path) {
        errno.set();
        return -1;
    }
    if op == "fsync" && shim.forgets(&path) {
        return 0;
    }
    let result = call();
    if op == "fsync" && result == 0 {
        shim.flushed(&path);
    }
    result
}

/// Defines functions of the C library: the operation's name, the path that it changes, and its system call.
macro_rules! functions {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty = $op:expr, $path:expr, $call:ident($($value:expr),*);)*) => {
        $(
            /// # Safety
            /// As the C library's function of this name.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> $out {
                // SAFETY: the caller keeps the rules of the system call, whose arguments are passed on unchanged.
                disturbed($op, || $path, || unsafe { libc::syscall(libc::$call, $($value),*) }) as $out
            }
        )*
    };
}

functions! {
    write(fd: c_int, data: *const u8, n: size_t) -> ssize_t = "write", of(fd), SYS_write(fd, data, n);
    writev(fd: c_int, parts: *const iovec, n: c_int) -> ssize_t = "write", of(fd), SYS_writev(fd, parts, n);
    pwrite64(fd: c_int, data: *const u8, n: size_t, to: off_t) -> ssize_t
        = "write", of(fd), SYS_pwrite64(fd, data, n, to);
    ftruncate64(fd: c_int, n: off_t) -> c_int = "write", of(fd), SYS_ftruncate(fd, n);
    copy_file_range(from: c_int, at: *mut off_t, fd: c_int, to: *mut off_t, n: size_t, flags: c_uint) -> ssize_t
        = "write", of(fd), SYS_copy_file_range(from, at, fd, to, n, flags);
    sendfile64(fd: c_int, from: c_int, at: *mut off_t, n: size_t) -> ssize_t
        = "write", of(fd), SYS_sendfile(fd, from, at, n);
    fsync(fd: c_int) -> c_int = "fsync", of(fd), SYS_fsync(fd);
    fdatasync(fd: c_int) -> c_int = "fsync", of(fd), SYS_fdatasync(fd);
    rename(from: *const c_char, to: *const c_char) -> c_int
        = "rename", at(AT_FDCWD, to), SYS_renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
    renameat2(dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_uint) -> c_int
        = "rename", at(to_dir, to), SYS_renameat2(dir, from, to_dir, to, flags);
    mkdir(path: *const c_char, mode: c_uint) -> c_int = "mkdir", at(AT_FDCWD, path), SYS_mkdirat(AT_FDCWD, path, mode);
    rmdir(path: *const c_char) -> c_int
        = "unlink", at(AT_FDCWD, path), SYS_unlinkat(AT_FDCWD, path, libc::AT_REMOVEDIR);
    unlink(path: *const c_char) -> c_int = "unlink", at(AT_FDCWD, path), SYS_unlinkat(AT_FDCWD, path, 0);
    unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int
        = "unlink", at(dir, path), SYS_unlinkat(dir, path, flags);
    open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int
        = opening(flags), at(AT_FDCWD, path), SYS_openat(AT_FDCWD, path, flags, mode);
    open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int
        = opening(flags), at(AT_FDCWD, path), SYS_openat(AT_FDCWD, path, flags, mode);
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int
        = opening(flags), at(dir, path), SYS_openat(dir, path, flags, mode);
}

/// Opening to read changes nothing and is not counted.
fn opening(flags: c_int) -> &'static str {
    if flags & (libc::O_WRONLY | libc::O_RDWR) == 0 { "" } else { "open" }
}
