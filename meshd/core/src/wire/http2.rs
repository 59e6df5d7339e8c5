//! The frames of an HTTP/2 connection on their way into the parser, counted.
//!
//! Some frames cost their sender next to nothing and oblige us to answer or to work: PING, SETTINGS, PRIORITY, windows
//! moved by nothing, streams begun and reset. [`Frames`] counts them by second and says when a caller has gone too
//! far. What frames *mean* is the parser's: so are bad sizes, empty DATA and endless header blocks, which it bounds
//! itself. Source: RFC 9113, section 10.5; Envoy's protocol constraints.

/// The frames of one connection, followed through its bytes.
#[derive(Debug)]
pub struct Frames {
    limits: FrameLimits,
    /// Bytes of the preface that are still to come.
    preface: u8,
    header: [u8; FRAME_HEADER],
    have: usize,
    /// Bytes of the frame that are still to come.
    payload: usize,
    /// A header block is not complete: the next frame must continue it.
    in_block: bool,
    highest: u32,
    second: u64,
    counts: Counts,
    flood: Option<&'static str>,
    /// At least one whole frame has come.
    began: bool,
}

/// What a caller may send in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// PING, SETTINGS, PRIORITY and frames of unknown types, together, beside one for each 32 bytes that we sent:
    /// gRPC measures its bandwidth by a PING for what it receives. Default 200.
    pub control: u32,
    /// RST_STREAM, where more than half of the streams begun are reset. Default 500.
    pub resets: u32,
    /// WINDOW_UPDATE, beside one for each 16 bytes that we sent. Default 1,000.
    pub windows: u32,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { control: 200, resets: 500, windows: 1_000 }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    control: u32,
    resets: u32,
    streams: u32,
    windows: u64,
    sent: u64,
}

/// A caller has gone too far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// Bytes up to the end of the frame that was one too many.
    pub pass: usize,
    /// Which frames, for the log.
    pub reason: &'static str,
}

impl Frames {
    /// Begins at the first byte of a connection, the preface.
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            preface: PREFACE_BYTES,
            header: [0; FRAME_HEADER],
            have: 0,
            payload: 0,
            in_block: false,
            highest: 0,
            second: 0,
            counts: Counts::default(),
            flood: None,
            began: false,
        }
    }

    /// Whether preface and a first frame are there.
    pub fn has_begun(&self) -> bool {
        self.began
    }

    /// Whether a header block has begun and is not complete.
    pub fn is_in_block(&self) -> bool {
        self.in_block
    }

    /// Counts bytes that we sent: they are what windows are moved for.
    pub fn sent(&mut self, count: usize) {
        self.counts.sent = self.counts.sent.saturating_add(count as u64);
    }

    /// Follows bytes; `second` is any clock of whole seconds. After a [`Flood`] nothing more may pass.
    pub fn follow(&mut self, bytes: &[u8], second: u64) -> Option<Flood> {
        if self.second != second {
            self.second = second;
            self.counts = Counts::default();
        }
        let mut at = usize::from(self.preface).min(bytes.len());
        self.preface -= u8::try_from(at).unwrap_or(PREFACE_BYTES);
        while at < bytes.len() {
            if self.have < FRAME_HEADER {
                let count = (FRAME_HEADER - self.have).min(bytes.len() - at);
                self.header[self.have..self.have + count].copy_from_slice(&bytes[at..at + count]);
                (self.have, at) = (self.have + count, at + count);
                if self.have < FRAME_HEADER {
                    return None;
                }
                self.flood = self.count();
            }
            let count = self.payload.min(bytes.len() - at);
            (self.payload, at) = (self.payload - count, at + count);
            if self.payload > 0 {
                return None;
            }
            (self.have, self.began) = (0, true);
            if let Some(reason) = self.flood {
                return Some(Flood { pass: at, reason });
            }
        }
        None
    }

    /// Takes a frame's header in; says what it is too much of.
    fn count(&mut self) -> Option<&'static str> {
        let [a, b, c, kind, flags, id @ ..] = self.header;
        self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let counts = &mut self.counts;
        match kind {
            DATA => {}
            HEADERS | CONTINUATION => {
                self.in_block = flags & END_HEADERS == 0;
                if kind == HEADERS {
                    self.highest = self.highest.max(u32::from_be_bytes(id) & STREAM_ID);
                    counts.streams += 1;
                }
            }
            RST_STREAM => {
                counts.resets += 1;
                if counts.resets > self.limits.resets && counts.resets > counts.streams / 2 {
                    return Some("streams begun and reset");
                }
            }
            WINDOW_UPDATE => {
                counts.windows += 1;
                if counts.windows > u64::from(self.limits.windows) + counts.sent / SENT_FOR_A_WINDOW {
                    return Some("windows moved for nothing");
                }
            }
            _ => {
                counts.control += 1;
                if u64::from(counts.control) > u64::from(self.limits.control) + counts.sent / SENT_FOR_A_PING
                {
                    return Some(CONTROL_FLOODS.get(usize::from(kind)).copied().unwrap_or("unknown frames"));
                }
            }
        }
        None
    }

    /// Returns frames that make the parser end the connection with `ENHANCE_YOUR_CALM`, to be read after a [`Flood`]:
    /// a header block that goes on for longer than a list of `header_bytes` could.
    pub fn calm(&self, header_bytes: usize) -> Vec<u8> {
        let id = (self.highest + 2) | 1;
        let frame = |kind: u8| {
            let [a, b, c, d] = (id & STREAM_ID).to_be_bytes();
            [0, 0, 0, kind, 0, a, b, c, d]
        };
        let mut frames = Vec::new();
        if !self.in_block {
            frames.extend(frame(HEADERS));
        }
        let most = (header_bytes / SMALLEST_FRAME) * 5 / 4;
        for _ in 0..most + MORE_THAN_ENOUGH {
            frames.extend(frame(CONTINUATION));
        }
        frames
    }
}

const PREFACE_BYTES: u8 = 24;
const FRAME_HEADER: usize = 9;
const STREAM_ID: u32 = 0x7fff_ffff;
/// Bytes of ours that one WINDOW_UPDATE may answer: messages of gRPC may be as small.
const SENT_FOR_A_WINDOW: u64 = 16;
/// The same for a PING; more than the 17 bytes of its own answer, so that no PING pays for the next.
const SENT_FOR_A_PING: u64 = 32;
/// Least size that frames may be limited to. Source: RFC 9113, section 6.5.2.
const SMALLEST_FRAME: usize = 16 * 1024;
/// The parser tolerates five empty frames of continuation, or a quarter more than a full list needs.
const MORE_THAN_ENOUGH: usize = 16;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// By type of frame.
const CONTROL_FLOODS: [&str; 8] =
    ["", "", "PRIORITY frames", "", "SETTINGS frames", "PUSH_PROMISE frames", "PING frames", "GOAWAY frames"];

#[cfg(test)]
mod tests;
