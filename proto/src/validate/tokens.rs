//! Rules of `RequestAuthentication`: whose tokens count, where they are found, where their claims go.
//!
//! Source: Istio `ValidateRequestAuthentication`, `validateJwtRule`, and the schema.

use serde_json::Value;

use super::{Check, each, security, text};
use crate::resource::{JwtRule, RequestAuthentication};
use crate::yaml::shorten;

pub(super) fn check(check: &mut Check, spec: &RequestAuthentication) {
    security::target(check, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    check.at_most("spec.jwtRules", spec.jwt_rules.len(), 4096);
    for (path, rule) in each("spec.jwtRules", &spec.jwt_rules) {
        keys(check, &path, rule);
        places(check, &path, rule);
        claims(check, &path, rule);
        check.duration(format!("{path}.timeout"), rule.timeout);
    }
}

/// Whose tokens, and with what keys they are checked.
fn keys(check: &mut Check, path: &str, rule: &JwtRule) {
    let given = [("jwksUri", &rule.jwks_uri), ("jwks_uri", &rule.jwks_uri_snake), ("jwks", &rule.jwks)];
    let given: Vec<_> = given.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    if given.len() > 1 {
        let names: Vec<_> = given.iter().map(|(name, _)| *name).collect();
        check.error(path, format!("only one of {} may be set", names.join(" and ")));
    }
    let addressed = !(rule.jwks_uri.is_empty() && rule.jwks_uri_snake.is_empty());
    if rule.issuer.is_empty() && !addressed {
        check.error(
            format!("{path}.issuer"),
            "must be there, or jwksUri: something must say whose tokens count",
        );
    }
    check.filled(&format!("{path}.audiences"), &rule.audiences);
    for (field, uri) in given.into_iter().filter(|(field, _)| *field != "jwks") {
        let path = format!("{path}.{field}");
        check.no_longer(path.clone(), uri, 2048);
        if !is_address(uri) {
            check.error(
                path,
                format!("{:?} is no address that begins with http:// or https://", shorten(uri)),
            );
        }
    }
    if !rule.jwks.is_empty() {
        key_set(check, &format!("{path}.jwks"), &rule.jwks);
    }
}

fn is_address(uri: &str) -> bool {
    let Ok(uri) = uri.parse::<http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let says_port = authority.as_str().rsplit(']').next().is_some_and(|rest| rest.contains(':'));
    matches!(uri.scheme_str(), Some("http" | "https")) && (authority.port_u16().is_some() || !says_port)
}

/// Members that a key of a type must have, and the one that makes it private.
///
/// Source: RFC 7518 (6), RFC 8037.
const KEYS: [(&str, &[&str], &str); 4] = [
    ("RSA", &["n", "e"], "d"),
    ("EC", &["crv", "x", "y"], "d"),
    ("OKP", &["crv", "x"], "d"),
    ("oct", &["k"], "k"),
];

fn key_set(check: &mut Check, path: &str, text: &str) {
    let set = match serde_json::from_str::<Value>(text) {
        Ok(set) => set,
        Err(error) => {
            return check.error(path, format!("is no JSON ({error}); write {{\"keys\": […]}}"));
        }
    };
    let Some(keys) = set["keys"].as_array() else {
        return check.error(path, "is no JSON Web Key Set: write {\"keys\": […]}");
    };
    let mut has_private = None;
    // The first mistake is enough: of a long text that is no key set, every entry is one.
    for (at, key) in keys.iter().enumerate() {
        let kind = key["kty"].as_str().unwrap_or_default();
        let Some((_, members, private)) = KEYS.iter().find(|(name, ..)| *name == kind) else {
            let known = "known are RSA, EC, OKP and oct";
            return check.error(path, format!("keys[{at}].kty is {:?}; {known}", shorten(kind)));
        };
        if let Some(missing) = members.iter().find(|name| !key[**name].is_string()) {
            let all = members.join(", ");
            return check.error(path, format!("keys[{at}].{missing} is missing: an {kind} key has {all}"));
        }
        if !key[*private].is_null() {
            has_private = has_private.or(Some(at));
        }
    }
    if let Some(at) = has_private {
        check.warning(
            path,
            format!(
                "keys[{at}] holds a private key, which whoever reads this object can use; only public keys are needed"
            ),
        );
    }
}

/// Where tokens are looked for.
fn places(check: &mut Check, path: &str, rule: &JwtRule) {
    check.filled(&format!("{path}.fromParams"), &rule.from_params);
    check.filled(&format!("{path}.fromCookies"), &rule.from_cookies);
    for (path, header) in each(&format!("{path}.fromHeaders"), &rule.from_headers) {
        let path = format!("{path}.name");
        if check.required(path.clone(), &header.name) && text::header_name(&header.name).is_err() {
            check.warning(
                path,
                format!("{:?} is no header name, so no token is found", shorten(&header.name)),
            );
        }
    }
}

/// Where claims go.
fn claims(check: &mut Check, path: &str, rule: &JwtRule) {
    let payload = &rule.output_payload_to_header;
    if !payload.is_empty() {
        check.rule(format!("{path}.outputPayloadToHeader"), text::header_name(payload));
    }
    for (path, claim) in each(&format!("{path}.outputClaimToHeaders"), &rule.output_claim_to_headers) {
        check.required(format!("{path}.claim"), &claim.claim);
        let strict = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let path = format!("{path}.header");
        if check.required(path.clone(), &claim.header) && !claim.header.bytes().all(strict) {
            check.error(path, format!("{:?}: letters, digits, \"-\" and \"_\" only", shorten(&claim.header)));
        }
    }
    check.at_most(&format!("{path}.spaceDelimitedClaims"), rule.space_delimited_claims.len(), 64);
    check.filled(&format!("{path}.spaceDelimitedClaims"), &rule.space_delimited_claims);
}
