//! Congestion control policies compiled natively: the tests run the very source that the kernel
//! runs, against the few headers beside this file.

use std::env;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::process::Command;
use std::ptr;

/// `struct tcp_sock` of vmlinux.h beside this file.
#[repr(C)]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sock {
    pub state: u8,
    pub pacing_status: u32,
    pub gso_max_size: u32,
    pub pacing_rate: u64,
    pub ca_state: u8,
    pub ack_pending: u8,
    pub ca_priv: [u64; 13],
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub rcv_nxt: u32,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub cwnd: u32,
    pub cwnd_cnt: u32,
    pub cwnd_clamp: u32,
    pub ssthresh: u32,
    pub prior_cwnd: u32,
    pub max_packets_out: u32,
    pub is_cwnd_limited: u8,
    pub ecn_flags: u8,
    pub mstamp: u64,
    pub rack_mstamp: u64,
    /// `packets_out`, `sacked_out`, `lost_out`, `retrans_out`.
    pub flight: [u32; 4],
}

/// A policy as a shared library, with the harness `NAME.c` around it.
pub struct Policy {
    handle: usize,
}

impl Policy {
    /// Compiles and opens `tcp-cc/NAME`.
    pub fn build(name: &str) -> Policy {
        Self::build_in(&format!("tcp-cc/{name}"), name)
    }

    /// Compiles and opens `NAME.c` beside this file, with the headers of the policy `folder`.
    pub fn build_in(folder: &str, name: &str) -> Policy {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("policy.so");
        let clang = env::var("BPF_CLANG").unwrap_or_else(|_| "clang".into());
        let status = Command::new(&clang)
            .args(["-O2", "-Wall", "-Werror", "-Wno-unused", "-shared", "-fPIC", "-o"])
            .arg(&lib)
            .arg(format!("-I{}", shared.join("tests/native").display()))
            .arg(format!("-I{}", shared.join("include").display()))
            .arg(format!("-I{}", shared.join("..").join(folder).display()))
            .arg(shared.join("tests/native").join(name).with_extension("c"))
            .status()
            .unwrap_or_else(|e| panic!("cannot run {clang}: {e}"));
        assert!(status.success(), "{clang} failed");
        let path = CString::new(lib.to_str().unwrap()).unwrap();
        // SAFETY: path is a C string; the library has no constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "cannot open {}", lib.display());
        Policy { handle: handle as usize }
    }

    /// The address of a function or a global.
    pub fn symbol(&self, name: &str) -> *mut c_void {
        let c_name = CString::new(name).unwrap();
        // SAFETY: handle came from dlopen() and is never closed, c_name is a C string.
        let found = unsafe { libc::dlsym(self.handle as *mut c_void, c_name.as_ptr()) };
        assert!(!found.is_null(), "no symbol {name}");
        found
    }

    /// Sets a parameter.
    pub fn set_param(&self, name: &str, value: u32) {
        // SAFETY: the parameters are u32 globals, writable in this build.
        unsafe { ptr::write_volatile(self.symbol(name).cast::<u32>(), value) }
    }

    /// Calls an operation that takes the socket alone.
    pub fn op(&self, name: &str, sk: &mut Sock) {
        // SAFETY: the operation is `void name(struct sock *)` and Sock mirrors tcp_sock.
        let f: extern "C" fn(*mut Sock) = unsafe { std::mem::transmute(self.symbol(name)) };
        f(sk);
    }

    /// Calls an operation that takes the socket and one more argument.
    pub fn op_with(&self, name: &str, sk: &mut Sock, arg: u32) {
        // SAFETY: the operation is `void name(struct sock *, u32 or narrower)`.
        let f: extern "C" fn(*mut Sock, u32) = unsafe { std::mem::transmute(self.symbol(name)) };
        f(sk, arg);
    }

    /// Calls an operation that answers with a window.
    pub fn ask(&self, name: &str, sk: &mut Sock) -> u32 {
        // SAFETY: the operation is `u32 name(struct sock *)`.
        let f: extern "C" fn(*mut Sock) -> u32 = unsafe { std::mem::transmute(self.symbol(name)) };
        f(sk)
    }
}
