//! gRPC's status codes by name.
//!
//! Source: gRPC `codes`.

/// The names in order of their codes.
pub const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Returns the code of a status written by name or number; `None` where there is no such status.
pub fn code(status: &str) -> Option<u32> {
    let named = NAMES.iter().position(|name| *name == status).and_then(|code| u32::try_from(code).ok());
    named.or_else(|| status.parse().ok().filter(|code| (*code as usize) < NAMES.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_by_name_and_by_number() {
        let read = ["OK", "UNAVAILABLE", "UNAUTHENTICATED", "14", "17", "unavailable", "", "-1"].map(code);

        assert_eq!(read, [Some(0), Some(14), Some(16), Some(14), None, None, None, None]);
    }
}
