//! Paths brought to one form, so that a rule for `/admin` cannot be walked around by `/x/../admin`.
//!
//! Matching and forwarding both use the result. Source: Istio `pathNormalization: BASE`, which is Envoy's
//! `normalize_path` by googleurl's `CanonicalizePath`, with escaped slashes kept and slashes not merged.

use std::borrow::Cow;

use crate::plan::Normalization;

/// A path that no form can be found for: it holds an escaped or a plain NUL. The answer is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path holds a NUL")]
pub struct BadPath;

/// Splits a request target in origin form into path and query; a `#fragment` is cut off.
///
/// Source: Envoy with `http_reject_path_with_fragment: false`, which Istio sets.
pub fn parts(target: &str) -> (&str, Option<&str>) {
    let whole = target.split_once('#').map_or(target, |(whole, _)| whole);
    whole.split_once('?').map_or((whole, None), |(path, query)| (path, Some(query)))
}

/// Brings a path (no query) to the form that the mesh is set to.
///
/// Escaped slashes are decoded first, several slashes merged last. Source: Envoy
/// `ConnectionManagerUtility::maybeNormalizePath`.
pub fn bring(raw: &str, how: Normalization) -> Result<Cow<'_, str>, BadPath> {
    match how {
        Normalization::Base => normalise(raw),
        Normalization::None => Ok(Cow::Borrowed(raw)),
        Normalization::MergeSlashes => normalise(raw).map(merged),
        Normalization::DecodeAndMergeSlashes => {
            let decoded = with_slashes(raw);
            Ok(Cow::Owned(merged(normalise(&decoded)?).into_owned()))
        }
    }
}

fn merged(path: Cow<'_, str>) -> Cow<'_, str> {
    if !path.contains("//") {
        return path;
    }
    let mut out = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter != '/' || !out.ends_with('/') {
            out.push(letter);
        }
    }
    Cow::Owned(out)
}

/// Decodes `%2F` and `%5C`.
fn with_slashes(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let slash = match after.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("2f") => Some('/'),
            Some("5c") => Some('\\'),
            _ => None,
        };
        rest = after;
        if let Some(slash) = slash {
            out.push(slash);
            rest = &after[2..];
        } else {
            out.push('%');
        }
    }
    out.push_str(rest);
    out
}

/// Brings a path (no query) to its one form.
///
/// `.` and `..` segments (also as `%2e`, also as `..;x`) are resolved, `\` becomes `/`, escapes of unreserved characters are
/// decoded, characters that do not belong in a path are escaped. Slashes are not merged, `%2F` and `%5C` and every
/// other escape stay as sent. Borrows when nothing changes, which is the usual case.
pub fn normalise(raw: &str) -> Result<Cow<'_, str>, BadPath> {
    if is_normal(raw.as_bytes()) {
        return Ok(Cow::Borrowed(raw));
    }
    let plain = without_parameters_of_dots(raw);
    let (raw, bytes) = (&*plain, plain.as_bytes());
    let mut out = String::with_capacity(bytes.len() + 16);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if let Some(dot) = dot_at(bytes, at) {
            at = take_dot(bytes, at + dot, &mut out);
            continue;
        }
        match byte {
            0 => return Err(BadPath),
            b'\\' => out.push('/'),
            b'%' => match escaped(bytes, at) {
                Some(0) => return Err(BadPath),
                Some(value) => {
                    if is_unreserved(value) {
                        out.push(char::from(value));
                    } else {
                        out.push_str(&raw[at..at + 3]);
                    }
                    at += 2;
                }
                None => out.push('%'),
            },
            _ if must_be_escaped(byte) => escape(byte, &mut out),
            _ => out.push(char::from(byte)),
        }
        at += 1;
    }
    Ok(Cow::Owned(out))
}

/// Whether a path is in its one form for sure: the cheap test of the usual case.
fn is_normal(bytes: &[u8]) -> bool {
    let mut before = 0;
    for &byte in bytes {
        let special = matches!(byte, b'%' | b'\\') || byte == b'.' && before == b'/';
        if special || must_be_escaped(byte) {
            return false;
        }
        before = byte;
    }
    true
}

/// Cuts `;parameters` off segments that are plain dots: servers that know path parameters read `/a/..;x/b` as `/b`.
///
/// Source: Envoy 1.40, `strip_dotdot_segments_with_parameters`; dots written as `%2e` stay as they are there.
fn without_parameters_of_dots(raw: &str) -> Cow<'_, str> {
    let dots = |segment: &str| match segment.split_once(';') {
        Some((dots @ ("." | ".."), _)) => Some(dots.len()),
        _ => None,
    };
    if !raw.split('/').any(|segment| dots(segment).is_some()) {
        return Cow::Borrowed(raw);
    }
    let kept = raw.split('/').map(|segment| dots(segment).map_or(segment, |end| &segment[..end]));
    Cow::Owned(kept.collect::<Vec<_>>().join("/"))
}

/// Takes in a dot that ends at `after`, and what it means: this folder, the one above, or just a dot.
/// Returns where to go on.
fn take_dot(bytes: &[u8], after: usize, out: &mut String) -> usize {
    let is_slash = |at: usize| matches!(bytes.get(at), Some(b'/' | b'\\'));
    let ends = |at: usize| at == bytes.len() || is_slash(at);
    let skip = |at: usize| at + usize::from(is_slash(at));
    if out.ends_with('/') {
        if ends(after) {
            return skip(after);
        }
        if let Some(second) = dot_at(bytes, after).filter(|second| ends(after + second)) {
            back_up(out);
            return skip(after + second);
        }
    }
    out.push('.');
    after
}

/// Cuts `out`, which ends in a slash, back to the slash before; the first slash stays.
fn back_up(out: &mut String) {
    let before = out.len().saturating_sub(1);
    let end = out[..before].rfind('/').map_or(1, |slash| slash + 1);
    out.truncate(end);
}

/// Returns the length of the dot at `at`, plain or escaped.
fn dot_at(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'.' => Some(1),
        b'%' if escaped(bytes, at) == Some(b'.') => Some(3),
        _ => None,
    }
}

/// Returns what the escape at `at` stands for.
fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

fn escape(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Source: googleurl's table of path characters.
fn must_be_escaped(byte: u8) -> bool {
    !(0x21..0x7f).contains(&byte)
        || matches!(byte, b'"' | b'#' | b'<' | b'>' | b'?' | b'^' | b'`' | b'{' | b'|' | b'}')
}
