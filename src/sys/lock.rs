//! Locks between processes: they belong to the open file, so that neither another descriptor nor another thread of the
//! same process takes them away (`F_OFD_SETLK`, fcntl(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Takes the exclusive lock of an open file, which ends with its last descriptor. With `wait` it waits for whoever has
/// it; without, false means that somebody has.
pub fn lock_file(file: impl AsFd, wait: bool) -> io::Result<bool> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    loop {
        // SAFETY: the descriptor is open for the call, which only reads the structure.
        let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw const whole) };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EACCES) if !wait => return Ok(false),
            _ => return Err(error),
        }
    }
}
