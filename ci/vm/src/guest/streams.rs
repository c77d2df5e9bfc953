//! The virtio-serial ports, and the pipes that feed them.
//!
//! The command gets pipes and not the ports themselves: only one process at a time may open a port, so a script's
//! `> /dev/stderr` would fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeWriter, Read, Write};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long the ports may take to appear; they come asynchronously, after PID 1 has started.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens the port of that name.
pub fn open_port(name: &str) -> Result<File> {
    let start = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if found.trim_end() == name {
                let device = std::path::Path::new("/dev").join(entry.file_name());
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&device)
                    .with_context(|| format!("{}", device.display()));
            }
        }
        if start.elapsed() > PATIENCE {
            bail!("the guest kernel shows no virtio-serial port {name}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Carries what is written into a pipe to a port.
pub struct Relay {
    writer: PipeWriter,
    thread: JoinHandle<u64>,
}

impl Relay {
    /// A pipe whose other end feeds the port of that name.
    pub fn to(port: &str) -> Result<Relay> {
        let mut port = open_port(port)?;
        let (mut reader, writer) = io::pipe()?;
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            let mut bytes = 0;
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if port.write_all(&buffer[..n]).is_err() {
                    break;
                }
                bytes += n as u64;
            }
            bytes
        });
        Ok(Relay { writer, thread })
    }

    /// An end for the command to write to.
    pub fn writer(&self) -> io::Result<PipeWriter> {
        self.writer.try_clone()
    }

    /// Waits until all that was written is in the port, and returns how many bytes that was.
    pub fn finish(self) -> u64 {
        drop(self.writer);
        self.thread.join().unwrap_or_default()
    }
}
