//! Text in, expression out: by descent, with a bound on depth.

use super::{Attribute, BadExpression, Comparison, Expression, Question};

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Number(i64),
    Sign(&'static str),
}

/// Longest first.
const SIGNS: [&str; 18] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ".", ",", "-", "+", "?"];

/// Longest text.
const MOST_BYTES: usize = 4_096;
/// Deepest nesting.
const MOST_DEPTH: usize = 32;

pub(super) fn parse(text: &str) -> Result<Expression, BadExpression> {
    if text.len() > MOST_BYTES {
        return Err(BadExpression::unknown(1, format!("is longer than {MOST_BYTES} bytes")));
    }
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0, end: text.chars().count() + 1, depth: 0 };
    let expression = parser.either()?;
    match parser.peek() {
        None => Ok(expression),
        Some(token) => Err(parser.error(format!("{} is not expected here", shown(token)))),
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(word) => format!("\"{word}\""),
        Token::Text(text) => format!("'{text}'"),
        Token::Number(number) => number.to_string(),
        Token::Sign(sign) => format!("\"{sign}\""),
    }
}

/// Each with its place.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, BadExpression> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = chars.get(at).copied() {
        let error = |message: &str| BadExpression::unknown(at + 1, message);
        let run = |fits: fn(char) -> bool| chars[at..].iter().take_while(|c| fits(**c)).count();
        let token = match first {
            c if c.is_whitespace() => {
                at += 1;
                continue;
            }
            '\'' | '"' => {
                let (text, length) = quoted(&chars[at..])
                    .ok_or_else(|| BadExpression { is_malformed: true, ..error("a quote does not end") })?;
                found.push((at + 1, Token::Text(text)));
                at += length;
                continue;
            }
            c if c.is_ascii_digit() => {
                let length = run(|c| c.is_ascii_digit());
                let digits: String = chars[at..at + length].iter().collect();
                let number = digits.parse().map_err(|_| error("the number is too large"))?;
                (Token::Number(number), length)
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let length = run(|c| c.is_ascii_alphanumeric() || c == '_');
                (Token::Word(chars[at..at + length].iter().collect()), length)
            }
            _ => {
                let fits = |sign: &&&str| chars[at..].iter().copied().take(sign.len()).eq(sign.chars());
                let sign =
                    SIGNS.iter().find(fits).ok_or_else(|| error(&format!("{first:?} is not known")))?;
                (Token::Sign(sign), sign.len())
            }
        };
        found.push((at + 1, token.0));
        at += token.1;
    }
    Ok(found)
}

/// Reads a quoted text, and how many characters it takes.
fn quoted(chars: &[char]) -> Option<(String, usize)> {
    let quote = *chars.first()?;
    let mut text = String::new();
    let mut at = 1;
    loop {
        match *chars.get(at)? {
            '\\' => {
                let escaped = *chars.get(at + 1)?;
                text.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    other => other,
                });
                at += 2;
            }
            c if c == quote => return Some((text, at + 1)),
            c => {
                text.push(c);
                at += 1;
            }
        }
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    /// The place behind the last character.
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn place(&self) -> usize {
        self.tokens.get(self.at).map_or(self.end, |(place, _)| *place)
    }

    fn error(&self, message: impl Into<String>) -> BadExpression {
        BadExpression::unknown(self.place(), message)
    }

    fn malformed(&self, message: impl Into<String>) -> BadExpression {
        BadExpression { is_malformed: true, ..self.error(message) }
    }

    fn takes(&mut self, sign: &'static str) -> bool {
        let is_it = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(is_it);
        is_it
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), BadExpression> {
        if self.takes(sign) { Ok(()) } else { Err(self.error(format!("\"{sign}\" is missing"))) }
    }

    fn either(&mut self) -> Result<Expression, BadExpression> {
        self.deeper()?;
        let mut left = self.both()?;
        while self.takes("||") {
            left = Expression::Or(Box::new(left), Box::new(self.both()?));
        }
        self.depth -= 1;
        Ok(left)
    }

    fn deeper(&mut self) -> Result<(), BadExpression> {
        self.depth += 1;
        if self.depth > MOST_DEPTH { Err(self.error("is nested too deeply")) } else { Ok(()) }
    }

    fn both(&mut self) -> Result<Expression, BadExpression> {
        let mut left = self.comparison()?;
        while self.takes("&&") {
            left = Expression::And(Box::new(left), Box::new(self.comparison()?));
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Expression, BadExpression> {
        let left = self.unary()?;
        if self.peek() == Some(&Token::Word("in".into())) {
            self.at += 1;
            return self.among(left);
        }
        let comparisons = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::AtMost),
            (">=", Comparison::AtLeast),
            ("<", Comparison::Less),
            (">", Comparison::More),
        ];
        for (sign, comparison) in comparisons {
            if self.takes(sign) {
                return Ok(Expression::Compare(comparison, Box::new(left), Box::new(self.unary()?)));
            }
        }
        Ok(left)
    }

    /// `'name' in request.headers`, `value in [a, b]`.
    fn among(&mut self, left: Expression) -> Result<Expression, BadExpression> {
        if self.takes("[") {
            let mut any = Expression::Truth(false);
            while !self.takes("]") {
                let equal =
                    Expression::Compare(Comparison::Equal, Box::new(left.clone()), Box::new(self.unary()?));
                any = match any {
                    Expression::Truth(false) => equal,
                    any => Expression::Or(Box::new(any), Box::new(equal)),
                };
                if !self.takes(",") && self.peek() != Some(&Token::Sign("]")) {
                    return Err(self.error("\"]\" is missing"));
                }
            }
            return Ok(any);
        }
        let place = self.place();
        match (left, self.path()?.as_str()) {
            (Expression::Text(name), HEADERS) => Ok(Expression::Has(name.to_ascii_lowercase())),
            (_, path) => Err(BadExpression::unknown(
                place,
                format!("\"in {path}\" is not known: in [a, b] and 'name' in {HEADERS} are"),
            )),
        }
    }

    fn unary(&mut self) -> Result<Expression, BadExpression> {
        let mut negations = 0_usize;
        while self.takes("!") {
            negations += 1;
        }
        let minus = self.takes("-");
        let mut part = self.primary()?;
        if minus {
            let Expression::Number(number) = part else { return Err(self.error("\"-\" is for numbers")) };
            part = Expression::Number(-number);
        }
        Ok(if negations % 2 == 1 { Expression::Not(Box::new(part)) } else { part })
    }

    fn primary(&mut self) -> Result<Expression, BadExpression> {
        let place = self.place();
        match self.peek().cloned() {
            None => Err(self.malformed("it ends too early")),
            Some(Token::Sign("(")) => {
                self.at += 1;
                let inner = self.either()?;
                self.expect(")")?;
                Ok(inner)
            }
            // A list is an expression of CEL; no other sign begins one.
            Some(Token::Sign("[")) => Err(self.error("lists are known behind \"in\" only")),
            Some(Token::Sign(sign)) => Err(self.malformed(format!("\"{sign}\" is not expected here"))),
            Some(Token::Number(number)) => {
                self.at += 1;
                Ok(Expression::Number(number))
            }
            Some(Token::Text(text)) => {
                self.at += 1;
                self.asked(Expression::Text(text))
            }
            Some(Token::Word(word)) => match word.as_str() {
                "true" | "false" => {
                    self.at += 1;
                    Ok(Expression::Truth(word == "true"))
                }
                "has" => self.has(),
                _ => self.attribute(place),
            },
        }
    }

    fn has(&mut self) -> Result<Expression, BadExpression> {
        self.at += 1;
        self.expect("(")?;
        let place = self.place();
        let path = self.path()?;
        let header = match path.strip_prefix("request.headers.") {
            Some(name) => name.to_owned(),
            None if path == HEADERS => self.index()?,
            None => {
                let message = format!("has({path}) is not known: has({HEADERS}.name) is");
                return Err(BadExpression::unknown(place, message));
            }
        };
        self.expect(")")?;
        Ok(Expression::Has(header.to_ascii_lowercase()))
    }

    /// `['name']`.
    fn index(&mut self) -> Result<String, BadExpression> {
        self.expect("[")?;
        let Some(Token::Text(name)) = self.peek().cloned() else {
            return Err(self.error("the name of a header is missing, in quotes"));
        };
        self.at += 1;
        self.expect("]")?;
        Ok(name)
    }

    /// Words with dots between them, up to what is called.
    fn path(&mut self) -> Result<String, BadExpression> {
        let Some(Token::Word(first)) = self.peek().cloned() else {
            return Err(self.error("a name is missing"));
        };
        self.at += 1;
        let mut path = first;
        while let (Some((_, Token::Sign("."))), Some((_, Token::Word(next)))) =
            (self.tokens.get(self.at), self.tokens.get(self.at + 1))
        {
            let is_call = matches!(self.tokens.get(self.at + 2), Some((_, Token::Sign("("))));
            if is_call && path != "has" {
                break;
            }
            path = format!("{path}.{next}");
            self.at += 2;
        }
        Ok(path)
    }

    fn attribute(&mut self, place: usize) -> Result<Expression, BadExpression> {
        let path = self.path()?;
        let attribute = match path.strip_prefix("request.headers.") {
            Some(name) => Some(Attribute::RequestHeader(name.to_ascii_lowercase())),
            None if path == HEADERS && self.peek() == Some(&Token::Sign("[")) => {
                Some(Attribute::RequestHeader(self.index()?.to_ascii_lowercase()))
            }
            None => Attribute::named(&path),
        };
        let Some(attribute) = attribute else {
            let known: Vec<&str> = Attribute::PATHS.iter().map(|(path, _)| *path).collect();
            let message = format!("{path} is not known; known are {}, {HEADERS}['name']", known.join(", "));
            return Err(BadExpression::unknown(place, message));
        };
        self.asked(Expression::Attribute(attribute))
    }

    /// What is asked of a text: `.startsWith('…')`.
    fn asked(&mut self, of: Expression) -> Result<Expression, BadExpression> {
        if !self.takes(".") {
            return Ok(of);
        }
        let question = match self.peek() {
            Some(Token::Word(word)) => match word.as_str() {
                "startsWith" => Question::StartsWith,
                "endsWith" => Question::EndsWith,
                "contains" => Question::Contains,
                other => {
                    let known = "startsWith, endsWith and contains are";
                    return Err(self.error(format!("{other}() is not known: {known}")));
                }
            },
            _ => return Err(self.error("a name is missing")),
        };
        self.at += 1;
        self.expect("(")?;
        self.deeper()?;
        let part = self.unary()?;
        self.depth -= 1;
        self.expect(")")?;
        Ok(Expression::About(question, Box::new(of), Box::new(part)))
    }
}

const HEADERS: &str = "request.headers";
