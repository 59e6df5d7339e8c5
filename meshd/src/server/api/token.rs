//! Join tokens, and hosts that leave for good.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use data_encoding::BASE64;
use mesh_core::world::World;
use mesh_proto::api::{ApiError, ErrorCode, Response};
use mesh_proto::command::{Command, Timestamp, Token, TokenRole};
use mesh_proto::token;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Failure, Server, error, invalid};
use crate::server::{PATIENCE, wall_ms};
use crate::transport::join;

impl Server {
    /// Makes a join token; the answer is the only place where its secret is ever seen.
    pub(super) async fn create_token(
        &self,
        role: Option<TokenRole>,
        ttl_seconds: u64,
        author: &str,
    ) -> Result<Response, Failure> {
        if !(1..=TTL_MAX).contains(&ttl_seconds) {
            return Err(invalid(format!("a token lives 1 to {TTL_MAX} s, not {ttl_seconds}")).into());
        }
        self.consensus.read_index(PATIENCE).await?;
        let pin = self.consensus.facts().read(root_pin)?;
        let role = role.unwrap_or(TokenRole::Auto);
        let secret: [u8; 16] = random()?;
        let line = token::Token { id: token::id_of(random()?), secret, pin };
        let expires = Timestamp(wall_ms().saturating_add(ttl_seconds.saturating_mul(1_000)));
        let token = Token {
            id: line.id.clone(),
            verifier: BASE64.encode(&join::verifier(&secret)),
            role,
            expires,
            used: None,
            author: author.to_owned(),
        };
        self.propose(Command::CreateToken(token), author, None).await?.result?;
        Ok(Response::Token { line: line.reveal(), role, expires })
    }

    /// All tokens, by id.
    pub(super) async fn list_tokens(&self) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        let shown = |token: &Token| Token { verifier: String::new(), ..token.clone() };
        let tokens = self.consensus.facts().read(|world| world.private.tokens.values().map(shown).collect());
        Ok(Response::Tokens(tokens))
    }

    pub(super) async fn revoke_token(&self, id: String, author: &str) -> Result<Response, Failure> {
        self.propose(Command::RevokeToken { id }, author, None).await?.result?;
        Ok(Response::Done)
    }

    /// Removes a host from the mesh for good: of two with one name, the one that is gone.
    pub(super) async fn remove_host(&self, name: &str, author: &str) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        let named = self.consensus.facts().read(|world| world.host_to_remove(name).map(|(id, _)| id));
        let Some(host) = named else {
            return Err(
                error(ErrorCode::NotFound, format!("there is no host {name}; see: meshctl status")).into()
            );
        };
        let votes = self.consensus.members().iter().any(|member| member.id == host && member.voter);
        if votes {
            let message = format!(
                "{name} votes: stop it, and let another host take its place, a new one or the same machine joined anew; \
                 meshctl status tells when that votes, and then it can be removed"
            );
            return Err(error(ErrorCode::Conflict, message).into());
        }
        self.propose(Command::RemoveHost { host }, author, None).await?.result?;
        Ok(Response::Done)
    }
}

/// SHA-256 of the public key of the root.
fn root_pin(world: &World) -> Result<[u8; 32], ApiError> {
    let unreadable =
        |what: String| error(ErrorCode::Unavailable, format!("the mesh's root certificate {what}"));
    let root = world.mesh.roots.first().ok_or_else(|| unreadable("is missing".to_owned()))?;
    let der = BASE64.decode(root.as_bytes()).map_err(|source| unreadable(format!("is damaged: {source}")))?;
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|source| unreadable(format!("is damaged: {source}")))?;
    let pin = digest(&SHA256, certificate.public_key().raw);
    pin.as_ref().try_into().map_err(|_| unreadable("has no pin".to_owned()))
}

fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| error(ErrorCode::Unavailable, "the system gives no random numbers"))?;
    Ok(bytes)
}

/// 30 days.
const TTL_MAX: u64 = 30 * 86_400;
