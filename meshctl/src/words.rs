//! Numbers, times and shares as people read them.

use std::time::Duration;

/// Writes a short time: `41 ms`, `2.5 s`, `3 min`.
pub(crate) fn short(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min", duration.as_secs() / 60),
    }
}

/// Writes how long ago something was: `just now`, `12s`, `5m`, `3h`, `2d`.
pub(crate) fn age(now_ms: u64, then_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1_000;
    match seconds {
        0 => "just now".into(),
        1..120 => format!("{seconds}s ago"),
        120..7_200 => format!("{}m ago", seconds / 60),
        7_200..172_800 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Writes how much time is left: `59m`, `expired`.
pub(crate) fn left(now_ms: u64, until_ms: u64) -> String {
    let seconds = until_ms.saturating_sub(now_ms) / 1_000;
    match seconds {
        0 => "expired".into(),
        1..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Writes microseconds as milliseconds with as many digits as matter: `0.84 ms`, `12.3 ms`, `1.2 s`.
pub(crate) fn latency(micros: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let millis = micros as f64 / 1_000.0;
    if millis < 10.0 {
        format!("{millis:.2} ms")
    } else if millis < 100.0 {
        format!("{millis:.1} ms")
    } else if millis < 1_000.0 {
        format!("{millis:.0} ms")
    } else {
        format!("{:.1} s", millis / 1_000.0)
    }
}

/// Writes a share (0 to 1) in percent: `100 %`, `99.95 %`, `9.7 %`.
///
/// Never rounds up to 100 %: 99.999 % of success is not success.
pub(crate) fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value >= 100.0 {
        "100 %".into()
    } else if value > 99.9 {
        format!("{:.2} %", (value * 100.0).floor() / 100.0)
    } else {
        format!("{value:.1} %")
    }
}

/// Writes `1 host`, `2 hosts`.
pub(crate) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Reads `500ms`, `30s`, `5m`, `1h`, `1h30m`, `2d`.
///
/// # Errors
///
/// A bare number, an unknown unit, or more than 3650 days.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "must be a number with its unit, such as 500ms, 30s, 5m, 1h or 1h30m";
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(FORM.into());
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).ok_or(FORM)?;
        let number: u64 = rest[..digits].parse().map_err(|_| FORM)?;
        rest = &rest[digits..];
        let letters = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(FORM.into()),
        };
        rest = &rest[letters..];
        total += Duration::from_millis(number.checked_mul(millis).ok_or(FORM)?);
        if total > Duration::from_hours(3_650 * 24) {
            return Err("must not be longer than 3650d".into());
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("30").is_err());
        assert!(duration("").is_err());
        assert!(duration("5 weeks").is_err());
        assert!(duration("99999999999999999999s").is_err());
        assert!(duration("99999d").is_err());
    }

    #[test]
    fn nearly_all_is_not_all() {
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.999_999), "99.99 %");
        assert_eq!(percent(0.097), "9.7 %");
    }

    #[test]
    fn latencies_keep_three_digits() {
        assert_eq!(latency(843), "0.84 ms");
        assert_eq!(latency(12_340), "12.3 ms");
        assert_eq!(latency(1_240_000), "1.2 s");
    }
}
