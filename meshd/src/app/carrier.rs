//! The way to other hosts' control ports: one client per host and address, expected to be that very host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_core::identity::Identity;
use mesh_proto::api::{ApiError, Call, ErrorCode, Response};
use mesh_proto::command::HostId;
use mesh_proto::exact::Unread;

use crate::server::{Answer, Carrier, NoAnswer};
use crate::transport::{CallError, ControlClient, Dialer, Expect, Service};

/// Clients kept at most; a mesh has at most a few servers, `stats --mesh` asks every host.
const MAX_CLIENTS: usize = 1_024;

/// How long a host is left alone where another one has its address: it may be gone for good, and consensus asks for it ten times a
/// second, each time with a handshake.
const STRANGER_RESTS: Duration = Duration::from_secs(5);

/// Calls other hosts.
pub(super) struct Hosts {
    dialer: Dialer,
    known: Mutex<HashMap<(HostId, SocketAddr), Known>>,
}

/// A host at an address.
struct Known {
    client: ControlClient,
    /// When another one was met there, and what was said of it.
    stranger: Option<(Instant, NoAnswer)>,
}

impl Hosts {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self { dialer, known: Mutex::default() }
    }

    /// Asks a host.
    ///
    /// # Errors
    /// What it answered, or that it did not: then nothing is known of what became of the request.
    pub(super) async fn ask(
        &self,
        to: HostId,
        at: SocketAddr,
        call: &Call,
        timeout: Duration,
    ) -> Result<Response, ApiError> {
        let body = serde_json::to_vec(call).map_err(|error| unavailable(error.to_string()))?;
        let answer = self.call(to, at, Service::Api, body.into(), timeout).await;
        let answer = answer.map_err(|error| unavailable(error.to_string()))?;
        serde_json::from_slice::<Result<Response, ApiError>>(&answer)
            .map_err(|error| unavailable(format!(
                "the answer of {at} cannot be read here ({}): where its meshd is newer, ask there, or upgrade this host",
                Unread::of(&error)
            )))?
    }

    /// Fails where another host was met there a moment ago.
    fn client(&self, to: HostId, at: SocketAddr) -> Result<ControlClient, NoAnswer> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&(to, at)) {
            let stranger = known.stranger.as_ref().filter(|(met, _)| met.elapsed() < STRANGER_RESTS);
            return stranger.map_or_else(|| Ok(known.client.clone()), |(_, said)| Err(said.clone()));
        }
        let domain = self.dialer.credentials().trust().domain().to_owned();
        let identity =
            Identity::host(&domain, &to.to_string()).map_err(|error| NoAnswer(error.to_string()))?;
        let client = ControlClient::new(self.dialer.clone(), at, Expect::Identity(identity));
        if all.len() >= MAX_CLIENTS {
            all.clear();
        }
        all.insert((to, at), Known { client: client.clone(), stranger: None });
        Ok(client)
    }

    /// Returns the words for an error, and remembers that another host is there.
    fn failed(&self, to: HostId, at: SocketAddr, error: &CallError) -> NoAnswer {
        let said = NoAnswer(error.to_string());
        if matches!(error, CallError::Dial(error) if error.wrong_identity().is_some()) {
            let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = all.get_mut(&(to, at)) {
                known.stranger = Some((Instant::now(), said.clone()));
            }
        }
        said
    }
}

impl Carrier for Hosts {
    fn call(
        &self,
        to: HostId,
        at: SocketAddr,
        service: Service,
        body: Bytes,
        timeout: Duration,
    ) -> Answer<'_> {
        Box::pin(async move {
            let client = self.client(to, at)?;
            client.call(service, body, timeout).await.map_err(|error| self.failed(to, at, &error))
        })
    }
}

pub(super) fn unavailable(message: impl Into<String>) -> ApiError {
    ApiError { code: ErrorCode::Unavailable, message: message.into(), findings: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::testing::{self, credentials, dialer};

    #[tokio::test]
    async fn a_host_whose_address_another_one_has_is_left_alone_for_a_while() {
        let mesh = testing::Mesh::new();
        let mut there = testing::tcp(&credentials(&mesh, "2", &[]));
        let at = there.local_addr().expect("bound");
        let hosts = Hosts::new(dialer(&credentials(&mesh, "1", &[])));
        let refused = async {
            let mut refused = 0;
            while let Ok(Err(_)) = tokio::time::timeout(STRANGER_RESTS / 4, there.accept()).await {
                refused += 1;
            }
            refused
        };
        let calls = async {
            for _ in 0..5 {
                let answer = hosts.call(HostId(3), at, Service::Raft, Bytes::new(), STRANGER_RESTS).await;
                let why = answer.expect_err("nobody is there who may answer").to_string();
                assert!(why.contains("spiffe://") && why.contains("/2"), "{why}");
            }
        };

        let (refused, ()) = tokio::join!(refused, calls);

        assert_eq!(refused, 1, "handshakes");
    }

    /// A call of a released version, and the answer it got.
    #[derive(serde::Deserialize)]
    struct Recorded {
        call: Call,
        answer: Result<Response, ApiError>,
    }

    #[test]
    fn calls_and_answers_of_every_released_version_are_read() {
        let released = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
        let mut read = 0;
        for version in std::fs::read_dir(released).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            let lines = std::fs::read_to_string(version.path().join("calls.jsonl")).unwrap();
            for line in lines.lines() {
                let recorded: Recorded =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{version:?}: {error}: {line}"));
                assert_eq!(recorded.call.author, "uid 0 on vm1");
                let refusal = recorded.answer.err().map(|error| error.code);
                assert!(refusal.is_none_or(|code| code == ErrorCode::NotFound), "{refusal:?}");
                read += 1;
            }
        }
        assert!(read > 10, "{read} calls are recorded");
    }
}
