//! The form of a line of the access log: text with Envoy's command operators in it.
//!
//! Source: Envoy "Access logging", "Command operators"; Istio `EnvoyTextLogFormat`, `EnvoyJSONLogFormatIstio`.

use std::collections::BTreeMap;

/// The form of a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// Text.
    Text(Template),
    /// A JSON object: names and what stands there.
    Json(Vec<(String, Template)>),
}

/// A text with operators in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template(Vec<Part>);

/// A part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// As it is.
    Text(String),
    /// What is known of the request, cut to so many bytes.
    Operator(Operator, Option<usize>),
}

/// What a request is asked for by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestField {
    /// `:method`.
    Method,
    /// `:path`: path and query.
    Path,
    /// `:authority`, or `host`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// A header, in lower case.
    Header(String),
}

/// What an answer is asked for by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResponseField {
    /// `:status`.
    Status,
    /// `x-envoy-upstream-service-time`, which the proxy itself adds.
    ServiceTime,
    /// A header, in lower case.
    Header(String),
}

impl RequestField {
    /// Reads a name in lower case.
    pub fn named(name: &str) -> Self {
        Self::of_first_line(name).unwrap_or_else(|| Self::Header(name.to_owned()))
    }

    /// Reads a name that HTTP/2 has for the first line of a request; `host` is another for one of them.
    pub fn of_first_line(name: &str) -> Option<Self> {
        match name {
            ":method" => Some(Self::Method),
            ":path" => Some(Self::Path),
            ":authority" | "host" => Some(Self::Authority),
            ":scheme" => Some(Self::Scheme),
            _ => None,
        }
    }
}

impl ResponseField {
    /// Reads a name in lower case.
    pub fn named(name: &str) -> Self {
        match name {
            ":status" => Self::Status,
            SERVICE_TIME => Self::ServiceTime,
            _ => Self::Header(name.to_owned()),
        }
    }
}

/// Source: Envoy "HTTP header manipulation".
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

macro_rules! operators {
    ($($(#[doc = $help:literal])+ $name:ident = $text:literal,)+) => {
        /// What is known of a request.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Operator {
            /// `%REQ(name?alternative)%`.
            Request(RequestField, Option<RequestField>),
            /// `%RESP(name?alternative)%`.
            Response(ResponseField, Option<ResponseField>),
            /// `%START_TIME(format)%`: like `strftime`; none: ISO 8601 with milliseconds.
            StartTime(Option<String>),
            $($(#[doc = $help])+ $name,)+
        }

        impl Operator {
            /// Every operator without arguments.
            pub const PLAIN: &'static [&'static str] = &[$($text,)+];

            fn plain(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

operators! {
    /// HTTP version.
    Protocol = "PROTOCOL",
    /// Status; 0: none.
    ResponseCode = "RESPONSE_CODE",
    /// Why it is that status.
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    /// Envoy's letters.
    ResponseFlags = "RESPONSE_FLAGS",
    /// Bytes of the request's body.
    BytesReceived = "BYTES_RECEIVED",
    /// Bytes of the answer's body.
    BytesSent = "BYTES_SENT",
    /// Milliseconds in all.
    Duration = "DURATION",
    /// Milliseconds until the endpoint's head.
    ResponseDuration = "RESPONSE_DURATION",
    /// Milliseconds from the endpoint's head to the last byte.
    ResponseTxDuration = "RESPONSE_TX_DURATION",
    /// Name of the route.
    RouteName = "ROUTE_NAME",
    /// Address of the endpoint.
    UpstreamHost = "UPSTREAM_HOST",
    /// Cluster.
    UpstreamCluster = "UPSTREAM_CLUSTER",
    /// Cluster.
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    /// Attempts.
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    /// Why a connection to the endpoint failed.
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    /// Why the connection ended.
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    /// The own address towards the endpoint.
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    /// Where the caller called.
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    /// The caller's address with its port.
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    /// The caller's address.
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    /// The caller's address with its port.
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    /// The caller's address.
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    /// The SPIFFE id that the caller has proven.
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN",
    /// The name that TLS asked for.
    RequestedServerName = "REQUESTED_SERVER_NAME",
    /// gRPC status as a word.
    GrpcStatus = "GRPC_STATUS",
    /// gRPC status as a number.
    GrpcStatusNumber = "GRPC_STATUS_NUMBER",
    /// The trace's id.
    TraceId = "TRACE_ID",
    /// This host.
    HostName = "HOSTNAME",
    /// meshd's own: the revision of the mesh that decided.
    Revision = "MESH_REVISION",
}

/// Why a text is no form of a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLogFormat {
    /// An operator that there is not.
    #[error("%{0}% is not known; known are REQ(name), RESP(name), START_TIME and {known}", known = Operator::PLAIN.join(", "))]
    Unknown(String),
    /// A `%` without another.
    #[error("a % at byte {0} has no other: write %% for one that stands for itself")]
    Open(usize),
    /// More than is written in one line.
    #[error("is longer than {MOST_BYTES} bytes")]
    TooLong,
}

const MOST_BYTES: usize = 16_384;

impl LogFormat {
    /// Envoy's default text.
    pub fn envoy() -> Self {
        Self::Text(Template::known(ENVOY))
    }

    /// Istio's default text.
    pub fn istio() -> Self {
        Self::Text(Template::known(ISTIO))
    }

    /// Istio's default JSON, with the attempts and the revision besides.
    pub fn json() -> Self {
        Self::Json(JSON.iter().map(|(name, text)| ((*name).to_owned(), Template::known(text))).collect())
    }

    /// Reads a text; one line, whether it says so or not.
    ///
    /// # Errors
    /// Where an operator is not known.
    pub fn text(text: &str) -> Result<Self, BadLogFormat> {
        Ok(Self::Text(Template::parse(text.trim_end_matches('\n'))?))
    }

    /// Reads the names and texts of a JSON object.
    ///
    /// # Errors
    /// With the name, where an operator is not known.
    pub fn labels(labels: &BTreeMap<String, String>) -> Result<Self, (String, BadLogFormat)> {
        let read = |(name, text): (&String, &String)| match Template::parse(text) {
            Ok(template) => Ok((name.clone(), template)),
            Err(error) => Err((name.clone(), error)),
        };
        Ok(Self::Json(labels.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// Returns every part of it.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        let templates: Vec<&Template> = match self {
            Self::Text(template) => vec![template],
            Self::Json(members) => members.iter().map(|(_, template)| template).collect(),
        };
        templates.into_iter().flat_map(|template| template.0.iter())
    }
}

impl Template {
    /// Reads a text with operators in it.
    ///
    /// # Errors
    /// Where an operator is not known.
    pub fn parse(text: &str) -> Result<Self, BadLogFormat> {
        if text.len() > MOST_BYTES {
            return Err(BadLogFormat::TooLong);
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find('%') {
            plain.push_str(&text[at..at + found]);
            let begin = at + found + 1;
            let length = end_of(&text[begin..]).ok_or(BadLogFormat::Open(begin - 1))?;
            let inner = &text[begin..begin + length];
            at = begin + length + 1;
            if inner.is_empty() {
                plain.push('%');
                continue;
            }
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            let unknown = || BadLogFormat::Unknown(inner.chars().take(80).collect());
            let (operator, most) = operator(inner).ok_or_else(unknown)?;
            parts.push(Part::Operator(operator, most));
        }
        plain.push_str(&text[at..]);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    fn known(text: &str) -> Self {
        Self::parse(text).expect("formats of our own are read by a test")
    }

    /// Returns its parts.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }
}

/// Finds the `%` that ends an operator: formats of times have some of their own, within parentheses.
fn end_of(text: &str) -> Option<usize> {
    let mut inside = false;
    text.char_indices().find_map(|(at, c)| {
        inside = (inside || c == '(') && c != ')';
        (c == '%' && !inside).then_some(at)
    })
}

fn operator(text: &str) -> Option<(Operator, Option<usize>)> {
    let Some((name, rest)) = text.split_once('(') else {
        return Some((
            if text == "START_TIME" { Operator::StartTime(None) } else { Operator::plain(text)? },
            None,
        ));
    };
    let (argument, length) = rest.rsplit_once(')')?;
    let most = match length.strip_prefix(':') {
        Some(digits) => Some(digits.parse().ok()?),
        None if length.is_empty() => None,
        None => return None,
    };
    if name == "START_TIME" && most.is_none() {
        let is_known = strftime(argument).is_some();
        return is_known
            .then(|| (Operator::StartTime(Some(argument.to_owned()).filter(|a| !a.is_empty())), None));
    }
    let argument = argument.to_ascii_lowercase();
    let (field, other) = match argument.split_once('?') {
        Some((field, other)) => (field, Some(other)),
        None => (&*argument, None),
    };
    if field.is_empty() {
        return None;
    }
    let operator = match name {
        "REQ" => Operator::Request(RequestField::named(field), other.map(RequestField::named)),
        "RESP" => Operator::Response(ResponseField::named(field), other.map(ResponseField::named)),
        _ => return None,
    };
    Some((operator, most))
}

/// A piece of a format of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is one letter of strftime")]
pub enum TimePiece {
    Plain(char),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Millis,
    Micros,
    Seconds,
    Zone,
}

/// Reads a format of times: `%Y %m %d %H %M %S %s %F %T %z %%`, `%3f` and `%6f`. `None`: it has something else.
pub fn strftime(format: &str) -> Option<Vec<TimePiece>> {
    use TimePiece as P;
    let mut pieces = Vec::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            pieces.push(P::Plain(c));
            continue;
        }
        match chars.next()? {
            'Y' => pieces.push(P::Year),
            'm' => pieces.push(P::Month),
            'd' => pieces.push(P::Day),
            'H' => pieces.push(P::Hour),
            'M' => pieces.push(P::Minute),
            'S' => pieces.push(P::Second),
            's' => pieces.push(P::Seconds),
            'z' => pieces.push(P::Zone),
            '%' => pieces.push(P::Plain('%')),
            'F' => pieces.extend([P::Year, P::Plain('-'), P::Month, P::Plain('-'), P::Day]),
            'T' => pieces.extend([P::Hour, P::Plain(':'), P::Minute, P::Plain(':'), P::Second]),
            '3' if chars.next() == Some('f') => pieces.push(P::Millis),
            '6' if chars.next() == Some('f') => pieces.push(P::Micros),
            _ => return None,
        }
    }
    Some(pieces)
}

const ENVOY: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"";

const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

const JSON: [(&str, &str); 26] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("revision", "%MESH_REVISION%"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_of_our_own_are_read() {
        for format in [LogFormat::envoy(), LogFormat::istio(), LogFormat::json()] {
            assert!(format.parts().count() > 20);
        }
    }

    #[test]
    fn operators_have_arguments_alternatives_and_lengths() {
        let template = Template::parse("a%%b %REQ(X-A?:PATH):7% %START_TIME(%Y/%m/%dT%H:%M:%S.%3f)%!")
            .expect("a format");

        let request = Operator::Request(RequestField::Header("x-a".into()), Some(RequestField::Path));
        let time = Operator::StartTime(Some("%Y/%m/%dT%H:%M:%S.%3f".into()));
        assert_eq!(
            template.parts(),
            [
                Part::Text("a%b ".into()),
                Part::Operator(request, Some(7)),
                Part::Text(" ".into()),
                Part::Operator(time, None),
                Part::Text("!".into()),
            ]
        );
    }

    #[test]
    fn an_operator_that_is_not_known_is_refused_by_name() {
        for (text, name) in [
            ("%COLOUR%", "COLOUR"),
            ("%REQ()%", "REQ()"),
            ("%REQ(a):x%", "REQ(a):x"),
            ("%START_TIME(%Q)%", "START_TIME(%Q)"),
            ("%FILTER_STATE(a)%", "FILTER_STATE(a)"),
        ] {
            assert_eq!(Template::parse(text), Err(BadLogFormat::Unknown(name.into())), "{text}");
        }
        assert_eq!(Template::parse("100 %"), Err(BadLogFormat::Open(4)));
    }
}
