//! Whom a TLS connection asks for: the server name and protocols of a `ClientHello`, without opening the TLS.
//!
//! A `ClientHello` with post-quantum key shares spans several segments and may span several records, so records are
//! put together first. Source: RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3, RFC 7301.

/// The longest `ClientHello` that is looked at, with its record headers.
pub const MAX_BYTES: usize = 64 * 1024;

/// What a `ClientHello` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name in lower case, without trailing dot; `None` when there is none.
    pub server_name: Option<String>,
    /// The protocols offered by ALPN, in order.
    pub protocols: Vec<Vec<u8>>,
}

/// What the bytes so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// All of it is there.
    Hello(ClientHello),
    /// It goes on.
    More,
    /// It is no `ClientHello`, or a malformed one, or longer than [`MAX_BYTES`].
    Malformed,
}

/// Reads a `ClientHello` from the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    match handshake(bytes) {
        Ok(Some(body)) => hello(&body).map_or(Parsed::Malformed, Parsed::Hello),
        Ok(None) if bytes.len() < MAX_BYTES => Parsed::More,
        _ => Parsed::Malformed,
    }
}

/// Puts records together; returns the body of the first handshake message once it is whole.
fn handshake(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut message = Vec::new();
    loop {
        if let [kind, a, b, c, body @ ..] = message.as_slice() {
            if *kind != CLIENT_HELLO {
                return Err(Malformed);
            }
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX_BYTES {
                return Err(Malformed);
            }
            if let Some(body) = body.get(..length) {
                return Ok(Some(body.to_vec()));
            }
        }
        let [kind, major, _minor, high, low, rest @ ..] = bytes else {
            let looks_right = bytes.first().is_none_or(|kind| *kind == HANDSHAKE);
            return if looks_right { Ok(None) } else { Err(Malformed) };
        };
        let length = usize::from(*high) << 8 | usize::from(*low);
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > MAX_RECORD {
            return Err(Malformed);
        }
        let Some((record, after)) = rest.split_at_checked(length) else { return Ok(None) };
        message.extend_from_slice(record);
        bytes = after;
    }
}

fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut input = Input(body);
    input.take(2 + 32)?;
    input.block8()?;
    input.block16()?;
    input.block8()?;
    let mut found = ClientHello::default();
    if input.0.is_empty() {
        return Some(found);
    }
    let mut extensions = Input(input.block16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let body = Input(extensions.block16()?);
        match kind {
            SERVER_NAME => found.server_name = server_name(body).ok()?,
            ALPN => found.protocols = protocols(body)?,
            _ => {}
        }
    }
    Some(found)
}

/// Reads the first host name.
fn server_name(mut body: Input<'_>) -> Result<Option<String>, Malformed> {
    let mut list = Input(body.block16().ok_or(Malformed)?);
    while !list.0.is_empty() {
        let kind = list.take(1).ok_or(Malformed)?[0];
        let name = list.block16().ok_or(Malformed)?;
        if kind == HOST_NAME {
            let is_sound = !name.is_empty() && name.len() <= 255 && name.iter().all(u8::is_ascii_graphic);
            let text = std::str::from_utf8(name).ok().filter(|_| is_sound).ok_or(Malformed)?;
            return Ok(Some(text.trim_end_matches('.').to_ascii_lowercase()));
        }
    }
    Ok(None)
}

fn protocols(mut body: Input<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Input(body.block16()?);
    let mut found = Vec::new();
    while !list.0.is_empty() {
        found.push(list.block8()?.to_vec());
    }
    Some(found)
}

struct Malformed;

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn block8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn block16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(length.into())
    }
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const HOST_NAME: u8 = 0;
/// The longest plaintext record (RFC 8446, section 5.1).
const MAX_RECORD: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn block16(body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("short");
        [&length.to_be_bytes(), body].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), block16(body)].concat()
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let body =
            [&[3, 3][..], &[0; 32], &[0], &block16(&[0x13, 1]), &[1, 0], &block16(extensions)].concat();
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &block16(part)].concat()).collect()
    }

    fn asking_for(name: &str) -> Vec<u8> {
        let entry = [&[0][..], &block16(name.as_bytes())].concat();
        let alpn = extension(16, &block16(b"\x02h2"));
        [extension(0, &block16(&entry)), alpn, extension(51, &[0; 1200])].concat()
    }

    #[test]
    fn name_and_protocols_are_read_across_records() {
        let bytes = records(&message(&asking_for("Api.Example.COM.")), 300);

        let parsed = parse(&bytes);

        let expected =
            ClientHello { server_name: Some("api.example.com".to_owned()), protocols: vec![b"h2".to_vec()] };
        assert_eq!(parsed, Parsed::Hello(expected));
    }

    #[test]
    fn every_cut_asks_for_more() {
        let bytes = records(&message(&asking_for("a.b")), 400);
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Parsed::More, "cut at {end}");
        }
    }

    #[test]
    fn a_hello_without_name_is_a_hello() {
        assert_eq!(parse(&records(&message(&[]), 100)), Parsed::Hello(ClientHello::default()));
    }

    #[test]
    fn other_bytes_are_malformed() {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0, 0], &[22, 3, 1, 0, 4, 2, 0, 0, 0]] {
            assert_eq!(parse(bytes), Parsed::Malformed, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_get_an_answer(mut bytes in proptest::collection::vec(0u8.., 0..600)) {
            let _ = parse(&bytes);
            bytes.splice(0..0, [22, 3, 1]);
            let _ = parse(&bytes);
        }

        #[test]
        fn a_broken_hello_gets_an_answer(at in 0usize..1300, value in 0u8..) {
            let mut bytes = records(&message(&asking_for("a.b")), 500);
            let end = bytes.len();
            bytes[at % end] = value;
            let _ = parse(&bytes);
        }
    }
}
