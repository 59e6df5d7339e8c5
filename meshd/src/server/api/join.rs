//! Letting a host in: it proves that it has a token's secret, and gets an id and a certificate.

use std::net::SocketAddr;
use std::time::Instant;

use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_core::world::Done;
use mesh_proto::api::{ApiError, ErrorCode, JoinRequest, Joined, Request, Response, SignRequest};
use mesh_proto::command::{Command, HostId, Join, Liveness, Timestamp, Token, TokenRole};
use mesh_proto::exact::Unread;

use super::{Failure, Server, encode, error, invalid};
use crate::server::{PATIENCE, wall_ms};
use crate::transport::{FrameStream, join};

impl Server {
    /// Answers the one request of a host that wants to join.
    pub(in crate::server) async fn answer_join(
        &self,
        address: SocketAddr,
        mut stream: FrameStream,
        exporter: [u8; 32],
    ) {
        let Ok(Ok(Some(frame))) = tokio::time::timeout(PATIENCE, stream.recv()).await else {
            return;
        };
        let answer = match serde_json::from_slice::<JoinRequest>(&frame) {
            Err(source) => Err(invalid(format!(
                "the request to join cannot be read by meshd {} ({}): is the joining host's newer? upgrade this one first",
                env!("CARGO_PKG_VERSION"),
                Unread::of(&source)
            ))),
            Ok(mut request) => {
                request.binding = BASE64.encode(&exporter);
                let name: String = request.host.name.chars().take(64).collect();
                let author = format!("{name} at {address}");
                self.ask_leader(Request::Join(Box::new(request)), &author, Instant::now() + PATIENCE).await
            }
        };
        match &answer {
            Ok(_) => tracing::info!(%address, "a host joined"),
            Err(error) => tracing::warn!(%address, %error, "refused a host that wanted to join"),
        }
        // The joiner may have gone; with the same token and key it gets the same answer again.
        let _ = stream.send(encode(&answer)).await;
        let _ = stream.finish().await;
    }

    /// Lets a host in; this server must lead.
    pub(super) async fn join(&self, request: JoinRequest, author: &str) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        let now = wall_ms();
        check_clock(request.clock_ms, now)?;
        check_name(&request.host.name)?;
        let key = format!("join {} {}", request.token, request.host.public_key);
        let token = self.check_token(&request, &key, Timestamp(now))?;
        let voter_wanted = token.role == TokenRole::Auto && self.too_few_may_vote();
        let join = Join { token: request.token.clone(), host: request.host.clone(), voter_wanted };
        let proposed = self.propose(Command::Join(Box::new(join)), author, Some(key)).await?;
        let Done::Joined(id) = proposed.result? else {
            return Err(error(ErrorCode::Conflict, "this key was used for another request").into());
        };
        Ok(Response::Joined(Box::new(self.welcome(id, &request.csr)?)))
    }

    /// The token, if it may be used and the proof holds.
    ///
    /// A host that repeats a join whose answer it never saw is let through to that answer.
    fn check_token(&self, request: &JoinRequest, key: &str, now: Timestamp) -> Result<Token, ApiError> {
        let token = self.consensus.facts().read(|world| {
            let repeated = world.private.answered.contains_key(key);
            match world.private.tokens.get(&request.token).filter(|_| repeated) {
                Some(token) => Ok(token.clone()),
                None => world
                    .usable_token(&request.token, now)
                    .and_then(|token| world.free_name(&request.host.name).map(|()| token.clone())),
            }
        })?;
        if is_proven(&token, request) {
            return Ok(token);
        }
        Err(error(
            ErrorCode::Forbidden,
            format!(
                "the proof for token {} does not hold; copy the whole line of `meshctl token create`",
                token.id
            ),
        ))
    }

    /// Whether fewer hosts may vote than the mesh wants voters; those that are gone do not count.
    fn too_few_may_vote(&self) -> bool {
        let eligible = self.consensus.facts().read(|world| {
            let present = |liveness| matches!(liveness, Liveness::Live | Liveness::Suspect);
            world.hosts.values().filter(|host| host.voter_eligible && present(host.liveness)).count()
        });
        eligible < self.voters
    }

    fn welcome(&self, id: HostId, csr: &str) -> Result<Joined, ApiError> {
        let (mesh, may_vote) = self
            .consensus
            .facts()
            .read(|world| (world.mesh.clone(), world.hosts.get(&id).is_some_and(|host| host.voter_eligible)));
        let identity = Identity::host(&mesh.trust_domain, &id.to_string())
            .map_err(|source| error(ErrorCode::Unavailable, source.to_string()))?;
        let request = SignRequest { identity: identity.to_string(), csr: csr.to_owned() };
        let chains = self.notary.sign(&[request]);
        let chain = chains.map(|mut chains| chains.pop().unwrap_or_default());
        let chain = chain.map_err(|reason| {
            error(ErrorCode::Unavailable, format!("host {id} was let in but has no certificate yet: {reason}; join again with the same token"))
        })?;
        Ok(Joined { id, mesh, chain, may_vote, servers: self.streams.servers() })
    }
}

fn is_proven(token: &Token, request: &JoinRequest) -> bool {
    let decode = |text: &str| BASE64.decode(text.as_bytes()).ok();
    let fixed = |text: &str| decode(text).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let (Some(verifier), Some(exporter)) = (fixed(&token.verifier), fixed(&request.binding)) else {
        return false;
    };
    let (Some(public_key), Some(proof)) = (decode(&request.host.public_key), decode(&request.proof)) else {
        return false;
    };
    join::is_proven(&verifier, &exporter, &public_key, &proof)
}

/// Certificates are back-dated by 5 min: a clock further off could not use its own.
fn check_clock(theirs: u64, ours: u64) -> Result<(), ApiError> {
    let off = theirs.abs_diff(ours);
    if off <= CLOCK_TOLERANCE_MS {
        return Ok(());
    }
    let direction = if theirs > ours { "ahead of" } else { "behind" };
    Err(invalid(format!(
        "the clock of this host is {} s {direction} the mesh's: set it (timedatectl set-ntp true) and join again",
        off / 1_000
    )))
}

/// A host's name is a DNS name, shown in tables and logs.
fn check_name(name: &str) -> Result<(), ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if (1..=253).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(invalid(
        "a host's name has 1 to 253 letters, digits, '-', '.' and '_'; set one as host.name in meshd.toml",
    ))
}

const CLOCK_TOLERANCE_MS: u64 = 240_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_that_is_off_is_refused_with_the_difference() {
        assert!(check_clock(1_000_000, 1_239_000).is_ok());
        let refusal = check_clock(1_300_000, 1_000_000).expect_err("too far ahead");
        assert!(refusal.message.contains("300 s ahead of"), "{refusal}");
        let refusal = check_clock(0, 7_200_000).expect_err("too far behind");
        assert!(refusal.message.contains("7200 s behind"), "{refusal}");
    }

    #[test]
    fn name_with_a_space_is_refused() {
        assert!(check_name("vm-1.example").is_ok());
        assert!(check_name("vm 1").is_err());
        assert!(check_name("").is_err());
    }
}
