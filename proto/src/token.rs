//! The join token as text: `mj1.ID.SECRET.CAPIN`, one printable line.
//!
//! Holds the text form only. What is proven with the secret, and how, is `meshd::transport::join`; which tokens exist and
//! which are used up is the World's.

use std::fmt;

use data_encoding::{BASE64URL_NOPAD, Encoding, Specification};

/// A token that lets one host join.
///
/// Debug shows the id only; [`Token::reveal`] is the one way to the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Public name of the token: letters a-z and digits, at most 32.
    pub id: String,
    /// 128 random bits.
    pub secret: [u8; 16],
    /// SHA-256 of the root's public key (its `SubjectPublicKeyInfo`).
    pub pin: [u8; 32],
}

/// Why a text is not a token, in words for the one who pasted it. Never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The text does not begin like a token.
    #[error(
        "this is not a join token: one begins with \"{PREFIX}.\" and is printed by \"meshctl token create\""
    )]
    NotAToken,
    /// A token of another version.
    #[error(
        "this join token is of another version than \"{PREFIX}\": make one with the meshctl of this version"
    )]
    WrongVersion,
    /// Something is missing at the end.
    #[error(
        "the join token is cut off: it has four parts parted by dots, the last of {PIN_CHARS} characters; copy the whole line"
    )]
    Truncated,
    /// Something follows the token.
    #[error("the join token has something after its end: copy that one line and nothing else")]
    TooLong,
    /// The id holds what an id cannot hold.
    #[error("the id of the join token (its second part) is damaged: copy the line again")]
    BadId,
    /// The secret is not base32 of 128 bits.
    #[error("the secret of the join token (its third part) is damaged: copy the line again")]
    BadSecret,
    /// The pin is not base64url of 256 bits.
    #[error("the pin of the join token (its last part) is damaged: copy the line again")]
    BadPin,
}

impl Token {
    /// Reads a token; white space around it is ignored.
    ///
    /// Exactly one text stands for a token: every other spelling is refused.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        check_version(parts.next().unwrap_or_default())?;
        let (Some(id), Some(secret), Some(pin)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Truncated);
        };
        if parts.next().is_some() || pin.len() > PIN_CHARS {
            return Err(TokenError::TooLong);
        }
        if !is_id(id) {
            return Err(TokenError::BadId);
        }
        let secret = decode(&base32(), secret).ok_or(TokenError::BadSecret)?;
        if pin.len() < PIN_CHARS {
            return Err(TokenError::Truncated);
        }
        let pin = decode(&BASE64URL_NOPAD, pin).ok_or(TokenError::BadPin)?;
        Ok(Self { id: id.to_owned(), secret, pin })
    }

    /// Writes the token. The text lets a host in: show it once, to the one who asked.
    pub fn reveal(&self) -> String {
        let secret = base32().encode(&self.secret);
        let pin = BASE64URL_NOPAD.encode(&self.pin);
        format!("{PREFIX}.{}.{secret}.{pin}", self.id)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Writes random bytes as the id of a token: 5 bytes give 8 characters.
pub fn id_of(random: [u8; 5]) -> String {
    base32().encode(&random)
}

fn check_version(prefix: &str) -> Result<(), TokenError> {
    if prefix == PREFIX {
        return Ok(());
    }
    match prefix.strip_prefix("mj") {
        Some(version) if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) => {
            Err(TokenError::WrongVersion)
        }
        _ => Err(TokenError::NotAToken),
    }
}

fn is_id(id: &str) -> bool {
    (1..=MAX_ID_CHARS).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn decode<const N: usize>(encoding: &Encoding, text: &str) -> Option<[u8; N]> {
    encoding.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// RFC 4648's base32 in lower case, without padding; bits left over must be zero.
fn base32() -> Encoding {
    let mut form = Specification::new();
    form.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    form.encoding().expect("32 distinct symbols")
}

const PREFIX: &str = "mj1";
const MAX_ID_CHARS: usize = 32;
const PIN_CHARS: usize = 43;

#[cfg(test)]
mod tests;
