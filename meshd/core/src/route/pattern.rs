//! RE2 expressions, Istio's language, compiled by `regex`.
//!
//! Both are linear in time and nearly one language. What differs is rewritten here: `\d`, `\w`, `\s` and `\b` are
//! ASCII in RE2, `[` and `&&` inside a class are plain letters there, and `\Q…\E` quotes.
//!
//! differs: `\B` follows Unicode's idea of a word, RE2's follows ASCII's.

use regex::{Regex, RegexBuilder};

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("regular expression {pattern:?} cannot be used: {reason}")]
pub struct BadPattern {
    /// The expression, cut to 80 characters.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Compiles an expression that must cover the whole value.
pub fn whole(re2: &str) -> Result<Regex, BadPattern> {
    build(re2, &format!("^(?:{})$", translate(re2)))
}

/// Compiles an expression that may match anywhere, for substitution.
pub fn anywhere(re2: &str) -> Result<Regex, BadPattern> {
    build(re2, &translate(re2))
}

/// Turns RE2's replacement (`\1`, `\0`, `\\`) into `regex`'s (`${1}`, `$$`).
///
/// # Errors
/// A backslash before anything but a digit or a backslash, which RE2 refuses as well.
pub fn replacement(re2: &str) -> Result<String, BadPattern> {
    let mut out = String::with_capacity(re2.len());
    let mut letters = re2.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '$' => out.push_str("$$"),
            '\\' => match letters.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => {
                    return Err(bad(
                        re2,
                        "a backslash in a replacement stands before a digit or a backslash",
                    ));
                }
            },
            _ => out.push(letter),
        }
    }
    Ok(out)
}

fn build(re2: &str, pattern: &str) -> Result<Regex, BadPattern> {
    if re2.len() > MOST_PATTERN_BYTES {
        return Err(bad(re2, &format!("it is longer than {MOST_PATTERN_BYTES} bytes")));
    }
    RegexBuilder::new(pattern).size_limit(MOST_COMPILED_BYTES).nest_limit(MOST_NESTING).build().map_err(
        |error| {
            // The last line of `regex`'s message is the reason, the others draw the pattern.
            let text = error.to_string();
            bad(re2, text.lines().last().unwrap_or_default().trim_start_matches("error: "))
        },
    )
}

fn bad(pattern: &str, reason: &str) -> BadPattern {
    BadPattern { pattern: pattern.chars().take(80).collect(), reason: reason.to_owned() }
}

/// Rewrites what RE2 means differently.
fn translate(re2: &str) -> String {
    let mut out = String::with_capacity(re2.len() + 16);
    let mut letters = re2.chars().peekable();
    // Where in a class we are: its first letter may be a plain `]`.
    let mut class: Option<usize> = None;
    while let Some(letter) = letters.next() {
        match (letter, class) {
            ('\\', _) => match letters.next() {
                Some('Q') => quote(&mut letters, &mut out),
                Some(escaped) => escape(escaped, class.is_some(), &mut out),
                None => out.push('\\'),
            },
            ('[', None) => {
                out.push('[');
                if letters.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                class = Some(0);
                continue;
            }
            // `[:alpha:]` is the same in both.
            ('[', Some(_)) if letters.peek() == Some(&':') => {
                out.push('[');
                while let Some(inner) = letters.next() {
                    out.push(inner);
                    if inner == ':' && letters.peek() == Some(&']') {
                        out.extend(letters.next());
                        break;
                    }
                }
            }
            (']', Some(0)) => out.push_str("\\]"),
            (']', Some(_)) => {
                out.push(']');
                class = None;
            }
            ('[' | '&' | '~', Some(_)) => {
                out.push('\\');
                out.push(letter);
            }
            // `--` is a difference of classes in `regex`, a range up to `-` in RE2.
            ('-', Some(_)) if letters.peek() == Some(&'-') => {
                out.push('-');
                letters.next();
                out.push_str("\\-");
            }
            _ => out.push(letter),
        }
        class = class.map(|position| position + 1);
    }
    out
}

fn escape(letter: char, in_class: bool, out: &mut String) {
    let class = match letter {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => r"\t\n\x0C\r ",
        'D' => return out.push_str("[^0-9]"),
        'W' => return out.push_str("[^0-9A-Za-z_]"),
        'S' => return out.push_str(r"[^\t\n\x0C\r ]"),
        'b' if !in_class => return out.push_str(r"(?-u:\b)"),
        // Words of `regex` that are plain letters in RE2.
        '<' | '>' => return out.push(letter),
        _ => {
            out.push('\\');
            return out.push(letter);
        }
    };
    if in_class {
        return out.push_str(class);
    }
    out.push('[');
    out.push_str(class);
    out.push(']');
}

fn quote(letters: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    let mut text = String::new();
    while let Some(letter) = letters.next() {
        if letter == '\\' && letters.next_if_eq(&'E').is_some() {
            break;
        }
        text.push(letter);
    }
    out.push_str(&regex::escape(&text));
}

/// A generous length: Istio's own limit for an annotation-sized rule is far below.
const MOST_PATTERN_BYTES: usize = 16 * 1024;
/// What one compiled expression may take; about what Istio's `re2.max_program_size` of 32,768 comes to.
const MOST_COMPILED_BYTES: usize = 4 << 20;
/// Bounds the recursion of the parser.
const MOST_NESTING: u32 = 200;
