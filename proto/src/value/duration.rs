//! Spans of time in the two forms Istio users write: protobuf JSON (`1.5s`) and Go (`1h3m`, `250ms`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time, not negative, to the nanosecond.
///
/// Reads `1.5s`, `0.25s`, `1h3m`, `250ms`, `10us`, `100ns` and sums of them; writes protobuf's form (`3780s`, `1.5s`).
/// A bare number is refused, except `0`.
///
/// Source: protobuf JSON mapping of `Duration`; Go `time.ParseDuration`, which Istio's API server accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

/// Why a text is no [`Duration`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number without a unit.
    #[error("duration {0:?} has no unit (write 10s, 500ms, 1m30s or 1h)")]
    NoUnit(String),
    /// A span before zero.
    #[error("duration {0:?} is negative")]
    Negative(String),
    /// More than protobuf carries (10,000 years).
    #[error("duration {0:?} is too long")]
    TooLong(String),
    /// Anything else.
    #[error("{0:?} is not a duration (write 10s, 500ms, 1m30s or 1h)")]
    Malformed(String),
}

impl Duration {
    /// Wraps a span of the standard library.
    pub const fn new(span: std::time::Duration) -> Self {
        Self(span)
    }

    /// Returns the standard library's span.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// Makes a span of whole milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// Makes a span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }
}

impl From<std::time::Duration> for Duration {
    fn from(span: std::time::Duration) -> Self {
        Self(span)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(span: Duration) -> Self {
        span.0
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let malformed = || DurationError::Malformed(shorten(text));
        if let Some(positive) = text.strip_prefix('-') {
            return match positive.parse::<Self>() {
                Ok(_) => Err(DurationError::Negative(shorten(text))),
                Err(_) => Err(malformed()),
            };
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(malformed());
        }
        let mut nanos: u128 = 0;
        while !rest.is_empty() {
            let (amount, after) = number(rest).ok_or_else(malformed)?;
            let (unit, after) = unit(after).ok_or_else(|| match after {
                "" => DurationError::NoUnit(shorten(text)),
                _ => malformed(),
            })?;
            nanos = amount
                .in_nanos(unit)
                .and_then(|part| nanos.checked_add(part))
                .filter(|sum| *sum <= MOST_NANOS)
                .ok_or_else(|| DurationError::TooLong(shorten(text)))?;
            rest = after;
        }
        let seconds = u64::try_from(nanos / SECOND).map_err(|_| malformed())?;
        let fraction = u32::try_from(nanos % SECOND).map_err(|_| malformed())?;
        Ok(Self(std::time::Duration::new(seconds, fraction)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if nanos == 0 {
            return write!(out, "{seconds}s");
        }
        let fraction = format!("{nanos:09}");
        write!(out, "{seconds}.{}s", fraction.trim_end_matches('0'))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(super::Parsed::new("a duration such as 10s"))
    }
}

/// A decimal number, kept exact: digits before the point, and up to 18 after it.
struct Number {
    whole: u128,
    fraction: u128,
    scale: u128,
}

impl Number {
    fn in_nanos(&self, unit: u128) -> Option<u128> {
        let whole = self.whole.checked_mul(unit)?;
        let fraction = self.fraction.checked_mul(unit)? / self.scale;
        whole.checked_add(fraction)
    }
}

fn number(text: &str) -> Option<(Number, &str)> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => digits(after),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // Beyond 18 places nothing is left of any unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let places = u32::try_from(fraction.len()).ok()?;
    let parse = |part: &str| {
        if part.is_empty() { Some(0) } else { part.parse().ok() }
    };
    // More than 30 digits cannot be a span of time.
    if whole.len() > 30 {
        return Some((Number { whole: u128::MAX, fraction: 0, scale: 1 }, rest));
    }
    Some((Number { whole: parse(whole)?, fraction: parse(fraction)?, scale: 10_u128.pow(places) }, rest))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

fn unit(text: &str) -> Option<(u128, &str)> {
    // Two letters before one: `ms` is not minutes.
    const UNITS: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", SECOND),
        ("m", 60 * SECOND),
        ("h", 3_600 * SECOND),
    ];
    UNITS.iter().find_map(|(name, nanos)| text.strip_prefix(name).map(|rest| (*nanos, rest)))
}

/// Keeps a message readable when somebody's text is a megabyte.
fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

const SECOND: u128 = 1_000_000_000;
/// Protobuf's bound: about 10,000 years.
const MOST_NANOS: u128 = 315_576_000_000 * SECOND;

#[cfg(test)]
mod tests;
