//! The page for people: a few files within the binary, which read the same JSON as everybody and change nothing.
//!
//! Names on it come from rules, which others wrote: its script sets text as text, and its policy lets nothing run, load or
//! connect that is not from here.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::Full;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, type and text of every file.
const FILES: [(&str, &str, &str); 6] = [
    ("/", HTML, include_str!("files/index.html")),
    ("/ui/style.css", CSS, include_str!("files/style.css")),
    ("/ui/main.js", SCRIPT, include_str!("files/main.js")),
    ("/ui/map.js", SCRIPT, include_str!("files/map.js")),
    ("/ui/model.js", SCRIPT, include_str!("files/model.js")),
    ("/ui/words.js", SCRIPT, include_str!("files/words.js")),
];

/// `img-src data:` is for the icon.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether a browser asks, rather than a program.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|accepted| accepted.contains("text/html"))
}

/// Returns a file of the page.
pub(super) fn file(path: &str) -> Option<http::Response<Full<Bytes>>> {
    let (_, content_type, text) = FILES.iter().find(|(name, ..)| *name == path)?;
    let mut response = http::Response::new(Full::from(*text));
    let fields = [
        (header::CONTENT_TYPE, *content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The next version may have others.
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "accept"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}
