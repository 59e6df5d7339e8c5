//! Whose part a request is in a trace: read off its headers, decided, and written into them.
//!
//! W3C Trace Context, and B3 in its one-header and many-headers forms. What came in B3 goes on in B3, with W3C's beside it.
//! Source: W3C "Trace Context" level 1; openzipkin/b3-propagation.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use rand_core::RngCore;

use crate::hex;

/// What a request says about its trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The trace; 0: only the decision came.
    pub trace: u128,
    /// The span that it is a part of.
    pub parent: u64,
    /// Whether it shall be sampled; `None`: nobody has decided.
    pub sampled: Option<bool>,
    /// `tracestate`, as it came.
    pub state: String,
    /// How it was written.
    pub form: Form,
}

/// How a context is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `traceparent`.
    #[default]
    W3c,
    /// `b3`.
    B3Single,
    /// `x-b3-…`.
    B3Many,
}

/// A span that is begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The trace.
    pub trace: u128,
    /// This span, not 0.
    pub id: u64,
    /// The one it is a part of; 0: none.
    pub parent: u64,
    /// Whether it is told.
    pub sampled: bool,
    /// `tracestate`, as it came.
    pub state: String,
    form: Form,
}

/// Reads what a request says about its trace. What is malformed was not said.
pub fn extract(headers: &HeaderMap) -> Option<Context> {
    if let Some(context) = w3c(headers) {
        return Some(context);
    }
    // Most requests have nothing of B3: to look six names up costs more than to see that.
    let has_b3 = headers.keys().any(|name| name.as_str().starts_with("x-b3-") || *name == B3);
    has_b3.then(|| b3_single(headers).or_else(|| b3_many(headers))).flatten()
}

/// Begins a span. A request that comes with a decision keeps it; else `sampling` in a million are told.
pub fn begin(context: Option<Context>, sampling: u32, rng: &mut impl RngCore) -> Begun {
    let Context { trace, parent, sampled, state, form } = context.unwrap_or_default();
    let mut not_zero = || loop {
        let id = rng.next_u64();
        if id != 0 {
            break id;
        }
    };
    let id = not_zero();
    let trace = if trace == 0 { u128::from(not_zero()) << 64 | u128::from(not_zero()) } else { trace };
    let drawn = (u64::from(rng.next_u32()) * 1_000_000) >> 32 < u64::from(sampling);
    Begun { trace, id, parent, sampled: sampled.unwrap_or(drawn), state, form }
}

impl Begun {
    /// Writes itself as the parent of what comes next.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let flags = u8::from(self.sampled);
        let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
        parent[3..35].copy_from_slice(&hex::thirty_two(self.trace));
        parent[36..52].copy_from_slice(&hex::sixteen(self.id));
        parent[54] = b'0' + flags;
        // Shared from the start: it is copied with the other fields.
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from_owner(parent)) {
            headers.insert(TRACEPARENT, value);
        }
        match self.form {
            Form::W3c => {}
            Form::B3Single => {
                put(headers, B3, format!("{:032x}-{:016x}-{flags}", self.trace, self.id));
            }
            Form::B3Many => {
                put(headers, B3_TRACE, format!("{:032x}", self.trace));
                put(headers, B3_SPAN, format!("{:016x}", self.id));
                if self.parent == 0 {
                    headers.remove(B3_PARENT);
                } else {
                    put(headers, B3_PARENT, format!("{:016x}", self.parent));
                }
                put(headers, B3_SAMPLED, flags.to_string());
                headers.remove(B3_FLAGS);
            }
        }
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

fn w3c(headers: &HeaderMap) -> Option<Context> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_sound = version.len() == 2
        && version != "ff"
        && read_hex::<u8>(version).is_some()
        && flags.len() == 2
        && (version != "00" || parts.next().is_none());
    let flags = read_hex::<u8>(flags).filter(|_| is_sound)?;
    let (trace, parent) = (ids(trace, 32)?, span_of(parent)?);
    let states: Vec<&str> = headers.get_all(TRACESTATE).iter().filter_map(|one| one.to_str().ok()).collect();
    let state = Some(states.join(",")).filter(|state| state.len() <= STATE_BYTES).unwrap_or_default();
    Some(Context { trace, parent, sampled: Some(flags & 1 == 1), state, form: Form::W3c })
}

fn b3_single(headers: &HeaderMap) -> Option<Context> {
    let text = headers.get(B3)?.to_str().ok()?;
    let form = Form::B3Single;
    if text.len() == 1 {
        return Some(Context { sampled: Some(decision(text)?), form, ..Context::default() });
    }
    let mut parts = text.split('-');
    let (trace, parent) = (b3_trace(parts.next()?)?, span_of(parts.next()?)?);
    let sampled = match parts.next() {
        Some(text) => Some(decision(text)?),
        None => None,
    };
    Some(Context { trace, parent, sampled, form, ..Context::default() })
}

fn b3_many(headers: &HeaderMap) -> Option<Context> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_debugged = text(B3_FLAGS) == Some("1");
    let sampled = if is_debugged { Some(true) } else { text(B3_SAMPLED).and_then(decision) };
    let form = Form::B3Many;
    match (text(B3_TRACE).and_then(b3_trace), text(B3_SPAN).and_then(span_of)) {
        (Some(trace), Some(parent)) => Some(Context { trace, parent, sampled, form, ..Context::default() }),
        _ => sampled.map(|sampled| Context { sampled: Some(sampled), form, ..Context::default() }),
    }
}

fn decision(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// Of 64 or 128 bits.
fn b3_trace(text: &str) -> Option<u128> {
    ids(text, 32).or_else(|| ids(text, 16))
}

fn span_of(text: &str) -> Option<u64> {
    u64::try_from(ids(text, 16)?).ok()
}

fn ids(text: &str, digits: usize) -> Option<u128> {
    read_hex::<u128>(text).filter(|id| text.len() == digits && *id != 0)
}

/// Reads lower-case or, as B3 allows, upper-case digits; no sign.
fn read_hex<T: TryFrom<u128>>(text: &str) -> Option<T> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    T::try_from(u128::from_str_radix(text, 16).ok().filter(|_| is_hex)?).ok()
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// As much of `tracestate` as all must pass on.
const STATE_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::chance::SeededRng;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    const SPAN: u64 = 0xb7ad_6b71_6920_3331;

    #[test]
    fn every_form_is_read() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<bool>, Form);
        let cases: [Case<'_>; 6] = [
            (
                &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
                Some(true),
                Form::W3c,
            ),
            (
                &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")],
                Some(false),
                Form::W3c,
            ),
            (
                &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-05e3ac9a4f6e3b90")],
                Some(true),
                Form::B3Single,
            ),
            (&[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331")], None, Form::B3Single),
            (
                &[
                    ("x-b3-traceid", "0AF7651916CD43DD8448EB211C80319C"),
                    ("x-b3-spanid", "b7ad6b7169203331"),
                    ("x-b3-sampled", "0"),
                ],
                Some(false),
                Form::B3Many,
            ),
            (
                &[
                    ("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"),
                    ("x-b3-spanid", "b7ad6b7169203331"),
                    ("x-b3-flags", "1"),
                ],
                Some(true),
                Form::B3Many,
            ),
        ];
        for (lines, sampled, form) in cases {
            let context = extract(&headers(lines)).expect("a context");
            let expected = Context { trace: TRACE, parent: SPAN, sampled, form, state: String::new() };
            assert_eq!(context, expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_malformed_was_not_said() {
        for value in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(extract(&headers(&[("traceparent", value)])), None, "{value}");
        }
    }

    #[test]
    fn a_decision_that_came_is_kept_and_others_are_drawn() {
        let mut rng = SeededRng(7);
        for sampled in [true, false] {
            let context =
                Context { trace: TRACE, parent: SPAN, sampled: Some(sampled), ..Context::default() };
            let begun = begin(Some(context), if sampled { 0 } else { 1_000_000 }, &mut rng);
            assert_eq!((begun.trace, begun.parent, begun.sampled), (TRACE, SPAN, sampled));
        }
        let drawn = (0..10_000).filter(|_| begin(None, 100_000, &mut rng).sampled).count();
        // Odds of one in a million: 6 standard deviations of 30.
        assert!((820..=1_180).contains(&drawn), "{drawn} of 10000 at 10 %");
    }

    #[test]
    fn what_goes_on_names_this_span_in_the_form_that_came() {
        let mut rng = SeededRng(7);
        let mut sent = headers(&[
            ("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"),
            ("x-b3-spanid", "b7ad6b7169203331"),
            ("x-b3-sampled", "1"),
        ]);
        let begun = begin(extract(&sent), 0, &mut rng);

        begun.inject(&mut sent);

        assert_eq!(sent["x-b3-spanid"], format!("{:016x}", begun.id).as_str());
        assert_eq!(sent["x-b3-parentspanid"], "b7ad6b7169203331");
        let read = w3c(&sent).expect("W3C's beside it");
        assert_eq!((read.trace, read.parent, read.sampled), (TRACE, begun.id, Some(true)));
    }
}
