//! The join token: one printable line, `mj1.ID.SECRET.PIN`.
//!
//! The id is public, the secret (128 bit) is never sent, the pin is the SHA-256 of the root's public key (SPKI), so
//! that the joining host knows whom it talks to before it proves anything. How the proof is made is
//! `meshd::transport::join`'s matter.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;

/// A join token. `Debug` hides the secret; `Display` prints the whole line.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Public id: 1–64 letters, digits, `-` and `_`.
    pub id: String,
    /// The secret.
    pub secret: [u8; 16],
    /// SHA-256 of the root's public key (SPKI, DER).
    pub pin: [u8; 32],
}

/// Why a line is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not four parts, or another first part.
    #[error(
        "a join token is one line of the form mj1.ID.SECRET.PIN; copy the whole line that `meshctl token create` printed"
    )]
    Form,
    /// A part has the wrong length or letters.
    #[error("the {0} of the join token is damaged; copy the whole line that `meshctl token create` printed")]
    Part(&'static str),
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = BASE64URL_NOPAD.encode(&self.secret);
        write!(f, "{VERSION}.{}.{secret}.{}", self.id, BASE64URL_NOPAD.encode(&self.pin))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(line: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = line.trim().split('.').collect();
        let [VERSION, id, secret, pin] = parts[..] else {
            return Err(TokenError::Form);
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if id.is_empty() || id.len() > 64 || !id.bytes().all(is_plain) {
            return Err(TokenError::Part("id"));
        }
        Ok(Self { id: id.to_owned(), secret: bytes("secret", secret)?, pin: bytes("pin", pin)? })
    }
}

fn bytes<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], TokenError> {
    let decoded = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenError::Part(what))?;
    decoded.try_into().map_err(|_| TokenError::Part(what))
}

const VERSION: &str = "mj1";

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken { id: "a1b2".into(), secret: [7; 16], pin: [9; 32] }
    }

    #[test]
    fn line_reads_back_as_the_same_token() {
        let line = token().to_string();
        assert_eq!(line.parse(), Ok(token()));
        assert_eq!(format!("  {line}\n").parse(), Ok(token()));
    }

    #[test]
    fn cut_off_line_is_refused() {
        let line = token().to_string();
        for end in 0..line.len() {
            assert!(line[..end].parse::<JoinToken>().is_err(), "{}", &line[..end]);
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        assert!(!format!("{:?}", token()).contains("secret"));
    }
}
