//! What a test cannot do without. A test that lacks something says what, and passes as skipped:
//! `skipped: <test>: needs <capability>` on the standard error stream.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A capability of the host, found by trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// /dev/fuse opens for reading and writing, and this process may mount.
    Fuse,
    /// Root of the host, not only of a user namespace.
    Root,
    /// An ordinary user may make user namespaces.
    UserNs,
    /// The kernel's overlay mounts here, in the mode that fits the privilege.
    KernelOverlay,
    /// User namespaces can be made, whatever ids they map.
    AnyUserNs,
}

impl Need {
    /// Whether it is there.
    pub fn met(self) -> bool {
        static FOUND: [OnceLock<bool>; 5] = [const { OnceLock::new() }; 5];
        *FOUND[self as usize].get_or_init(|| match self {
            Need::Fuse => fuse(),
            Need::Root => super::model::Who::me().privileged,
            // An ordinary user maps one id only, and the kit's files have several owners.
            Need::UserNs => user_namespaces() && rustix::process::geteuid().is_root(),
            Need::KernelOverlay => kernel_overlay(),
            Need::AnyUserNs => user_namespaces(),
        })
    }

    fn text(self) -> &'static str {
        match self {
            Need::Fuse => "Fuse (a usable /dev/fuse and the right to mount)",
            Need::Root => "Root (of the host)",
            Need::UserNs => "UserNs (a user namespace with a range of ids, which root maps)",
            Need::KernelOverlay => "KernelOverlay (the kernel's overlay filesystem)",
            Need::AnyUserNs => "AnyUserNs (user namespaces)",
        }
    }
}

/// True when all are there; otherwise says which is missing for `test`.
pub fn met(test: &str, needs: &[Need]) -> bool {
    let missing = needs.iter().find(|need| !need.met());
    if let Some(need) = missing {
        eprintln!("skipped: {test}: needs {}", need.text());
    }
    missing.is_none()
}

/// Returns from the test, as skipped, unless all the named capabilities are there:
/// `needs!(Fuse, Root);`
#[macro_export]
macro_rules! needs {
    ($($need:ident),+) => {
        if !$crate::common::needs::met($crate::this_test!(), &[$($crate::common::needs::Need::$need),+]) {
            return;
        }
    };
}

/// The full name of the enclosing test, as the test runner takes it.
#[macro_export]
macro_rules! this_test {
    () => {{
        fn here() {}
        $crate::common::needs::test_name(std::any::type_name_of_val(&here))
    }};
}

/// `main::overlay_model::some_test::here` -> `overlay_model::some_test`.
pub fn test_name(here: &str) -> &str {
    let here = here.strip_suffix("::here").unwrap_or(here);
    here.split_once("::").map_or(here, |(_, rest)| rest)
}

fn fuse() -> bool {
    std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok()
        && rustix::process::geteuid().is_root()
}

fn user_namespaces() -> bool {
    let mut command = Command::new("/bin/true");
    let privileged = super::model::Who::me().privileged;
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(move || {
            if privileged && libc::setuid(super::rootless::BASE) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.stdin(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn kernel_overlay() -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let sandbox = super::sandbox::Sandbox::new();
    let lowers = [sandbox.lower(1)];
    super::mount::kernel(&lowers, Some((&sandbox.upper(), &sandbox.work())), "", &sandbox.merged())
        .is_ok()
}
