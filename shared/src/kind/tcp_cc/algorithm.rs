//! A congestion control algorithm that is registered, whoever brought it.

use std::net::TcpListener;

use rustix::net::sockopt::set_tcp_congestion;

use super::netns;
use super::sockets::{Iterators, NEEDS_ECN};
use crate::error::{Error, Result};

/// `TCP_CONG_NEEDS_ECN` of net/tcp.h.
pub const TCP_CONG_NEEDS_ECN: u8 = 2;

/// An algorithm that sockets can be moved to.
#[derive(Debug, Clone)]
pub struct Algorithm {
    /// Its name in the kernel.
    pub name: String,
    /// Where its code is: tells two versions of one name apart.
    pub ops: u64,
    needs_ecn: bool,
}

impl Algorithm {
    /// Looks it up. A listener of our own is put on it, which has the kernel load the module
    /// where it is one; what it needs is then read from the listener.
    ///
    /// # Errors
    /// The kernel has no such algorithm.
    pub fn find(name: &str, iterators: &Iterators) -> Result<Self> {
        let all = netns::all();
        let Some(init) = all.first() else {
            return Err(Error::failed("can't open the initial network namespace").into());
        };
        let listener = init.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0")
                .map_err(|e| Error::failed(format!("can't bind to 127.0.0.1: {e}")))?;
            set_tcp_congestion(&listener, name).map_err(|e| {
                Error::failed(format!("the kernel has no congestion control `{name}`: {e}")).hint(
                    "`sysctl net.ipv4.tcp_available_congestion_control` lists what is registered",
                )
            })?;
            Ok(listener)
        })?;
        let port = listener.local_addr()?.port();
        let found = iterators.list_in(init, name)?;
        let ours = found
            .iter()
            .find(|s| s.record["id"]["local_port"] == port && s.record["id"]["remote_port"] == 0)
            .ok_or_else(|| Error::failed(format!("the kernel does not show who runs `{name}`")))?;
        let flags = ours.record["ca_flags"].as_u64().unwrap_or_default();
        let ops = ours.record["ops"].as_u64().unwrap_or_default();
        let needs_ecn = flags & u64::from(TCP_CONG_NEEDS_ECN) != 0;
        Ok(Self { name: name.to_owned(), ops, needs_ecn })
    }

    /// The flag that leaves sockets without ECN, where the algorithm needs it.
    pub fn needs_ecn(&self) -> u32 {
        if self.needs_ecn { NEEDS_ECN } else { 0 }
    }
}
