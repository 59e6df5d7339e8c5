//! Asks the resolvers that were there before meshd: question and reply pass as they are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use socket2::SockRef;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::Instant;

use super::{MAX_MESSAGE, Settings, answer, read_message, write_message};

/// How a question came, and goes on: an answer too long for UDP stays too long, and the caller comes back over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Udp,
    Tcp,
}

/// The resolvers.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    mark: u32,
}

impl Upstream {
    pub(super) fn new(settings: &Settings) -> Self {
        let servers = settings.resolvers.servers.clone();
        Self { servers, timeout: settings.timeout, mark: settings.mark }
    }

    /// Asks one resolver after the other; `None` when none answers in time.
    ///
    /// A resolver that answers SERVFAIL or REFUSED is passed over while there is another. With `hurry` the time is
    /// cut to [`HURRY`]: somebody else has an answer ready.
    pub(super) async fn ask(&self, question: &[u8], over: Over, hurry: bool) -> Option<Vec<u8>> {
        let total = if hurry { self.timeout.min(HURRY) } else { self.timeout };
        let deadline = Instant::now() + total;
        let mut last = None;
        for (at, server) in self.servers.iter().enumerate() {
            // A silent resolver must leave time for the others.
            let left = deadline.saturating_duration_since(Instant::now());
            let servers_left = u32::try_from(self.servers.len() - at).unwrap_or(u32::MAX);
            match tokio::time::timeout(left / servers_left, self.ask_one(*server, question, over)).await {
                Ok(Ok(reply)) if refuses(&reply) => last = Some(reply),
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => tracing::debug!(%server, %error, "resolver failed"),
                Err(_) => tracing::debug!(%server, "resolver is silent"),
            }
        }
        last
    }

    async fn ask_one(&self, server: SocketAddr, question: &[u8], over: Over) -> io::Result<Vec<u8>> {
        match over {
            Over::Udp => self.ask_udp(server, question).await,
            Over::Tcp => self.ask_tcp(server, question).await,
        }
    }

    async fn ask_udp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // A socket for each question: its port is as hard to guess as the kernel makes it.
        let socket = UdpSocket::bind((any, 0)).await?;
        self.mark(&SockRef::from(&socket))?;
        socket.connect(server).await?;
        socket.send(question).await?;
        let mut reply = vec![0; MAX_MESSAGE];
        loop {
            let length = socket.recv(&mut reply).await?;
            if answers(question, &reply[..length]) {
                reply.truncate(length);
                return Ok(reply);
            }
        }
    }

    async fn ask_tcp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        self.mark(&SockRef::from(&socket))?;
        let mut stream = socket.connect(server).await?;
        write_message(&mut stream, question).await?;
        let reply = read_message(&mut stream).await?;
        if !answers(question, &reply) {
            return Err(io::Error::other("the reply is to another question"));
        }
        Ok(reply)
    }

    fn mark(&self, socket: &SockRef<'_>) -> io::Result<()> {
        match socket.set_mark(self.mark) {
            // Who may not mark may not intercept either: there is nothing to be exempt from.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        }
    }
}

fn refuses(reply: &[u8]) -> bool {
    let code = answer::reply_code(reply);
    code == Some(u16::from(ResponseCode::ServFail)) || code == Some(u16::from(ResponseCode::Refused))
}

/// Whether a reply is to this question: same id, a response, and the same question where it carries one.
///
/// Anyone may send datagrams to the port; what does not fit is not believed (RFC 5452, section 9.1).
fn answers(question: &[u8], reply: &[u8]) -> bool {
    let is_response = reply.len() >= 12 && reply[2] & 0x80 != 0;
    if !is_response || reply[..2] != question[..2] {
        return false;
    }
    let carries_question = reply[4..6] != [0, 0];
    if !carries_question {
        return true;
    }
    answer::question_of(reply).is_some_and(|replied| Some(replied) == answer::question_of(question))
}

/// How long the world may take about a name that the mesh knows with a search suffix.
const HURRY: Duration = Duration::from_secs(1);
