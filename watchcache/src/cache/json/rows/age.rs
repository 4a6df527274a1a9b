//! How long ago something was, as people are told (`k8s.io/apimachinery/pkg/util/duration`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now(pub i128);

impl Now {
    /// By the system's clock.
    #[must_use]
    pub fn read() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(i128::try_from(since.as_nanos()).unwrap_or(0))
    }

    /// How long after `then` it is, in nanoseconds, as far as Go's durations go.
    pub(super) fn since(self, then: i128) -> i64 {
        i64::try_from(self.0 - then).unwrap_or(if then < self.0 { i64::MAX } else { i64::MIN })
    }
}

/// `HumanDuration`, of nanoseconds.
pub(super) fn human(nanos: i64) -> String {
    let seconds = nanos / 1_000_000_000;
    let (minutes, hours) = (seconds / 60, seconds / 3_600);
    let days = hours / 24;
    // The larger, and the smaller where there is one.
    let two = |large: i64, unit: char, small: i64, of: char| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{of}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        // Clocks may differ a little.
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, 'd', hours % 24, 'h'),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => two(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of `duration_test.go`, and more.
    #[test]
    fn as_people_are_told() {
        const SECOND: i64 = 1_000_000_000;
        const HOUR: i64 = 3_600 * SECOND;
        const DAY: i64 = 24 * HOUR;
        for (nanos, expected) in [
            (0, "0s"),
            (-1, "0s"),
            (-SECOND, "0s"),
            (-2 * SECOND + 1, "0s"),
            (-2 * SECOND, "<invalid>"),
            (SECOND, "1s"),
            (70 * SECOND, "70s"),
            (120 * SECOND - 1, "119s"),
            (120 * SECOND, "2m"),
            (190 * SECOND, "3m10s"),
            (600 * SECOND, "10m"),
            (70 * 60 * SECOND, "70m"),
            (3 * HOUR - 1, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 600 * SECOND, "3h10m"),
            (8 * HOUR, "8h"),
            (2 * DAY - 1, "47h"),
            (2 * DAY, "2d"),
            (3 * DAY + 3 * HOUR, "3d3h"),
            (8 * DAY, "8d"),
            (400 * DAY, "400d"),
            (2 * 365 * DAY, "2y"),
            (2 * 365 * DAY + 8 * DAY, "2y8d"),
            (8 * 365 * DAY, "8y"),
            (9 * 365 * DAY + 200 * DAY, "9y"),
            (i64::MAX, "292y"),
            (i64::MIN, "<invalid>"),
        ] {
            assert_eq!(human(nanos), expected, "{nanos}");
        }
        assert_eq!(Now(5).since(3), 2);
        assert_eq!(Now(0).since(i128::from(i64::MAX) + 2), i64::MIN);
        assert_eq!(Now(i128::MAX / 2).since(0), i64::MAX);
    }
}
