//! Times as text: ISO 8601, and the formats of `%START_TIME(…)%`.
//!
//! Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`; strftime(3); Envoy's
//! `DateFormatter` for `%s` and `%f` with numbers of digits. All times are UTC.

use std::fmt::Write;
use std::time::Duration;

/// A moment as people write it.
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    /// From 0, Sunday.
    weekday: u64,
    /// From 1.
    day_of_year: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    /// `time`: since 1970.
    fn of(time: Duration) -> Self {
        let (days, seconds) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let day = from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let is_leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        // March is the third month; January and February end the year that began with March.
        let day_of_year = if month > 2 { from_march + 60 + u64::from(is_leap) } else { from_march - 306 + 1 };
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        Self { year, month, day, weekday: (days + 4) % 7, day_of_year, hour, minute, second }
    }
}

/// Writes a time as `2026-01-31T12:00:00.123Z`.
pub fn iso_8601(unix_ms: u64) -> String {
    let Civil { year, month, day, hour, minute, second, .. } = Civil::of(Duration::from_millis(unix_ms));
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", unix_ms % 1_000)
}

/// How a time is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A letter of strftime.
    Field(char),
    /// Digits of the part of a second.
    Fraction(usize),
}

impl TimeFormat {
    /// Reads a format. Fails with the letter that means nothing here.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let mut letters = after.chars();
            let first = letters.next();
            let part = match first {
                Some('%') => Part::Text("%".to_owned()),
                Some(digit @ '1'..='9') if letters.clone().next() == Some('f') => {
                    letters.next();
                    Part::Fraction(digit.to_digit(10).map_or(9, |digits| digits as usize))
                }
                Some('f') => Part::Fraction(9),
                Some(letter) if LETTERS.contains(letter) => Part::Field(letter),
                other => return Err(format!("%{}", other.map_or_else(String::new, String::from))),
            };
            parts.push(part);
            rest = letters.as_str();
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Writes a time; `time` is since 1970.
    pub(in crate::route) fn write(&self, time: Duration, out: &mut String) {
        let civil = Civil::of(time);
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Fraction(digits) => {
                    let nanos = format!("{:09}", time.subsec_nanos());
                    out.push_str(&nanos[..(*digits).min(9)]);
                }
                Part::Field(letter) => field(*letter, time, &civil, out),
            }
        }
    }
}

fn field(letter: char, time: Duration, civil: &Civil, out: &mut String) {
    let Civil { year, month, day, weekday, day_of_year, hour, minute, second } = *civil;
    let name =
        |names: &[&'static str], at: u64| usize::try_from(at).ok().and_then(|at| names.get(at)).copied();
    let half = if hour < 12 { "AM" } else { "PM" };
    let of_twelve = (hour + 11) % 12 + 1;
    let _ = match letter {
        'Y' => write!(out, "{year}"),
        'C' => write!(out, "{:02}", year / 100),
        'y' => write!(out, "{:02}", year % 100),
        'm' => write!(out, "{month:02}"),
        'd' => write!(out, "{day:02}"),
        'e' => write!(out, "{day:2}"),
        'j' => write!(out, "{day_of_year:03}"),
        'H' => write!(out, "{hour:02}"),
        'I' => write!(out, "{of_twelve:02}"),
        'M' => write!(out, "{minute:02}"),
        'S' => write!(out, "{second:02}"),
        'p' => write!(out, "{half}"),
        's' => write!(out, "{}", time.as_secs()),
        'z' => write!(out, "+0000"),
        'Z' => write!(out, "UTC"),
        'u' => write!(out, "{}", if weekday == 0 { 7 } else { weekday }),
        'w' => write!(out, "{weekday}"),
        'a' => write!(out, "{:.3}", name(&DAYS, weekday).unwrap_or_default()),
        'A' => write!(out, "{}", name(&DAYS, weekday).unwrap_or_default()),
        'b' | 'h' => write!(out, "{:.3}", name(&MONTHS, month - 1).unwrap_or_default()),
        'B' => write!(out, "{}", name(&MONTHS, month - 1).unwrap_or_default()),
        'F' => write!(out, "{year}-{month:02}-{day:02}"),
        'D' => write!(out, "{month:02}/{day:02}/{:02}", year % 100),
        'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
        _ => write!(out, "{hour:02}:{minute:02}"),
    };
}

/// What [`field`] knows.
const LETTERS: &str = "YCymdejHIMSpszZuwaAbhBFDTR";
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: &str, seconds: u64) -> String {
        let mut out = String::new();
        let time = Duration::new(seconds, 5_300_040);
        TimeFormat::parse(format).expect("a sound format").write(time, &mut out);
        out
    }

    #[test]
    fn times_are_written_as_strftime_does() {
        // date -u -d @951782400: a leap day at midnight; @1795839454: an ordinary day.
        for (format, leap, plain) in [
            ("%Y-%m-%dT%H:%M:%S", "2000-02-29T00:00:00", "2026-11-28T04:17:34"),
            ("%a %A %b %B %e %j", "Tue Tuesday Feb February 29 060", "Sat Saturday Nov November 28 332"),
            ("%I %p %y %C %u %w", "12 AM 00 20 2 2", "04 AM 26 20 6 6"),
            ("%F %T %D %R", "2000-02-29 00:00:00 02/29/00 00:00", "2026-11-28 04:17:34 11/28/26 04:17"),
            (
                "%s|%3f|%f|%z|%Z|%%",
                "951782400|005|005300040|+0000|UTC|%",
                "1795839454|005|005300040|+0000|UTC|%",
            ),
        ] {
            assert_eq!(
                [written(format, 951_782_400), written(format, 1_795_839_454)],
                [leap, plain],
                "{format}"
            );
        }
        assert_eq!(written("%j", 951_782_400 + 86_400), "061");
        assert_eq!(written("%j", 978_220_800), "366");
        assert_eq!(written("%j", 978_307_200), "001");
    }

    #[test]
    fn what_means_nothing_is_named() {
        assert_eq!(TimeFormat::parse("%Y %q"), Err("%q".to_owned()));
        assert_eq!(TimeFormat::parse("%"), Err("%".to_owned()));
        assert_eq!(TimeFormat::parse("%0f"), Err("%0".to_owned()));
    }
}
