//! What is hidden of a request that people look at: values that let their holder in somewhere.

/// Stands for what is hidden.
pub(super) const HIDDEN: &str = "[hidden]";

/// Fields whose whole value is hidden.
const FIELDS: [&str; 6] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "www-authenticate",
    "proxy-authenticate",
];
/// Names of fields and of query parameters that hold one of these hide their value.
const WORDS: [&str; 14] = [
    "token",
    "secret",
    "passw",
    "pwd",
    "apikey",
    "api-key",
    "api_key",
    "credential",
    "session",
    "signature",
    "jwt",
    "assertion",
    "private",
    "auth",
];
/// Whole names of query parameters.
const PARAMETERS: [&str; 6] = ["key", "code", "sig", "sid", "pass", "otp"];

/// Whether the value of a field is hidden. `name` is in lower case.
pub(super) fn is_sensitive(name: &str) -> bool {
    FIELDS.contains(&name) || has_word(name)
}

fn has_word(name: &str) -> bool {
    // Names the host, as `:authority` does.
    name != "authority" && WORDS.iter().any(|word| name.contains(word))
}

/// Returns a path whose query has no sensitive values.
pub(super) fn path(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let hide = |pair: &str| {
        let Some((name, _)) = pair.split_once('=') else { return pair.to_owned() };
        let plain = decoded(name).to_ascii_lowercase();
        if PARAMETERS.contains(&plain.as_str()) || has_word(&plain) {
            format!("{name}={HIDDEN}")
        } else {
            pair.to_owned()
        }
    };
    // Some servers take a semicolon for the end of a parameter, too.
    let pairs: Vec<String> =
        query.split('&').map(|part| part.split(';').map(hide).collect::<Vec<_>>().join(";")).collect();
    format!("{path}?{}", pairs.join("&"))
}

/// `%74oken` is as good as `token` to a server.
fn decoded(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| name.get(at + 1..at + 3)).flatten();
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_let_somebody_in_are_hidden_however_their_names_are_written() {
        for (is, shown) in [
            ("/a", "/a"),
            ("/a?page=2&token=abc", "/a?page=2&token=[hidden]"),
            ("/a?%74oken=abc", "/a?%74oken=[hidden]"),
            ("/a?x=1;API_KEY=2", "/a?x=1;API_KEY=[hidden]"),
            ("/cb?code=abc&state=1", "/cb?code=[hidden]&state=1"),
            ("/a?monkey=1&%zz=2&%=3", "/a?monkey=1&%zz=2&%=3"),
            ("/a?token=x=y?z", "/a?token=[hidden]"),
        ] {
            assert_eq!(path(is), shown);
        }
    }

    #[test]
    fn fields_are_hidden_by_name_and_by_what_their_names_hold() {
        for name in
            ["authorization", "cookie", "set-cookie", "x-api-key", "x-csrf-token", "x-amz-security-token"]
        {
            assert!(is_sensitive(name), "{name}");
        }
        for name in ["host", "user-agent", "x-request-id", "end-user", "content-type"] {
            assert!(!is_sensitive(name), "{name}");
        }
    }
}
