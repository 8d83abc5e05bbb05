//! What an attempt took, as the kernel of its machine counted it; small, for a million of them are kept in memory.

/// A count to within one part in 2^25, in four bytes: 26 bits of it and how often they are doubled.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount(u32);

const DIGITS: u32 = 26;

impl Amount {
    /// The nearest that is not more than `n`.
    pub fn new(n: u64) -> Self {
        let doubled = (u64::BITS - n.leading_zeros()).saturating_sub(DIGITS);
        // The shift leaves at most 26 bits, and 38 doublings fit into the six above them.
        Self(doubled << DIGITS | u32::try_from(n >> doubled).unwrap_or(u32::MAX >> (u32::BITS - DIGITS)))
    }

    /// What was counted.
    pub fn get(self) -> u64 {
        u64::from(self.0 & ((1 << DIGITS) - 1)) << (self.0 >> DIGITS)
    }
}

impl std::fmt::Debug for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

/// Limits that a task asked for and that its machine could not hold it to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unenforced(pub u8);

impl Unenforced {
    /// Its memory.
    pub const MEMORY: Self = Self(1);
    /// Its processors, where it asked for a limit.
    pub const CPU: Self = Self(2);
    /// How many processes it may have.
    pub const PIDS: Self = Self(4);
    /// How fast it may use disks.
    pub const IO: Self = Self(8);
    /// All of these.
    pub const ALL_OF_THEM: Self = Self(15);
    /// Each with the key of the job file that asks for it.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::MEMORY, "memory"), (Self::CPU, "cpu_limit"), (Self::PIDS, "pids"), (Self::IO, "io")];

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `one` is among them.
    pub fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }

    /// The keys of those that are.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().filter(move |(one, _)| self.has(*one)).map(|(_, key)| key)
    }
}

/// What one attempt took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory at the highest; 0: not known.
    pub memory_peak: Amount,
    /// Microseconds of processor time in its own code.
    pub cpu_user_us: Amount,
    /// Microseconds of processor time in the kernel.
    pub cpu_system_us: Amount,
    /// Bytes that it had read from disks.
    pub read_bytes: Amount,
    /// Bytes that it had written to disks.
    pub written_bytes: Amount,
    /// What it was not held to.
    pub unenforced: Unenforced,
    /// Whether it wrote to its stdout or stderr, so that whoever follows it knows if there is something to wait for;
    /// none: not known.
    pub has_output: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_counts_are_kept_exactly_and_large_ones_nearly() {
        for n in [0, 1, 1000, (1 << 26) - 1] {
            assert_eq!(Amount::new(n).get(), n);
        }
        for n in [(1 << 26) + 1, 123_456_789_012, 1 << 40, (1 << 63) + 12345, u64::MAX] {
            let kept = Amount::new(n).get();
            assert!(kept <= n && n - kept <= n >> 25, "{n} became {kept}");
            assert_eq!(Amount::new(kept), Amount::new(n), "what was kept is kept as it is");
        }
    }

    #[test]
    fn an_attempt_pays_little_for_it() {
        assert!(size_of::<Option<Usage>>() <= 24);
    }

    #[test]
    fn what_is_not_enforced_is_told_by_the_keys_that_ask_for_it() {
        let some = Unenforced::MEMORY.and(Unenforced::PIDS).and(Unenforced::IO);
        assert_eq!(some.keys().collect::<Vec<_>>(), ["memory", "pids", "io"]);
        assert_eq!(Unenforced::ALL_OF_THEM.keys().count(), Unenforced::ALL.len());
        assert_eq!(Unenforced::default().keys().count(), 0);
    }
}
