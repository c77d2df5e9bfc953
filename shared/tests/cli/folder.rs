//! Policy folders made for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

/// A congestion control that does nothing of its own, with a parameter and two statistics.
pub const SOURCE: &str = r#"// SPDX-License-Identifier: GPL-2.0
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

const volatile u16 gain = 4;
volatile bool trace = false;

struct demo_stats {
	u64 acks;
	u64 sizes[8];
};
POLITY_STATS(struct demo_stats);

extern u32 tcp_reno_ssthresh(struct sock *sk) __ksym;
extern u32 tcp_reno_undo_cwnd(struct sock *sk) __ksym;
extern void tcp_reno_cong_avoid(struct sock *sk, u32 ack, u32 acked) __ksym;

SEC("struct_ops/demo_cong_avoid")
void BPF_PROG(demo_cong_avoid, struct sock *sk, u32 ack, u32 acked)
{
	if (trace)
		stat_add(acks, gain);
	stat_hist(sizes, acked);
	tcp_reno_cong_avoid(sk, ack, acked);
}

SEC("struct_ops/demo_ssthresh")
u32 BPF_PROG(demo_ssthresh, struct sock *sk)
{
	return tcp_reno_ssthresh(sk);
}

SEC("struct_ops/demo_undo_cwnd")
u32 BPF_PROG(demo_undo_cwnd, struct sock *sk)
{
	return tcp_reno_undo_cwnd(sk);
}

SEC(".struct_ops.link")
struct tcp_congestion_ops demo = {
	.cong_avoid = (void *)demo_cong_avoid,
	.ssthresh = (void *)demo_ssthresh,
	.undo_cwnd = (void *)demo_undo_cwnd,
	.name = "bpf_demo",
};
"#;

/// The manifest that fits [`SOURCE`].
pub const MANIFEST: &str = r#"[policy]
name = "demo"
kind = "tcp-cc"
summary = "For tests"

[params.gain]
default = 4
range = [1, 10]
help = "what one ACK counts"

[params.trace]
live = true

[stats.acks]
type = "counter"

[stats.sizes]
type = "histogram"
"#;

/// A policy folder in a directory of its own.
pub struct Folder(TempDir);

impl Folder {
    /// The policy `demo`, whole and good.
    pub fn good() -> Self {
        Self::of(MANIFEST, SOURCE)
    }

    /// `demo` with another manifest or source. Its object is there too if the source is the same.
    pub fn of(manifest: &str, source: &str) -> Self {
        let folder = Self::bare(manifest, source);
        if source == SOURCE {
            folder.write("demo.bpf.o", Self::built());
        }
        folder
    }

    fn bare(manifest: &str, source: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("policy.toml", manifest);
        folder.write("demo.bpf.c", source);
        folder
    }

    /// The object of [`SOURCE`]; clang takes seconds, so all tests share it.
    pub fn built() -> &'static [u8] {
        static OBJECT: LazyLock<Vec<u8>> = LazyLock::new(|| Folder::bare(MANIFEST, SOURCE).build());
        &OBJECT
    }

    /// `demo` with one thing in its manifest replaced.
    pub fn manifest(from: &str, to: &str) -> Self {
        assert!(MANIFEST.contains(from), "the manifest has no {from:?}");
        Self::of(&MANIFEST.replacen(from, to, 1), SOURCE)
    }

    /// `demo` with this as its object.
    pub fn object(bytes: impl AsRef<[u8]>) -> Self {
        let folder = Self::good();
        folder.write("demo.bpf.o", bytes);
        folder
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file of the folder.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), content).unwrap();
    }

    /// Compiles the policy and returns its object.
    pub fn build(&self) -> Vec<u8> {
        let output = polity(["build", self.path().to_str().unwrap()]);
        assert_eq!(output.status, 0, "{}", output.stderr);
        fs::read(self.path().join("demo.bpf.o")).unwrap()
    }
}

/// What a command gave.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// Data.
    pub stdout: String,
    /// All else.
    pub stderr: String,
}

impl Output {
    /// Asserts that it failed so, and said all of this.
    #[track_caller]
    pub fn fails(&self, status: i32, said: &[&str]) {
        assert_eq!(self.status, status, "{self:#?}");
        assert_eq!(self.stdout, "", "data on stdout although it failed");
        for part in said {
            assert!(self.stderr.contains(part), "nothing of {part:?} in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 0, "{self:#?}");
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// Runs the program.
pub fn polity<'a>(args: impl IntoIterator<Item = &'a str>) -> Output {
    command(binary(), args)
}

/// Where the program is.
pub fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_polity").into()
}

/// A command that can do nothing to this machine's kernel whatever it tries: as root it is still
/// user 0, but without any capability.
pub fn tame(program: PathBuf) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]).arg(program);
    command
}

/// Runs a command with nothing of this machine's environment that changes its answers.
pub fn command<'a>(program: PathBuf, args: impl IntoIterator<Item = &'a str>) -> Output {
    outcome(tame(program).args(args))
}

/// Runs `command` to its end.
pub fn outcome(command: &mut Command) -> Output {
    let output = command.env_remove("POLITY_PATH").env("NO_COLOR", "1").output().unwrap();
    Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
