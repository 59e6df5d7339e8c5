//! The bytes of an HTTP/1 connection on their way into the parser: where each request begins and ends, and whether
//! that can be trusted.
//!
//! A parser that tolerates a thing no longer shows it: line ends without CR, a length said twice, a length beside a
//! chunked body, padding in chunk sizes. [`Requests`] looks at the octets themselves. A head passes only once it is
//! complete and sound, so that a slow or broken one never reaches the parser; bodies pass as they come, while their
//! framing is followed. Source: RFC 9112, sections 2.2, 3, 5, 6 and 7. differs: Envoy lets bare LF, folded fields and
//! long chunk extensions pass, or repairs them.

use http::StatusCode;

use super::guard::{Limits, Refusal};
use chunked::Chunked;

mod chunked;

/// The requests of one connection, followed through its bytes.
#[derive(Debug)]
pub struct Requests {
    limits: Limits,
    state: State,
    head: Head,
    /// The last head asked to switch protocols: nothing behind it may pass before that is decided.
    switching: bool,
    begun: u64,
}

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
}

/// What became of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many of them may pass, from the first on. The rest is to be shown again, with more behind it.
    pub pass: usize,
    /// Why nothing behind them may ever pass.
    pub refused: Option<Refused>,
}

/// Why a connection cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the caller is answered.
    pub refusal: Refusal,
    /// Which part of a request it is about.
    pub part: Part,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Request line and fields: nothing of it has passed.
    Head,
    /// Its head has passed already.
    Body,
}

impl Requests {
    /// Begins at the first byte of a connection.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: State::Head, head: Head::default(), switching: false, begun: 0 }
    }

    /// Returns how many heads have passed.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Whether bytes are held back because the last request asked to switch protocols.
    pub fn is_switching(&self) -> bool {
        self.switching
    }

    /// Whether the last request is complete and nothing of the next was shown.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Head) && self.head.scanned == 0 && !self.switching
    }

    /// Goes on with HTTP/1 after a request to switch was answered otherwise.
    pub fn stay(&mut self) {
        self.switching = false;
    }

    /// Looks at what has come: first what was held back before, then what is new.
    pub fn admit(&mut self, bytes: &[u8]) -> Seen {
        let mut pass = 0;
        while pass < bytes.len() {
            let rest = &bytes[pass..];
            let refused = match &mut self.state {
                State::Head if self.switching => return Seen { pass, refused: None },
                State::Head => match self.head.scan(rest, &self.limits) {
                    Ok(None) => return Seen { pass, refused: None },
                    Ok(Some(end)) => {
                        pass += end;
                        self.begin_body();
                        continue;
                    }
                    Err(refusal) => Refused { refusal, part: Part::Head },
                },
                State::Length(left) => {
                    let count = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    *left -= count as u64;
                    pass += count;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                    continue;
                }
                State::Chunked(chunked) => match chunked.follow(rest, &self.limits) {
                    Ok(count) => {
                        pass += count;
                        if chunked.is_over() {
                            self.state = State::Head;
                        }
                        continue;
                    }
                    Err(refusal) => Refused { refusal, part: Part::Body },
                },
            };
            return Seen { pass, refused: Some(refused) };
        }
        Seen { pass, refused: None }
    }

    fn begin_body(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.begun += 1;
        self.switching = head.switches;
        self.state = match head.length {
            _ if head.chunked => State::Chunked(Chunked::default()),
            Some(length @ 1..) => State::Length(length),
            _ => State::Head,
        };
    }
}

/// A head being read. All positions count from its first byte.
#[derive(Debug, Default)]
struct Head {
    /// Where the line that is being read begins.
    line: usize,
    /// What was looked at already.
    scanned: usize,
    /// Complete lines so far, leading empty ones apart.
    lines: usize,
    length: Option<u64>,
    chunked: bool,
    is_http10: bool,
    switches: bool,
}

impl Head {
    /// Reads on; returns where the head ends, once it does.
    fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        while let Some(at) = line_end(&bytes[self.scanned..]) {
            let end = self.scanned + at;
            let line = &bytes[self.line..end];
            let Some(line) = line.strip_suffix(b"\r") else { return bad("bare LF in the head") };
            (self.scanned, self.line) = (end + 1, end + 1);
            match (self.lines, line) {
                // An empty line or two before a request: left over by clients of old (RFC 9112, section 2.2).
                (0, []) if end < BLANK_BYTES => continue,
                (0, _) => self.request_line(line, limits)?,
                (_, []) => return self.complete().map(|()| Some(end + 1)),
                (_, _) => self.field(line)?,
            }
            self.lines += 1;
            if self.lines > limits.headers + 1 {
                return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers");
            }
        }
        self.scanned = bytes.len();
        if self.lines == 0 && !may_become_a_line(&bytes[self.line..]) {
            return bad("not HTTP");
        }
        self.check_size(bytes.len() - self.line, limits).map(|()| None)
    }

    /// Checks what cannot become a head any more, however it goes on.
    fn check_size(&self, line_bytes: usize, limits: &Limits) -> Result<(), Refusal> {
        let most = limits.uri_bytes + limits.method_bytes + LINE_SLACK;
        if self.lines == 0 && line_bytes > most {
            return refuse(StatusCode::URI_TOO_LONG, "target too long");
        }
        if self.scanned > limits.header_bytes + most + limits.headers * FIELD_SLACK {
            return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers too large");
        }
        Ok(())
    }

    fn request_line(&mut self, line: &[u8], limits: &Limits) -> Result<(), Refusal> {
        let method = line.iter().take(limits.method_bytes + 1).position(|byte| *byte == b' ');
        let Some(method) = method else { return bad("no method, or a method too long") };
        let Some(version) = line.iter().rposition(|byte| *byte == b' ').filter(|at| *at > method) else {
            return bad("no version in the request line");
        };
        // As where the line comes in pieces.
        if !line[..method].iter().all(|byte| is_token(*byte)) {
            return bad("not HTTP");
        }
        let target = &line[method + 1..version];
        if target.len() > limits.uri_bytes {
            return refuse(StatusCode::URI_TOO_LONG, "target too long");
        }
        if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
            return bad("bad target");
        }
        self.switches = &line[..method] == b"CONNECT";
        match &line[version + 1..] {
            b"HTTP/1.1" => Ok(()),
            b"HTTP/1.0" => {
                self.is_http10 = true;
                Ok(())
            }
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                refuse(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "unknown version")
            }
            _ => bad("bad version"),
        }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let Some(colon) = line.iter().position(|byte| !is_token(*byte)) else { return bad("bad field") };
        // Without an early end, so that many octets are looked at in one step.
        let controls = line[colon..].iter().fold(false, |any, byte| any | is_control(*byte));
        match line[0] {
            b' ' | b'\t' => return bad("field folded over lines"),
            _ if colon == 0 || line[colon] != b':' => return bad("bad name of a field"),
            _ if controls => return bad("control character in a field"),
            _ => {}
        }
        match line[0] {
            b'c' | b'C' => named(line, b"content-length").map_or(Ok(()), |value| self.content_length(value)),
            b't' | b'T' => {
                named(line, b"transfer-encoding").map_or(Ok(()), |value| self.transfer_encoding(value))
            }
            b'u' | b'U' => {
                self.switches |= named(line, b"upgrade").is_some();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return bad("two Content-Lengths");
        }
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(value).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
        // The two highest are words of the parser's own.
        let number = number.filter(|number| *number < u64::MAX - 1);
        self.length = Some(number.ok_or(BAD_LENGTH)?);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked {
            return bad("two Transfer-Encodings");
        }
        if value.is_empty() || value.iter().any(|byte| !matches!(byte, b' '..=b'~' | b'\t')) {
            return bad("bad Transfer-Encoding");
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return refuse(StatusCode::NOT_IMPLEMENTED, "unknown transfer coding");
        }
        self.chunked = true;
        Ok(())
    }

    fn complete(&self) -> Result<(), Refusal> {
        if self.chunked && self.length.is_some() {
            return bad("Content-Length with Transfer-Encoding");
        }
        if self.chunked && self.is_http10 {
            return bad("Transfer-Encoding in HTTP/1.0");
        }
        Ok(())
    }
}

/// Finds the next LF, many octets at a step.
fn line_end(bytes: &[u8]) -> Option<usize> {
    const STEP: usize = 32;
    let mut steps = bytes.chunks_exact(STEP);
    let holds = |step: &[u8]| step.iter().fold(0, |any, byte| any | u8::from(*byte == b'\n')) != 0;
    let before = steps.by_ref().position(holds).unwrap_or(bytes.len() / STEP) * STEP;
    let at = bytes[before..].iter().position(|byte| *byte == b'\n')?;
    Some(before + at)
}

/// Whether a request line may begin so: other protocols are told at once, not when time is over.
fn may_become_a_line(start: &[u8]) -> bool {
    let method = start.iter().take(METHOD_LOOK).take_while(|byte| **byte != b' ');
    start == b"\r" || method.into_iter().all(|byte| is_token(*byte))
}

/// Returns the value of a field if it has this name.
fn named<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then(|| without_blanks(value))
}

fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// Whether an octet may stand in a name. Source: RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        #[expect(clippy::cast_possible_truncation, reason = "below 128; no other cast is const")]
        let character = byte as u8;
        table[byte] = character.is_ascii_alphanumeric()
            || matches!(
                character,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

/// Takes off blanks and tabs at both ends; other white space of ASCII stays, to be refused.
fn without_blanks(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |at| at + 1);
    &value[start..end]
}

fn bad<T>(reason: &'static str) -> Result<T, Refusal> {
    refuse(StatusCode::BAD_REQUEST, reason)
}

fn refuse<T>(status: StatusCode, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

const BAD_LENGTH: Refusal = Refusal { status: StatusCode::BAD_REQUEST, reason: "bad Content-Length" };
/// How far a method is looked at before its line is complete.
const METHOD_LOOK: usize = 16;
/// Empty lines that may stand before a request.
const BLANK_BYTES: usize = 8;
/// Blanks, version and line end of a request line.
const LINE_SLACK: usize = 16;
/// Colon, blanks and line end of a field.
const FIELD_SLACK: usize = 8;

#[cfg(test)]
mod tests;
