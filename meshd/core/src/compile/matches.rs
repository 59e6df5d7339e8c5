//! One `match` of a rule becomes a [`Matcher`].
//!
//! Source: Istio `TranslateRouteMatch`, `ConvertToEnvoyMatch`, `canBeConvertedToPresentMatch`.

use mesh_proto::resource::HttpMatchRequest;
use mesh_proto::value::{SmallMap, StringMatch};

use super::gather;
use crate::plan::{HeaderTarget, Matcher, PathMatch, ValueMatch};
use crate::route::pattern::{self, BadPattern};

/// Why a condition cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMatch {
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    #[error("{0:?} is not a header's name")]
    HeaderName(String),
}

/// Compiles a condition. What it says about caller and port was decided before.
pub(crate) fn matcher(condition: &HttpMatchRequest) -> Result<Matcher, BadMatch> {
    let value = |text: &Option<StringMatch>| text.as_ref().map(value_match).transpose();
    let path = condition.uri.as_ref().map(|uri| path_match(uri, condition.ignore_uri_case)).transpose()?;
    let query = condition.query_params.iter();
    Ok(Matcher {
        name: condition.name.clone(),
        path: path.flatten(),
        method: value(&condition.method)?,
        scheme: value(&condition.scheme)?,
        authority: value(&condition.authority)?,
        headers: fields(&condition.headers)?,
        without_headers: fields(&condition.without_headers)?,
        query: gather(query.map(|(name, text)| Ok::<_, BadPattern>((name.clone(), value_match(text)?))))?,
    })
}

fn path_match(uri: &StringMatch, ignore_case: bool) -> Result<Option<PathMatch>, BadPattern> {
    let text = |value: &str| if ignore_case { value.to_ascii_lowercase() } else { value.to_owned() };
    Ok(match uri {
        StringMatch::Exact(value) => Some(PathMatch::Exact { value: text(value), ignore_case }),
        StringMatch::Prefix(value) => Some(PathMatch::Prefix { value: text(value), ignore_case }),
        StringMatch::Regex(re2) => Some(PathMatch::Regex(pattern::whole(re2)?)),
        StringMatch::Present => None,
    })
}

/// Compiles a condition on a value. `regex: "*"` is no expression but "present".
pub(crate) fn value_match(text: &StringMatch) -> Result<ValueMatch, BadPattern> {
    Ok(match text {
        StringMatch::Present => ValueMatch::Present,
        StringMatch::Regex(re2) if re2 == "*" => ValueMatch::Present,
        StringMatch::Exact(value) => ValueMatch::Exact(value.clone()),
        StringMatch::Prefix(value) => ValueMatch::Prefix(value.clone()),
        StringMatch::Regex(re2) => ValueMatch::Regex(pattern::whole(re2)?),
    })
}

fn fields(map: &SmallMap<String, StringMatch>) -> Result<Vec<(HeaderTarget, ValueMatch)>, BadMatch> {
    gather(map.iter().map(|(name, text)| Ok((target(name)?, value_match(text)?))))
}

fn target(name: &str) -> Result<HeaderTarget, BadMatch> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":path" => HeaderTarget::Path,
        ":method" => HeaderTarget::Method,
        ":authority" | "host" => HeaderTarget::Authority,
        ":scheme" => HeaderTarget::Scheme,
        field => HeaderTarget::Field(field.parse().map_err(|_| BadMatch::HeaderName(name.to_owned()))?),
    })
}
