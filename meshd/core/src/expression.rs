//! What an expression of `Telemetry` comes to for one request.
//!
//! What is not known makes an expression unknown, unless the rest of it decides: `unknown || true` is true. A condition that
//! is unknown does not hold. Source: CEL, "Evaluation"; Envoy's access log filter.

use std::borrow::Cow;
use std::cmp::Ordering;

use mesh_proto::expression::{Attribute, Comparison, Expression, Question};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// A whole number.
    Number(i64),
    /// True or false.
    Truth(bool),
}

/// What is known of a request.
pub trait Facts {
    /// Returns what an attribute is; `None`: it is not known.
    fn attribute(&self, attribute: &Attribute) -> Option<Value<'_>>;

    /// Whether the request has a header.
    fn has_header(&self, name: &str) -> bool;
}

/// Whether a condition holds.
pub fn holds(condition: &Expression, facts: &impl Facts) -> bool {
    truth(condition, facts) == Some(true)
}

fn truth(expression: &Expression, facts: &impl Facts) -> Option<bool> {
    match value(expression, facts)? {
        Value::Truth(truth) => Some(truth),
        Value::Text(_) | Value::Number(_) => None,
    }
}

fn text<'a>(expression: &'a Expression, facts: &'a impl Facts) -> Option<Cow<'a, str>> {
    match value(expression, facts)? {
        Value::Text(text) => Some(text),
        Value::Number(_) | Value::Truth(_) => None,
    }
}

fn value<'a>(expression: &'a Expression, facts: &'a impl Facts) -> Option<Value<'a>> {
    Some(match expression {
        Expression::Text(text) => Value::Text(text.into()),
        Expression::Number(number) => Value::Number(*number),
        Expression::Truth(truth) => Value::Truth(*truth),
        Expression::Attribute(attribute) => facts.attribute(attribute)?,
        Expression::Has(header) => Value::Truth(facts.has_header(header)),
        Expression::Not(part) => Value::Truth(!truth(part, facts)?),
        Expression::And(one, other) => match (truth(one, facts), truth(other, facts)) {
            (Some(false), _) | (_, Some(false)) => Value::Truth(false),
            (one, other) => Value::Truth(one? && other?),
        },
        Expression::Or(one, other) => match (truth(one, facts), truth(other, facts)) {
            (Some(true), _) | (_, Some(true)) => Value::Truth(true),
            (one, other) => Value::Truth(one? || other?),
        },
        Expression::Compare(comparison, one, other) => {
            Value::Truth(compare(*comparison, &value(one, facts)?, &value(other, facts)?)?)
        }
        Expression::About(question, of, part) => {
            let (of, part) = (text(of, facts)?, text(part, facts)?);
            Value::Truth(match question {
                Question::StartsWith => of.starts_with(&*part),
                Question::EndsWith => of.ends_with(&*part),
                Question::Contains => of.contains(&*part),
            })
        }
    })
}

fn compare(comparison: Comparison, one: &Value<'_>, other: &Value<'_>) -> Option<bool> {
    let order = match (one, other) {
        (Value::Text(one), Value::Text(other)) => one.cmp(other),
        (Value::Number(one), Value::Number(other)) => one.cmp(other),
        (Value::Truth(one), Value::Truth(other)) => one.cmp(other),
        _ => return None,
    };
    Some(match comparison {
        Comparison::Equal => order == Ordering::Equal,
        Comparison::Unequal => order != Ordering::Equal,
        Comparison::Less => order == Ordering::Less,
        Comparison::AtMost => order != Ordering::Greater,
        Comparison::More => order == Ordering::Greater,
        Comparison::AtLeast => order != Ordering::Less,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl Facts for Known {
        fn attribute(&self, attribute: &Attribute) -> Option<Value<'_>> {
            match attribute {
                Attribute::ResponseCode => Some(Value::Number(503)),
                Attribute::RequestPath => Some(Value::Text("/api/v1".into())),
                Attribute::ConnectionMtls => Some(Value::Truth(true)),
                _ => None,
            }
        }

        fn has_header(&self, name: &str) -> bool {
            name == "cookie"
        }
    }

    #[test]
    fn what_is_not_known_counts_only_where_it_decides() {
        for (text, expected) in [
            ("response.code >= 500", true),
            ("response.code < 500", false),
            ("response.code in [404, 503]", true),
            ("request.path.startsWith('/api') && connection.mtls", true),
            ("!connection.mtls", false),
            ("has(request.headers.cookie) && !('x-a' in request.headers)", true),
            ("request.headers['x-a'] == 'b'", false),
            ("request.headers['x-a'] != 'b'", false),
            ("request.headers['x-a'] == 'b' || response.code == 503", true),
            ("!(request.headers['x-a'] == 'b' && response.code == 200)", true),
        ] {
            let condition = Expression::condition(text).expect(text);
            assert_eq!(holds(&condition, &Known), expected, "{text}");
        }
    }
}
