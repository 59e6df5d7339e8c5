//! Who may come in: join tokens, hosts, their removal.

use mesh_proto::api::{ApiError, ErrorCode};
use mesh_proto::command::{HostId, Join, Liveness, NewHost, Revision, Timestamp, Token, TokenRole, TokenUse};
use mesh_proto::watch::{Change, Host};

use super::{Done, World, refuse};

/// Tokens kept at most; older used or expired ones are forgotten first.
const MAX_TOKENS: usize = 1_000;

/// Makes the record of a host that comes in.
pub(super) fn admit(host: &NewHost, voter_eligible: bool) -> Host {
    Host {
        name: host.name.clone(),
        public_key: host.public_key.clone(),
        wrap_key: host.wrap_key.clone(),
        facts: host.facts.clone(),
        voter_eligible,
        liveness: Liveness::Live,
    }
}

impl World {
    /// Checks a token as far as the facts go: there, not used, not expired. The proof is checked by the server.
    ///
    /// # Errors
    /// Three different refusals, each saying what to do.
    pub fn usable_token(&self, id: &str, now: Timestamp) -> Result<&Token, ApiError> {
        let Some(token) = self.private.tokens.get(id) else {
            return Err(refuse(
                ErrorCode::Forbidden,
                format!(
                    "token {id} is not one of this mesh, or was revoked; make one with: meshctl token create"
                ),
            ));
        };
        if let Some(used) = &token.used {
            return Err(refuse(
                ErrorCode::Forbidden,
                format!(
                    "token {id} was used already, by host {} {} s ago; each token lets one host in, make another with: meshctl token create",
                    used.host,
                    now.0.saturating_sub(used.at.0) / 1_000
                ),
            ));
        }
        if token.expires <= now {
            return Err(refuse(
                ErrorCode::Forbidden,
                format!(
                    "token {id} expired {} s ago; make another with: meshctl token create",
                    (now.0 - token.expires.0) / 1_000
                ),
            ));
        }
        Ok(token)
    }

    /// Checks that no live host has this name.
    ///
    /// # Errors
    /// Names the host that has it.
    pub fn free_name(&self, name: &str) -> Result<(), ApiError> {
        match self.host_named(name) {
            Some((id, host)) if matches!(host.liveness, Liveness::Live | Liveness::Suspect) => Err(refuse(
                ErrorCode::Conflict,
                format!(
                    "a live host is named {name} already (id {id}, {}); set another as host.name in meshd.toml, or stop that one first",
                    host.facts.address
                ),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn join(
        &mut self,
        index: Revision,
        at: Timestamp,
        join: &Join,
    ) -> Result<(Done, Vec<Change>), ApiError> {
        let role = self.usable_token(&join.token, at)?.role;
        self.free_name(&join.host.name)?;
        if let Some(token) = self.private.tokens.get_mut(&join.token) {
            token.used = Some(TokenUse { at, host: join.host.name.clone() });
        }
        let id = HostId(index.0);
        let voter_eligible = match role {
            TokenRole::VoterEligible => true,
            TokenRole::Agent => false,
            TokenRole::Auto => join.voter_wanted,
        };
        let host = admit(&join.host, voter_eligible);
        Ok((Done::Joined(id), self.write(vec![Change::Host { id, host: Some(host) }])))
    }

    pub(super) fn remove_host(&mut self, id: HostId) -> Result<(Done, Vec<Change>), ApiError> {
        self.known_host(id)?;
        self.private.sealed_root.remove(&id.to_string());
        let changes =
            vec![Change::Registration { host: id, registration: None }, Change::Host { id, host: None }];
        Ok((Done::Ok, self.write(changes)))
    }

    pub(super) fn create_token(
        &mut self,
        at: Timestamp,
        token: &Token,
    ) -> Result<(Done, Vec<Change>), ApiError> {
        if self.private.tokens.len() >= MAX_TOKENS {
            self.private.tokens.retain(|_, token| token.used.is_none() && token.expires > at);
        }
        if self.private.tokens.len() >= MAX_TOKENS {
            return Err(refuse(
                ErrorCode::Unavailable,
                format!(
                    "{MAX_TOKENS} unused tokens exist already; revoke some with: meshctl token revoke ID"
                ),
            ));
        }
        self.private.tokens.insert(token.id.clone(), token.clone());
        Ok((Done::Ok, Vec::new()))
    }

    pub(super) fn revoke_token(&mut self, id: &str) -> Result<(Done, Vec<Change>), ApiError> {
        match self.private.tokens.remove(id) {
            Some(_) => Ok((Done::Ok, Vec::new())),
            None => Err(refuse(
                ErrorCode::NotFound,
                format!("there is no token {id}; list them with: meshctl token list"),
            )),
        }
    }
}
