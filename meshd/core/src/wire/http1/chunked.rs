//! A chunked body, followed octet by octet outside its data.

use http::StatusCode;

use super::{bad, refuse};
use crate::wire::guard::{Limits, Refusal};

/// How far a chunked body has come.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    at: At,
    /// Size of the chunk, or what of it is still to come.
    size: u64,
    digits: u8,
    /// Bytes of all extensions so far.
    extensions: usize,
    /// Bytes of all trailers so far.
    trailers: usize,
    /// Bytes of the trailer line so far.
    line: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    Over,
}

impl Chunked {
    /// Whether the body has ended.
    pub(super) fn is_over(&self) -> bool {
        self.at == At::Over
    }

    /// Follows the body to its end or that of the bytes; returns how many of them belong to it.
    pub(super) fn follow(&mut self, bytes: &[u8], limits: &Limits) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < bytes.len() && self.at != At::Over {
            if self.at == At::Data {
                let left = bytes.len() - at;
                let count = usize::try_from(self.size).map_or(left, |size| size.min(left));
                at += count;
                self.size -= count as u64;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
            } else {
                self.step(bytes[at], limits)?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8, limits: &Limits) -> Result<(), Refusal> {
        self.at = match (self.at, byte) {
            (At::Size, _) => return self.size(byte),
            (At::Extension, b'\r') => At::SizeLf,
            (At::Extension, b'\n') => return bad("bare LF in a chunk's extension"),
            (At::Extension, _) => {
                self.extensions += 1;
                if self.extensions > limits.chunk_extension_bytes {
                    return bad("chunk extensions too long");
                }
                At::Extension
            }
            (At::SizeLf, b'\n') if self.size == 0 => At::Trailer,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                (self.size, self.digits) = (0, 0);
                At::Size
            }
            (At::Trailer, _) => return self.trailer(byte, limits),
            (At::TrailerLf, b'\n') if self.line == 0 => At::Over,
            (At::TrailerLf, b'\n') => {
                self.line = 0;
                At::Trailer
            }
            _ => return bad("bad end of a chunk"),
        };
        Ok(())
    }

    fn size(&mut self, byte: u8) -> Result<(), Refusal> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' | b';' | b' ' | b'\t' if self.digits > 0 => {
                self.at = if byte == b'\r' { At::SizeLf } else { At::Extension };
                return Ok(());
            }
            _ => return bad("bad chunk size"),
        };
        self.digits += 1;
        if self.digits > MAX_DIGITS {
            return bad("chunk size too large");
        }
        self.size = self.size << 4 | u64::from(digit);
        Ok(())
    }

    fn trailer(&mut self, byte: u8, limits: &Limits) -> Result<(), Refusal> {
        match byte {
            b'\r' => self.at = At::TrailerLf,
            b'\n' => return bad("bare LF in a trailer"),
            b' ' | b'\t' if self.line == 0 => return bad("trailer folded over lines"),
            _ => self.line += 1,
        }
        self.trailers += 1;
        if self.trailers > limits.trailer_bytes {
            return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "trailers too large");
        }
        Ok(())
    }
}

/// Digits of a chunk's size: 15 stay well within 64 bits.
const MAX_DIGITS: u8 = 15;
