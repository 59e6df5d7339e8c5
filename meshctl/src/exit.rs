//! How a command ends: its exit code, and the one message of a failure.
//!
//! The codes are a promise to scripts (`meshctl help` lists them): 0 done, 1 findings or refused, 2 file unreadable,
//! 3 conflict, 4 no quorum or time-out, 64 wrong usage.

use std::fmt;

use mesh_proto::api::{ApiError, ErrorCode};

/// An exit code of meshctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Findings, or the mesh refused.
    Refused = 1,
    /// A file cannot be read or written.
    Unreadable = 2,
    /// Somebody else changed the same thing.
    Conflict = 3,
    /// No quorum, no answer, or not in time.
    NoAnswer = 4,
    /// Wrong usage. Source: `EX_USAGE` of sysexits.h.
    Usage = 64,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked, in words for people.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The code to exit with.
    pub(crate) exit: Exit,
    /// What, where, why, what to do. Empty where everything has been said already.
    pub(crate) message: String,
}

/// What a step of a command returns.
pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// Makes a failure.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// The mesh or a check said no.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, message)
    }

    /// The arguments make no sense together.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A file cannot be read or written.
    pub(crate) fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(Exit::Unreadable, format!("{}: {}", path.display(), plain(error)))
    }

    /// Of a command that changes things: says that it has not.
    pub(crate) fn unchanged(mut self) -> Self {
        self.message.push_str("; nothing was changed");
        self
    }

    /// Nobody answered, or not in time.
    pub(crate) fn no_answer(message: impl Into<String>) -> Self {
        Self::new(Exit::NoAnswer, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = exit_of(error.code);
        Self::new(exit, error.message)
    }
}

/// Returns the exit code for a kind of failure of the API.
pub(crate) fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::Invalid | ErrorCode::Forbidden | ErrorCode::NotFound => Exit::Refused,
        ErrorCode::Conflict => Exit::Conflict,
        ErrorCode::NoQuorum | ErrorCode::Unknown | ErrorCode::Timeout | ErrorCode::Unavailable => {
            Exit::NoAnswer
        }
    }
}

/// Says an I/O error as people do: without `(os error 2)`, first letter small.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_reads_as_people_say_it() {
        let error = std::io::Error::from_raw_os_error(2);

        assert_eq!(plain(&error), "no such file or directory");
    }

    #[test]
    fn lost_quorum_and_lost_races_have_codes_of_their_own() {
        assert_eq!(exit_of(ErrorCode::NoQuorum), Exit::NoAnswer);
        assert_eq!(exit_of(ErrorCode::Conflict), Exit::Conflict);
        assert_eq!(exit_of(ErrorCode::Invalid), Exit::Refused);
    }
}
