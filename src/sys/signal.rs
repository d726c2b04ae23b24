//! Signals as values: blocked first, then taken one at a time. No handler ever runs.

use std::io;
use std::mem::MaybeUninit;

/// The signals that a process which stands before another takes and passes on, and the one that
/// tells of a child's end.
const TAKEN: [i32; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCHLD,
];

/// A signal that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Whether the kernel sent it, as it does for keys typed at a terminal: the whole process group
    /// has it already, so it is not to be passed on.
    pub from_kernel: bool,
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given; sigaddset changes an initialised set and
    // refuses numbers that are no signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

fn set_mask(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: both pointers are to an initialised set or null, which the call allows.
    match unsafe { libc::sigprocmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Holds back the signals that [`next_signal`] takes. SIGCHLD gets its default action, since an
/// inherited "ignore" would hide children's status.
pub fn block_signals() -> io::Result<()> {
    // SAFETY: the default action is no function of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    set_mask(libc::SIG_BLOCK, &set_of(&TAKEN))
}

/// Lets every signal through again.
pub fn unblock_signals() -> io::Result<()> {
    set_mask(libc::SIG_SETMASK, &set_of(&[]))
}

/// Waits for the next of the blocked signals.
pub fn next_signal() -> io::Result<Received> {
    let set = set_of(&TAKEN);
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    loop {
        // SAFETY: the set is initialised and the call fills the record when it succeeds.
        let signal = unsafe { libc::sigwaitinfo(&raw const set, info.as_mut_ptr()) };
        if signal > 0 {
            // SAFETY: the call has succeeded, so the record is filled.
            let code = unsafe { info.assume_init() }.si_code;
            return Ok(Received { signal, from_kernel: code == libc::SI_KERNEL });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
