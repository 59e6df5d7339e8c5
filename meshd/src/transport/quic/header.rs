//! The first bytes of a hop's stream: the length of a name (u16, big-endian), then the name. The answer is one byte.

use std::io;

use quinn::RecvStream;

use crate::transport::link::TlsFault;

/// The longest name a header may announce, in bytes: that of a server name in TLS.
pub const MAX_HEADER_BYTES: usize = 253;

/// The answer to a name that is served; any other is told by resetting the stream.
pub(super) const SERVED: u8 = 0;

/// Reads the length of the name; `None` where it is 0 or above [`MAX_HEADER_BYTES`].
pub fn name_length(header: [u8; 2]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes(header));
    (1..=MAX_HEADER_BYTES).contains(&length).then_some(length)
}

/// Writes the header of a name; `None` where it is empty or too long.
pub(super) fn header(name: &str) -> Option<Vec<u8>> {
    let length = u16::try_from(name.len()).ok()?.to_be_bytes();
    name_length(length)?;
    Some([length.as_slice(), name.as_bytes()].concat())
}

/// Receives the name a stream asks for.
pub(super) async fn receive(recv: &mut RecvStream) -> Result<String, TlsFault> {
    let failed = |error| TlsFault::Io(io::Error::other(error));
    let mut length = [0; 2];
    recv.read_exact(&mut length).await.map_err(failed)?;
    let length = name_length(length).ok_or(TlsFault::NoProtocol)?;
    let mut name = vec![0; length];
    recv.read_exact(&mut name).await.map_err(failed)?;
    String::from_utf8(name).map_err(|_| TlsFault::NoProtocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_the_length_of_its_name() {
        assert_eq!(header("ab"), Some(vec![0, 2, b'a', b'b']));
        assert_eq!(header(""), None);
        assert_eq!(header(&"a".repeat(253)).map(|bytes| bytes.len()), Some(255));
        assert_eq!(header(&"a".repeat(254)), None);
    }

    #[test]
    fn a_length_of_zero_or_above_the_limit_is_refused() {
        assert_eq!(name_length([0, 0]), None);
        assert_eq!(name_length([0, 253]), Some(253));
        assert_eq!(name_length([0, 254]), None);
        assert_eq!(name_length([255, 255]), None);
    }
}
