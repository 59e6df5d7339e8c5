//! One HTTP route of a rule becomes a [`Route`].
//!
//! Source: Istio `translateRoute`, `applyHTTPRouteDestination`, `ApplyRedirect`, `ApplyDirectResponse`,
//! `TranslateFault`, `TranslateCORSPolicy`, `TranslateRequestMirrorPolicy`.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use mesh_proto::resource::{
    CorsPolicy, Destination, FaultAbort, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection,
    HttpMatchRequest, HttpRedirect, HttpRewrite, HttpRoute, RedirectPortSelection, UnmatchedPreflights,
};
use mesh_proto::value::{Percent, SmallMap, StringMatch, grpc};

use super::rules::{HttpRule, Rules};
use super::{gather, matches, retry};
use crate::plan::{
    Abort, Action, Cluster, ClusterName, Cors, Delay, DirectResponse, Fault, Forward, HeaderOps, HeaderRules,
    HeaderTemplate, Mirror, PortSource, Redirect, Rewrite, Route, WeightedCluster,
};
use crate::route::{pattern, template};

/// What finds the cluster of a destination: its name, and itself where it is there.
pub(super) type Find<'a> = dyn Fn(&Destination, &str) -> (ClusterName, Option<Arc<Cluster>>) + 'a;

/// What a route is compiled with.
pub(super) struct Context<'a> {
    pub(super) find: &'a Find<'a>,
    pub(super) mesh: &'a super::mesh::Settings<'a>,
    pub(super) problems: &'a super::Problems,
}

impl Context<'_> {
    /// Compiles a route; `None`, and a problem noted: it cannot be carried out.
    pub(super) fn route(
        &self,
        rules: &Rules<'_>,
        rule: &HttpRule<'_>,
        conditions: &[&HttpMatchRequest],
    ) -> Option<Route> {
        let made = self.make(rules.namespace, rule, conditions);
        let name = rule.origin.object.as_ref().unwrap_or(&rules.key);
        made.map_err(|reason| self.problems.note(format!("{name}: {}: {reason}", rule.origin.path))).ok()
    }

    fn make(
        &self,
        namespace: &str,
        rule: &HttpRule<'_>,
        conditions: &[&HttpMatchRequest],
    ) -> Result<Route, String> {
        let http: &HttpRoute = &rule.http;
        let matchers = gather(conditions.iter().map(|condition| matches::matcher(condition)));
        let action = if let Some(redirect) = &http.redirect {
            Action::Redirect(Box::new(compile_redirect(redirect)?))
        } else if let Some(direct) = &http.direct_response {
            Action::Direct(Box::new(direct_response(direct)?))
        } else {
            Action::Forward(Box::new(self.forward(namespace, http)?))
        };
        Ok(Route {
            origin: rule.origin.clone(),
            matchers: matchers.map_err(|error| error.to_string())?,
            action,
            headers: header_rules(http.headers.as_deref())?,
            fault: http.fault.as_deref().and_then(fault).map(Box::new),
            cors: http.cors_policy.as_deref().map(cors).transpose()?.map(Box::new),
        })
    }

    fn forward(&self, namespace: &str, http: &HttpRoute) -> Result<Forward, String> {
        let destinations = gather(http.route.iter().map(|entry| {
            let wanted = entry.destination.as_ref().ok_or("a destination without a host")?;
            let (name, cluster) = (self.find)(wanted, namespace);
            let weight = weight(entry.weight);
            Ok::<_, String>(WeightedCluster {
                weight,
                cluster,
                name,
                headers: header_rules(entry.headers.as_deref())?,
            })
        }))?;
        if destinations.is_empty() {
            return Err("it has neither route, redirect nor directResponse".into());
        }
        let total_weight = destinations.iter().map(|destination| destination.weight).sum();
        if total_weight == 0 && destinations.len() > 1 {
            return Err("the sum of the weights is 0".into());
        }
        let default_retry = self.mesh.config.and_then(|config| config.default_http_retry_policy.as_ref());
        Ok(Forward {
            destinations,
            total_weight,
            timeout: http.timeout.map(mesh_proto::value::Duration::get).filter(|timeout| !timeout.is_zero()),
            retry: retry::policy(http.retries.as_deref(), default_retry),
            rewrite: http.rewrite.as_deref().map(rewrite).transpose()?.map(Box::new),
            mirrors: self.mirrors(namespace, http),
        })
    }

    fn mirrors(&self, namespace: &str, http: &HttpRoute) -> Vec<Mirror> {
        let old_percent = http.mirror_percent.or(http.mirror_percent_snake);
        let old_share = || old_percent.map_or(MILLION, |percent| percent.min(100) * 10_000);
        let first = http
            .mirror
            .as_deref()
            .map(|to| (to, http.mirror_percentage.map_or_else(old_share, Percent::per_million)));
        let more = http.mirrors.iter().filter_map(|mirror| {
            Some((mirror.destination.as_ref()?, mirror.percentage.map_or(MILLION, Percent::per_million)))
        });
        first
            .into_iter()
            .chain(more)
            .filter(|(_, share)| *share > 0)
            .map(|(to, parts_per_million)| {
                let (name, cluster) = (self.find)(to, namespace);
                Mirror { cluster, name, parts_per_million }
            })
            .collect()
    }
}

/// Returns a weight; what validation refuses (below 0) is 0.
pub(super) fn weight(written: Option<i32>) -> u32 {
    written.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(0)
}

fn compile_redirect(redirect: &HttpRedirect) -> Result<Redirect, String> {
    let filled = |text: &String| (!text.is_empty()).then(|| text.clone());
    let port = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => PortSource::Number(port),
        (None, Some(RedirectPortSelection::FromRequestPort)) => PortSource::FromRequest,
        (None, Some(RedirectPortSelection::FromProtocolDefault)) => PortSource::ProtocolDefault,
        (None, None) => PortSource::Keep,
    };
    let code = if redirect.redirect_code == 0 { 301 } else { redirect.redirect_code };
    Ok(Redirect {
        path: filled(&redirect.uri),
        prefix: filled(&redirect.prefix_rewrite),
        authority: filled(&redirect.authority),
        scheme: filled(&redirect.scheme),
        port,
        code: status(code)?,
    })
}

fn direct_response(direct: &HttpDirectResponse) -> Result<DirectResponse, String> {
    let body = direct.body.as_ref();
    let text = body.and_then(|body| body.string.clone()).map(Bytes::from);
    let bytes = body.and_then(|body| body.bytes.clone()).map(|bytes| Bytes::from(bytes.0));
    Ok(DirectResponse { status: status(direct.status)?, body: text.or(bytes).unwrap_or_default() })
}

fn status(code: u16) -> Result<StatusCode, String> {
    StatusCode::from_u16(code).map_err(|_| format!("{code} is not an HTTP status"))
}

fn rewrite(rewrite: &HttpRewrite) -> Result<Rewrite, String> {
    let regex = rewrite.uri_regex_rewrite.as_ref().map(|regex| {
        let expression = pattern::anywhere(&regex.r#match)?;
        Ok((expression, pattern::replacement(&regex.rewrite)?))
    });
    let regex = regex.transpose().map_err(|error: pattern::BadPattern| error.to_string())?;
    Ok(Rewrite {
        path: (!rewrite.uri.is_empty()).then(|| rewrite.uri.clone()),
        path_regex: regex,
        authority: (!rewrite.authority.is_empty()).then(|| rewrite.authority.clone()),
    })
}

/// Compiles header changes; `None` where there are none.
pub(crate) fn header_rules(headers: Option<&Headers>) -> Result<Option<Box<HeaderRules>>, String> {
    let Some(headers) = headers else { return Ok(None) };
    let mut rules = HeaderRules {
        request: headers.request.as_ref().map(operations).transpose()?.unwrap_or_default(),
        response: headers.response.as_ref().map(operations).transpose()?.unwrap_or_default(),
        authority: None,
    };
    // Adding a host to the one that is there is a rewrite too: a request has one.
    let named = headers.request.iter().flat_map(|request| request.set.iter().chain(&request.add));
    rules.authority = named.filter(|(name, _)| is_authority(name)).map(|(_, value)| value.clone()).next();
    Ok(Some(Box::new(rules)))
}

fn operations(operations: &HeaderOperations) -> Result<HeaderOps, String> {
    let name =
        |text: &String| text.parse::<HeaderName>().map_err(|_| format!("{text:?} is not a header's name"));
    let one = |(header, value): (&String, &String)| -> Result<(HeaderName, HeaderTemplate), String> {
        let value = template::parse(value).map_err(|error| format!("header {header}: {error}"))?;
        Ok((name(header)?, value))
    };
    let lines = |map: &SmallMap<String, String>| {
        map.iter().filter(|(name, _)| !is_authority(name)).map(one).collect::<Result<Vec<_>, _>>()
    };
    Ok(HeaderOps {
        remove: operations.remove.iter().map(name).collect::<Result<_, _>>()?,
        set: lines(&operations.set)?,
        add: lines(&operations.add)?,
    })
}

/// Source: Istio `isAuthorityHeader`.
fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn fault(fault: &HttpFaultInjection) -> Option<Fault> {
    let delay = fault.delay.as_ref().and_then(|delay| {
        let old = delay.percent.and_then(|percent| u32::try_from(percent).ok()).unwrap_or(0);
        let share = delay.percentage.map_or(old.min(100) * 10_000, Percent::per_million);
        Some(Delay { fixed: delay.fixed_delay?.get(), parts_per_million: share })
    });
    let abort = fault.abort.as_ref().and_then(abort);
    let compiled = Fault {
        delay: delay.filter(|delay| delay.parts_per_million > 0),
        abort: abort.filter(|abort| abort.parts_per_million > 0),
    };
    (compiled.delay.is_some() || compiled.abort.is_some()).then_some(compiled)
}

/// An abort without `percentage` never fires.
fn abort(abort: &FaultAbort) -> Option<Abort> {
    let parts_per_million = abort.percentage.map_or(0, Percent::per_million);
    if let Some(code) = abort.http_status {
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok())?;
        return Some(Abort { status, grpc_status: None, parts_per_million });
    }
    let grpc_status = Some(grpc::code(&abort.grpc_status)?);
    Some(Abort { status: StatusCode::OK, grpc_status, parts_per_million })
}

fn cors(policy: &CorsPolicy) -> Result<Cors, String> {
    let list = |items: &[String]| -> Result<Option<HeaderValue>, String> {
        let text = items.join(",");
        let value =
            HeaderValue::from_str(&text).map_err(|_| format!("{text:?} cannot be sent as a header value"));
        value.map(|value| (!items.is_empty()).then_some(value))
    };
    let old = policy.allow_origin.iter().map(|origin| StringMatch::Exact(origin.clone()));
    let origins = policy.allow_origins.iter().cloned().chain(old.filter(|_| policy.allow_origins.is_empty()));
    let allow_origins = origins.map(|origin| matches::value_match(&origin)).collect::<Result<_, _>>();
    Ok(Cors {
        allow_origins: allow_origins.map_err(|error| error.to_string())?,
        allow_methods: list(&policy.allow_methods)?,
        allow_headers: list(&policy.allow_headers)?,
        expose_headers: list(&policy.expose_headers)?,
        max_age: policy.max_age.map(|age| HeaderValue::from(age.get().as_secs())),
        allow_credentials: policy.allow_credentials.unwrap_or(false),
        forward_unmatched: policy.unmatched_preflights != UnmatchedPreflights::Ignore,
    })
}

/// Everything, in millionths.
const MILLION: u32 = 1_000_000;
