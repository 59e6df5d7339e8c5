//! The security kinds: who must show a certificate, who may call what, whose tokens count.
//!
//! Source: Istio API `security/v1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::message;
use super::selector::{MatchLabels, PolicyTargetReference};
use crate::value::Duration;

message! {
    /// Whether callers must use the mesh's mutual TLS.
    pub struct PeerAuthentication {
        /// The workloads it is for. Default: all of the namespace.
        pub selector: Option<MatchLabels>,
        /// What holds for all ports.
        pub mtls: Option<MutualTls>,
        /// What holds for single ports. Empty is refused by validation.
        pub port_level_mtls: Option<BTreeMap<u16, MutualTls>>,
    }

    /// Whether callers must use mutual TLS.
    pub struct MutualTls {
        /// The mode. Default: as the next wider policy says.
        pub mode: MutualTlsMode,
    }

    /// Who may call what.
    pub struct AuthorizationPolicy {
        /// The workloads it is for. Default: all of the namespace.
        pub selector: Option<MatchLabels>,
        /// The gateways or services it is for, one.
        pub target_ref: Option<PolicyTargetReference>,
        /// The gateways or services it is for, several.
        pub target_refs: Vec<PolicyTargetReference>,
        /// The rules; one must match. No rule at all matches nothing.
        pub rules: Vec<Rule>,
        /// What a match means. Default: the call is allowed.
        pub action: AuthorizationAction,
        /// Who decides, for `CUSTOM`.
        pub provider: Option<ExtensionProvider>,
    }

    /// Who decides.
    pub struct ExtensionProvider {
        /// The name in the mesh's settings.
        pub name: String,
    }

    /// A rule: all of its parts that are set must match.
    pub struct Rule {
        /// Who calls; one must match. Absent means anybody; empty is refused by validation.
        pub from: Option<Vec<RuleFrom>>,
        /// What is called; one must match. Absent means anything; empty is refused by validation.
        pub to: Option<Vec<RuleTo>>,
        /// More conditions; all must hold.
        pub when: Vec<Condition>,
    }

    /// Who calls.
    pub struct RuleFrom {
        /// Who.
        pub source: Option<Source>,
    }

    /// What is called.
    pub struct RuleTo {
        /// What.
        pub operation: Option<Operation>,
    }

    /// Who calls: all that is set must hold.
    pub struct Source {
        /// Identities, without `spiffe://`.
        pub principals: Vec<String>,
        /// Identities left out.
        pub not_principals: Vec<String>,
        /// Identities of tokens, `issuer/subject`.
        pub request_principals: Vec<String>,
        /// Identities of tokens left out.
        pub not_request_principals: Vec<String>,
        /// Namespaces.
        pub namespaces: Vec<String>,
        /// Namespaces left out.
        pub not_namespaces: Vec<String>,
        /// Service accounts, `namespace/name` or `name`.
        pub service_accounts: Vec<String>,
        /// Service accounts left out.
        pub not_service_accounts: Vec<String>,
        /// Trust domains.
        pub trust_domains: Vec<String>,
        /// Trust domains left out.
        pub not_trust_domains: Vec<String>,
        /// Addresses of the connection.
        pub ip_blocks: Vec<String>,
        /// Addresses of the connection left out.
        pub not_ip_blocks: Vec<String>,
        /// Addresses as proxies on the way report them.
        pub remote_ip_blocks: Vec<String>,
        /// Such addresses left out.
        pub not_remote_ip_blocks: Vec<String>,
    }

    /// What is called: all that is set must hold.
    pub struct Operation {
        /// Hosts.
        pub hosts: Vec<String>,
        /// Hosts left out.
        pub not_hosts: Vec<String>,
        /// Ports.
        pub ports: Vec<String>,
        /// Ports left out.
        pub not_ports: Vec<String>,
        /// Methods.
        pub methods: Vec<String>,
        /// Methods left out.
        pub not_methods: Vec<String>,
        /// Paths.
        pub paths: Vec<String>,
        /// Paths left out.
        pub not_paths: Vec<String>,
    }

    /// One more condition.
    pub struct Condition {
        /// The attribute, such as `request.headers[x]`.
        pub key: String,
        /// Its values.
        pub values: Vec<String>,
        /// Values left out.
        pub not_values: Vec<String>,
    }

    /// Whose tokens count.
    pub struct RequestAuthentication {
        /// The workloads it is for. Default: all of the namespace.
        pub selector: Option<MatchLabels>,
        /// The gateways or services it is for, one.
        pub target_ref: Option<PolicyTargetReference>,
        /// The gateways or services it is for, several.
        pub target_refs: Vec<PolicyTargetReference>,
        /// The issuers.
        pub jwt_rules: Vec<JwtRule>,
    }

    /// One issuer of tokens.
    pub struct JwtRule {
        /// The issuer.
        pub issuer: String,
        /// Who the tokens must be for.
        pub audiences: Vec<String>,
        /// Where its keys are.
        pub jwks_uri: String,
        /// The same, as some versions of Istio spell it.
        #[serde(rename = "jwks_uri")]
        pub jwks_uri_snake: String,
        /// Its keys.
        pub jwks: String,
        /// Headers that hold the token.
        pub from_headers: Vec<JwtHeader>,
        /// Query parameters that hold the token.
        pub from_params: Vec<String>,
        /// Cookies that hold the token.
        pub from_cookies: Vec<String>,
        /// The header that gets the token's payload.
        pub output_payload_to_header: String,
        /// Whether the token is passed on. Default: false.
        pub forward_original_token: bool,
        /// Headers that get single claims.
        pub output_claim_to_headers: Vec<ClaimToHeader>,
        /// How long the fetch of keys may take. Default: 5 s.
        pub timeout: Option<Duration>,
        /// Claims that are lists with blanks between.
        pub space_delimited_claims: Vec<String>,
    }

    /// A header that holds the token.
    pub struct JwtHeader {
        /// The name.
        pub name: String,
        /// What stands before the token, such as `Bearer `.
        pub prefix: String,
    }

    /// A header that gets a claim.
    pub struct ClaimToHeader {
        /// The header.
        pub header: String,
        /// The claim.
        pub claim: String,
    }
}

/// Whether callers must use mutual TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// As the next wider policy says.
    #[default]
    Unset,
    /// They must not.
    Disable,
    /// They may.
    Permissive,
    /// They must.
    Strict,
}

/// What a match means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthorizationAction {
    /// The call is allowed, and what no such policy matches is not.
    #[default]
    Allow,
    /// The call is refused.
    Deny,
    /// The call is noted.
    Audit,
    /// The provider decides.
    Custom,
}
