//! One TCP socket as the iterator saw it, for whoever wants to look.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use crate::layout::Layout;

/// A socket as the iterator saw it.
pub struct Socket {
    /// Its network namespace.
    pub netns: String,
    /// `struct polity_tcp_socket`.
    pub record: Value,
    /// The algorithm's private state.
    pub private: Vec<u8>,
}

/// `enum` of net/tcp_states.h, which has no type and so no BTF; from 1.
const STATES: [&str; 12] = [
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];
/// `enum tcp_ca_state`.
const CA_STATES: [&str; 5] = ["open", "disorder", "cwr", "recovery", "loss"];
/// What `polity_tcp_socket.ecn` says.
const ECN: [&str; 3] = ["no", "rfc3168", "accecn"];
/// `TCP_INFINITE_SSTHRESH`.
const NO_SSTHRESH: u64 = 0x7fff_ffff;

impl Socket {
    /// The socket with its algorithm's `private` state, where the policy says how that looks
    /// (`POLITY_CC_STATE`). Times are in microseconds, the rate in bytes per second, all else in
    /// segments or bytes as in `tcp_info`; null is what was not measured yet.
    pub fn json(&self, state: Option<&Layout>) -> Value {
        let r = &self.record;
        let (local, remote) = ends(r);
        let name = |names: &[&'static str], at: u64| names.get(at as usize).copied();
        let number = |key: &str| r[key].as_u64().unwrap_or_default();
        let known = |key: &str, unknown: u64| Some(number(key)).filter(|n| *n != unknown);
        let tcp_state = r["id"]["state"].as_u64().unwrap_or_default().wrapping_sub(1);
        json!({
            "netns": self.netns, "local": local, "remote": remote,
            "state": name(&STATES, tcp_state),
            "cwnd": r["cwnd"], "ssthresh": known("ssthresh", NO_SSTHRESH),
            "srtt_us": known("srtt_us", 0), "rttvar_us": r["rttvar_us"],
            "min_rtt_us": known("min_rtt_us", u32::MAX.into()),
            "mss": r["mss"], "in_flight": r["in_flight"], "delivered": r["delivered"],
            "marked": r["delivered_ce"], "lost": r["lost"], "retrans": r["retrans"],
            "bytes_acked": r["bytes_acked"], "pacing_rate": known("pacing_rate", u64::MAX),
            "ca_state": name(&CA_STATES, number("ca_state")),
            "ecn": name(&ECN, number("ecn")),
            "chosen": number("chosen") != 0, "locked": number("pinned") != 0,
            "uid": r["id"]["uid"], "cookie": r["id"]["cookie"],
            "private": state.map(|layout| layout.json(&self.private)),
        })
    }
}

/// A record's two ends as `address:port`.
pub fn ends(record: &Value) -> (String, String) {
    let end = |address: &str, port: &str| {
        let bytes: Vec<u8> = record[address]
            .as_array()
            .map(|a| a.iter().map(|b| b.as_u64().unwrap_or_default() as u8).collect())
            .unwrap_or_default();
        let port = record[port].as_u64().unwrap_or_default() as u16;
        let ip = match record["family"].as_i64() {
            Some(10) => <[u8; 16]>::try_from(bytes).map(|b| IpAddr::V6(Ipv6Addr::from(b))).ok(),
            _ => bytes.first_chunk::<4>().map(|b| IpAddr::V4(Ipv4Addr::from(*b))),
        };
        ip.map_or_else(String::new, |ip| SocketAddr::new(ip, port).to_string())
    };
    let id = &record["id"];
    if id.is_object() {
        return ends(id);
    }
    (end("local", "local_port"), end("remote", "remote_port"))
}
