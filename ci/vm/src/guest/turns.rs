//! Shorter turns for the virtual CPUs.
//!
//! When its clock counts instructions, QEMU runs one CPU after the other, each for its part of the time to the next
//! timer. So what is sent to a CPU, a timer's interrupt too, waits for that CPU's turn: for 30 us times its place in
//! the row, if there are eight. A timer that nobody hears of makes the turns shorter: a watchdog which starts over
//! and over again and never bites.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr;

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// The watchdog: an Intel 6300ESB.
const VENDOR: &str = "0x8086";
const DEVICE: &str = "0x25ab";
/// In its configuration space: no reset, counts of [`UNIT_NS`], no interrupt.
const CONFIG: (u64, u16) = (0x60, 1 << 5 | 1 << 2 | 3);
/// There too: on, and starting over by itself.
const LOCK: (u64, u8) = (0x68, 1 << 2 | 1 << 1);
/// In its memory: how far each of the two stages counts.
const STAGES: [usize; 2] = [0, 4];
/// There too: takes two words before each change.
const RELOAD: usize = 0xc;
const UNLOCK: [u16; 2] = [0x80, 0x86];
/// 32 ticks of the bus.
const UNIT_NS: u32 = 960;

/// Lets no turn take longer than this many microseconds, until the guest ends.
pub fn shorten(us: u32) -> Result<()> {
    let device = find().context("no watchdog of the kind i6300esb")?;
    fs::write(device.join("enable"), "1")?;
    let memory = OpenOptions::new().read(true).write(true).open(device.join("resource0"))?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let count = (us * 1000 / UNIT_NS).max(1);
    // SAFETY: a new mapping of one page of the device's registers, which nobody else drives. It stays, the writes are
    // aligned and within it.
    unsafe {
        let registers = mmap(ptr::null_mut(), 4096, access, MapFlags::SHARED, &memory, 0)?;
        for stage in STAGES {
            for word in UNLOCK {
                ptr::write_volatile(registers.byte_add(RELOAD).cast(), word);
            }
            ptr::write_volatile(registers.byte_add(stage).cast(), count);
        }
    }
    let config = OpenOptions::new().write(true).open(device.join("config"))?;
    config.write_all_at(&CONFIG.1.to_le_bytes(), CONFIG.0)?;
    config.write_all_at(&[LOCK.1], LOCK.0)?;
    Ok(())
}

fn find() -> Option<PathBuf> {
    let says = |dir: &Path, file: &str, what: &str| {
        fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim() == what)
    };
    let devices = fs::read_dir("/sys/bus/pci/devices").ok()?.flatten().map(|e| e.path());
    devices.into_iter().find(|d| says(d, "vendor", VENDOR) && says(d, "device", DEVICE))
}
