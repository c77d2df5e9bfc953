//! Opens and closes a file many times and prints the nanoseconds of one turn, the least of ten
//! rounds. In the VM whose clock counts instructions that is the number of instructions.
//!
//! usage: open-loop TURNS FILE...
//!
//! LANDLOCK=N in the environment: in a Landlock domain with N rules that allow reading, the first for
//! /w, the others for /srv/ruled/0 and so on.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

/// `LANDLOCK_ACCESS_FS_READ_FILE` of linux/landlock.h, and the numbers of the system calls.
const READ_FILE: u64 = 1 << 2;
const CREATE_RULESET: i64 = 444;
const ADD_RULE: i64 = 445;
const RESTRICT_SELF: i64 = 446;
const PRCTL: i64 = 157;
const NO_NEW_PRIVS: u64 = 38;

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    fd: i32,
}

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn landlock(rules: usize) -> io::Result<()> {
    let handled = READ_FILE;
    // SAFETY: the kernel reads eight bytes from the address of a u64.
    let set = checked(unsafe { syscall(CREATE_RULESET, &raw const handled, 8usize, 0u64) })?;
    for n in 0..rules {
        let path = if n == 0 { "/w".to_owned() } else { format!("/srv/ruled/{}", n - 1) };
        fs::create_dir_all(&path)?;
        let dir = File::open(path)?;
        let beneath = PathBeneath { allowed: READ_FILE, fd: dir.as_raw_fd() };
        // SAFETY: the kernel reads the struct that rule type 1 has.
        checked(unsafe { syscall(ADD_RULE, set, 1u64, &raw const beneath, 0u64) })?;
    }
    // SAFETY: numbers only.
    checked(unsafe { syscall(PRCTL, NO_NEW_PRIVS, 1u64, 0u64, 0u64, 0u64) })?;
    // SAFETY: numbers only.
    checked(unsafe { syscall(RESTRICT_SELF, set, 0u64) }).map(drop)
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let turns: u32 = args.next().and_then(|n| n.parse().ok()).unwrap_or(1000);
    if let Some(rules) = std::env::var("LANDLOCK").ok().and_then(|n| n.parse().ok()) {
        landlock(rules)?;
    }
    for file in args {
        let mut least = u128::MAX;
        for _ in 0..10 {
            let start = Instant::now();
            for _ in 0..turns {
                drop(File::open(&file)?);
            }
            least = least.min(start.elapsed().as_nanos() / u128::from(turns));
        }
        println!("{least}");
    }
    Ok(())
}
