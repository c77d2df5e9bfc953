//! Times as users see them: RFC 3339 in UTC.

use jiff::Timestamp;

/// The present, to the microsecond.
pub fn now() -> String {
    format(Timestamp::now())
}

/// The moment when the clock of BPF (`bpf_ktime_get_boot_ns`) showed `boot_ns`.
pub fn from_boot(boot_ns: u64) -> String {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now_ns = i128::from(boot.tv_sec) * 1_000_000_000 + i128::from(boot.tv_nsec);
    let ago = (now_ns - i128::from(boot_ns)).clamp(0, i128::from(i64::MAX));
    let then = Timestamp::now()
        .checked_sub(jiff::SignedDuration::from_nanos(ago as i64))
        .unwrap_or(Timestamp::UNIX_EPOCH);
    format(then)
}

fn format(time: Timestamp) -> String {
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_rfc_3339_in_utc() {
        let now = super::now();
        assert!(now.ends_with('Z') && now.as_bytes()[10] == b'T' && now.len() == 27, "{now}");
    }
}
