//! What the machine has.

/// The bytes of physical memory, as far as the system tells; a large number where it does not.
pub fn physical_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.map_or(1 << 40, |kilobytes| kilobytes.saturating_mul(1024))
}
