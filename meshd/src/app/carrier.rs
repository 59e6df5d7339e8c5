//! The way to other hosts' control ports: one client per host and address, expected to be that very host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mesh_core::identity::Identity;
use mesh_proto::api::{ApiError, Call, ErrorCode, Response};
use mesh_proto::command::HostId;
use mesh_proto::exact::Unread;

use crate::server::{Answer, Carrier, NoAnswer};
use crate::transport::{ControlClient, Dialer, Expect, Service};

/// Clients kept at most; a mesh has at most a few servers, `stats --mesh` asks every host.
const MAX_CLIENTS: usize = 1_024;

/// Calls other hosts.
pub(super) struct Hosts {
    dialer: Dialer,
    clients: Mutex<HashMap<(HostId, SocketAddr), ControlClient>>,
}

impl Hosts {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self { dialer, clients: Mutex::default() }
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

    fn client(&self, to: HostId, at: SocketAddr) -> Result<ControlClient, NoAnswer> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&(to, at)) {
            return Ok(client.clone());
        }
        let domain = self.dialer.credentials().trust().domain().to_owned();
        let identity =
            Identity::host(&domain, &to.to_string()).map_err(|error| NoAnswer(error.to_string()))?;
        let client = ControlClient::new(self.dialer.clone(), at, Expect::Identity(identity));
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert((to, at), client.clone());
        Ok(client)
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
            client.call(service, body, timeout).await.map_err(|error| NoAnswer(error.to_string()))
        })
    }
}

pub(super) fn unavailable(message: impl Into<String>) -> ApiError {
    ApiError { code: ErrorCode::Unavailable, message: message.into(), findings: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

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
