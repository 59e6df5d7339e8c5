//! The expressions of `Telemetry`: the part of CEL that is about requests and their answers.
//!
//! Comparisons, `&&`, `||`, `!`, parentheses, `in`, `has()`, the texts' `startsWith`, `endsWith` and `contains`; texts,
//! whole numbers, `true` and `false`; the [`Attribute`]s. Everything else is an error with its place, never without effect.
//! What an expression comes to is for `mesh-core` to say.
//!
//! Source: CEL language definition, "Syntax"; Envoy "Attributes".

use std::fmt;

mod parser;

/// What is asked of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expression {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// `true` or `false`.
    Truth(bool),
    /// What is known of the request.
    Attribute(Attribute),
    /// Whether a header is there.
    Has(String),
    /// The opposite.
    Not(Box<Self>),
    /// Both.
    And(Box<Self>, Box<Self>),
    /// One or the other.
    Or(Box<Self>, Box<Self>),
    /// A comparison.
    Compare(Comparison, Box<Self>, Box<Self>),
    /// A question about a text.
    About(Question, Box<Self>, Box<Self>),
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the operators")]
pub enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// What is asked of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the functions")]
pub enum Question {
    StartsWith,
    EndsWith,
    Contains,
}

macro_rules! attributes {
    ($($name:ident: $kind:ident = $path:literal,)+) => {
        /// What is known of a request. Named as in Envoy.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Attribute {
            /// `request.headers['name']`, in lower case.
            RequestHeader(String),
            $(#[doc = concat!("`", $path, "`")] $name,)+
        }

        impl Attribute {
            /// Every attribute that is written without a name of a header, with what it is.
            pub const PATHS: &'static [(&'static str, Kind)] = &[$(($path, Kind::$kind),)+];

            fn named(path: &str) -> Option<Self> {
                match path {
                    $($path => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Returns what its value is.
            pub const fn kind(&self) -> Kind {
                match self {
                    Self::RequestHeader(_) => Kind::Text,
                    $(Self::$name => Kind::$kind,)+
                }
            }
        }
    };
}

attributes! {
    RequestMethod: Text = "request.method",
    RequestPath: Text = "request.path",
    RequestUrlPath: Text = "request.url_path",
    RequestHost: Text = "request.host",
    RequestProtocol: Text = "request.protocol",
    RequestId: Text = "request.id",
    RequestUserAgent: Text = "request.useragent",
    RequestSize: Number = "request.size",
    ResponseCode: Number = "response.code",
    ResponseCodeDetails: Text = "response.code_details",
    ResponseGrpcStatus: Number = "response.grpc_status",
    ResponseSize: Number = "response.size",
    SourceAddress: Text = "source.address",
    UpstreamAddress: Text = "upstream.address",
    ConnectionMtls: Truth = "connection.mtls",
    ClusterName: Text = "xds.cluster_name",
    RouteName: Text = "xds.route_name",
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Text,
    Number,
    Truth,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Truth => "true or false",
        })
    }
}

/// Why a text is no expression that meshd knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at character {at})")]
pub struct BadExpression {
    /// Where, counted from 1.
    pub at: usize,
    /// What is wrong there.
    pub message: String,
    /// Whether it is no expression of CEL at all, rather than one that is not known here.
    pub is_malformed: bool,
}

impl BadExpression {
    fn unknown(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), is_malformed: false }
    }
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// With the place, where something is not known or does not fit.
    pub fn parse(text: &str) -> Result<Self, BadExpression> {
        let expression = parser::parse(text)?;
        expression.kind().map_err(|message| BadExpression::unknown(1, message))?;
        Ok(expression)
    }

    /// Reads a condition: an expression that is true or false.
    ///
    /// # Errors
    /// As [`Self::parse`], and where it is something else.
    pub fn condition(text: &str) -> Result<Self, BadExpression> {
        let expression = Self::parse(text)?;
        match expression.kind() {
            Ok(Kind::Truth) => Ok(expression),
            Ok(kind) => Err(BadExpression::unknown(1, format!("is {kind}, not a condition"))),
            Err(message) => Err(BadExpression::unknown(1, message)),
        }
    }

    /// Returns what its value is.
    fn kind(&self) -> Result<Kind, String> {
        let must = |part: &Self, wanted: Kind, by: &str| match part.kind()? {
            kind if kind == wanted => Ok(()),
            kind => Err(format!("{by} takes {wanted}, not {kind}")),
        };
        Ok(match self {
            Self::Text(_) => Kind::Text,
            Self::Number(_) => Kind::Number,
            Self::Truth(_) | Self::Has(_) => Kind::Truth,
            Self::Attribute(attribute) => attribute.kind(),
            Self::Not(part) => {
                must(part, Kind::Truth, "!")?;
                Kind::Truth
            }
            Self::And(one, other) | Self::Or(one, other) => {
                must(one, Kind::Truth, "&& and ||")?;
                must(other, Kind::Truth, "&& and ||")?;
                Kind::Truth
            }
            Self::Compare(comparison, one, other) => {
                let (one, other) = (one.kind()?, other.kind()?);
                if one != other {
                    return Err(format!("{one} is compared with {other}"));
                }
                let orders = !matches!(comparison, Comparison::Equal | Comparison::Unequal);
                if orders && one == Kind::Truth {
                    return Err("true and false have no order".into());
                }
                Kind::Truth
            }
            Self::About(_, text, part) => {
                must(text, Kind::Text, "a function of texts")?;
                must(part, Kind::Text, "a function of texts")?;
                Kind::Truth
            }
        })
    }

    /// Calls for every header that it looks at.
    pub fn headers<'a>(&'a self, found: &mut impl FnMut(&'a str)) {
        match self {
            Self::Attribute(Attribute::RequestHeader(name)) | Self::Has(name) => found(name),
            Self::Text(_) | Self::Number(_) | Self::Truth(_) | Self::Attribute(_) => {}
            Self::Not(part) => part.headers(found),
            Self::And(one, other)
            | Self::Or(one, other)
            | Self::Compare(_, one, other)
            | Self::About(_, one, other) => {
                one.headers(found);
                other.headers(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_that_istio_documents_are_read() {
        for text in [
            "response.code >= 400",
            "response.code >= 500 || response.code == 429",
            "connection.mtls && request.url_path.contains('v1beta3')",
            "!(request.method == \"GET\") && request.headers['x-debug'] == 'yes'",
            "has(request.headers.cookie) || 'x-debug' in request.headers",
            "request.path.startsWith('/healthz') == false",
            "response.code in [500, 503]",
        ] {
            assert!(Expression::condition(text).is_ok(), "{text}: {:?}", Expression::condition(text));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name_and_place() {
        for (text, at, word) in [
            ("response.code >= ", 18, "ends"),
            ("response.colour == 'red'", 1, "response.colour"),
            ("request.headers", 1, "request.headers"),
            ("response.code", 1, "not a condition"),
            ("response.code == '400'", 1, "compared"),
            ("request.path.matches('a')", 14, "matches"),
            ("size(request.path) > 3", 1, "size"),
            ("response.code >= 400 extra", 22, "extra"),
            ("'open", 1, "quote"),
            ("1 + 1 == 2", 3, "+"),
            ("99999999999999999999 == 1", 1, "number"),
        ] {
            let error = Expression::condition(text).expect_err(text);
            assert!(error.at == at && error.message.contains(word), "{text}: {error}");
        }
        let deep = format!("{}true{}", "(".repeat(100), ")".repeat(100));
        assert!(Expression::condition(&deep).is_err());
        let asked = format!("{}'a'{}", "'a'.contains(".repeat(100), ")".repeat(100));
        assert!(Expression::condition(&asked).is_err());
    }
}
