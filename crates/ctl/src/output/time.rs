//! Instants and durations as people and machines read them.

use chrono::{DateTime, SecondsFormat};
use muster_core::time::Timestamp;

/// RFC 3339, UTC, microseconds; none for "never".
pub(crate) fn instant(us: u64) -> Option<String> {
    let at = i64::try_from(us).ok().filter(|us| *us > 0)?;
    Some(DateTime::from_timestamp_micros(at)?.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// Microseconds as a number of seconds.
#[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
pub(crate) fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// How long from `start` to `end`, both set; a task that still runs counts to `now`.
pub(crate) fn span(start: u64, end: u64, now: Timestamp) -> Option<u64> {
    let end = if end == 0 { now.0 } else { end };
    (start > 0).then(|| end.saturating_sub(start))
}

/// Two units at most: `85ms`, `3.2s`, `4m10s`, `2h05m`, `12d`.
pub(crate) fn short(us: u64) -> String {
    let whole = us / 1_000_000;
    match whole {
        0 if us < 1_000 => format!("{us}us"),
        0 => format!("{}ms", us / 1_000),
        1..=59 => format!("{}.{}s", whole, us % 1_000_000 / 100_000),
        60..=3_599 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..=86_399 => format!("{}h{:02}m", whole / 3_600, whole % 3_600 / 60),
        86_400..=863_999 => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3_600),
        _ => format!("{}d", whole / 86_400),
    }
}

/// How long ago, in one unit: `just now`, `12s`, `4m`, `3h`, `9d`.
pub(crate) fn age(us: u64, now: Timestamp) -> String {
    if us == 0 {
        return "-".to_owned();
    }
    match now.0.saturating_sub(us) / 1_000_000 {
        0 => "now".to_owned(),
        s @ 1..=59 => format!("{s}s"),
        s @ 60..=3_599 => format!("{}m", s / 60),
        s @ 3_600..=86_399 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_the_unit_that_fits() {
        let table = [
            (0, "0us"),
            (999, "999us"),
            (85_400, "85ms"),
            (3_260_000, "3.2s"),
            (59_999_999, "59.9s"),
            (250_000_000, "4m10s"),
            (7_500_000_000, "2h05m"),
            (90_000_000_000, "1d01h"),
            (1_036_800_000_000, "12d"),
        ];
        for (us, text) in table {
            assert_eq!(short(us), text, "{us}");
        }
    }

    #[test]
    fn an_age_counts_from_now_and_a_clock_ahead_of_ours_is_now() {
        let now = Timestamp(10_000_000_000_000);
        let table = [(0, 0), (400_000, 1), (12_000_000, 12)];
        assert_eq!(age(table[0].0, now), "-");
        assert_eq!(age(now.0 - table[1].0, now), "now");
        assert_eq!(age(now.0 - table[2].0, now), "12s");
        assert_eq!(age(now.0 - 240_000_000, now), "4m");
        assert_eq!(age(now.0 - 10_800_000_000, now), "3h");
        assert_eq!(age(now.0 - 864_000_000_000, now), "10d");
        assert_eq!(age(now.0 + 5_000_000, now), "now");
    }

    #[test]
    fn machines_read_rfc_3339_in_utc_with_microseconds() {
        assert_eq!(instant(1_790_000_000_000_001).as_deref(), Some("2026-09-21T14:13:20.000001Z"));
        assert_eq!(instant(0), None);
        assert_eq!(instant(u64::MAX), None);
    }
}
