//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Waits up to 10 s until `check` succeeds.
///
/// # Errors
/// The last failure, when time is up.
pub fn eventually<T>(what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_within(Duration::from_secs(10), what, check)
}

/// Waits until `check` succeeds.
///
/// # Errors
/// The last failure, when time is up.
pub fn eventually_within<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() > limit => {
                return Err(error).with_context(|| format!("waited {limit:?} until {what}"));
            }
            // Between two looks at a condition; the condition decides, not this pause.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
