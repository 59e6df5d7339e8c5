//! Names outside the mesh, looked up for meshd itself: for endpoints that a rule gives by name.
//!
//! The resolvers from before capture are asked over marked sockets; asking as applications do would lead to meshd's own
//! DNS, and a `ServiceEntry`'s name to its virtual address. An answer counts as long as its TTL says, within bounds;
//! then it is asked for anew while the last one is still used, and stays in use as long as no resolver has a better.
//!
//! Source: Envoy's strict DNS clusters with `respect_dns_ttl`, which keep their hosts when a query fails.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::Instant;

use super::resolv::Resolvers;
use super::upstream::{Over, Upstream};
use super::{Settings, hosts_file};
use crate::config::Config;
use crate::task;

/// Looks names up, and remembers.
#[derive(Debug)]
pub struct Lookup {
    upstream: Upstream,
    search: Vec<String>,
    kept: Mutex<HashMap<String, Kept>>,
}

/// The last good answer for a name.
#[derive(Clone, Debug)]
struct Kept {
    addresses: Arc<[IpAddr]>,
    /// When it is asked for anew.
    until: Instant,
    /// Somebody asks already.
    asking: bool,
}

impl Lookup {
    /// Asks these resolvers; see [`super::upstreams`].
    pub fn new(config: &Config, upstreams: Vec<SocketAddr>) -> Arc<Self> {
        Self::with(&Settings {
            resolvers: Resolvers { servers: upstreams, search: Resolvers::of_system().search },
            timeout: config.dns.timeout,
            ttl: config.dns.ttl,
            mark: config.intercept.mark,
        })
    }

    pub(super) fn with(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            upstream: Upstream::new(settings),
            search: settings.resolvers.search.clone(),
            kept: Mutex::default(),
        })
    }

    /// Returns the addresses of a name, at least one, IPv4 first.
    pub async fn addresses(self: &Arc<Self>, host: &str) -> io::Result<Arc<[IpAddr]>> {
        if let Ok(address) = host.parse() {
            return Ok([address].into());
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if let Some(known) = self.remembered(&host) {
            return Ok(known);
        }
        Ok(self.refresh(&host, IN_DOUBT).await?.0)
    }

    /// Asks for the addresses of a name anew. Returns them, and when to ask again: `rate`, where the answer says
    /// nothing of its time.
    pub async fn renew(&self, host: &str, rate: Duration) -> io::Result<(Arc<[IpAddr]>, Duration)> {
        self.refresh(&host.trim_end_matches('.').to_ascii_lowercase(), rate).await
    }

    /// Returns the last good answer; one whose time is over is asked for anew meanwhile.
    fn remembered(self: &Arc<Self>, host: &str) -> Option<Arc<[IpAddr]>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get_mut(host)?;
        let addresses = found.addresses.clone();
        if found.until <= Instant::now() && !found.asking {
            found.asking = true;
            let (lookup, host) = (self.clone(), host.to_owned());
            task::spawn("dns-refresh", async move {
                if let Err(error) = lookup.refresh(&host, IN_DOUBT).await {
                    tracing::warn!(host, %error, "name not found any more: its last addresses stay in use");
                    lookup.later(&host);
                }
            });
        }
        Some(addresses)
    }

    /// Asks, and remembers a good answer.
    async fn refresh(&self, host: &str, rate: Duration) -> io::Result<(Arc<[IpAddr]>, Duration)> {
        let (addresses, ttl) = self.ask(host).await?;
        let addresses: Arc<[IpAddr]> = addresses.into();
        let lasts = if ttl.is_zero() { rate } else { ttl.clamp(LEAST_TTL, MOST_TTL) };
        let kept = Kept { addresses: addresses.clone(), until: Instant::now() + lasts, asking: false };
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST_NAMES && !all.contains_key(host) {
            all.clear();
        }
        all.insert(host.to_owned(), kept);
        Ok((addresses, lasts))
    }

    /// Notes that asking came to nothing: the next try is a while away.
    fn later(&self, host: &str) {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = all.get_mut(host) {
            (kept.until, kept.asking) = (Instant::now() + IN_DOUBT, false);
        }
    }

    /// Asks `/etc/hosts`, then the resolvers; a name without a dot with the search suffixes first.
    async fn ask(&self, host: &str) -> io::Result<(Vec<IpAddr>, Duration)> {
        let local = hosts_file::addresses(host).await;
        if !local.is_empty() {
            return Ok((local, IN_DOUBT));
        }
        let suffixes = self.search.iter().filter(|_| !host.contains('.'));
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no resolver has answered");
        for name in suffixes.map(|suffix| format!("{host}.{suffix}")).chain([host.to_owned()]) {
            match self.ask_for(&name).await {
                Ok(found) => return Ok(found),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_for(&self, name: &str) -> io::Result<(Vec<IpAddr>, Duration)> {
        let (four, six) =
            tokio::join!(self.records(name, RecordType::A), self.records(name, RecordType::AAAA));
        let (mut addresses, mut ttl) = (Vec::new(), MOST_TTL);
        let mut last = None;
        for records in [four, six] {
            match records {
                Ok((found, time)) if !found.is_empty() => {
                    ttl = ttl.min(time);
                    addresses.extend(found);
                }
                Ok(_) => {}
                Err(error) => last = Some(error),
            }
        }
        if addresses.is_empty() {
            return Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has no address")));
        }
        addresses.truncate(MOST_ADDRESSES);
        Ok((addresses, ttl))
    }

    async fn records(&self, name: &str, kind: RecordType) -> io::Result<(Vec<IpAddr>, Duration)> {
        let mut question = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        let name = Name::from_ascii(format!("{name}.")).map_err(io::Error::other)?;
        question.add_query(Query::query(name, kind));
        let question = question.to_vec().map_err(io::Error::other)?;
        let mut reply = self.reply(&question, Over::Udp).await?;
        if reply.metadata.truncation {
            reply = self.reply(&question, Over::Tcp).await?;
        }
        if reply.metadata.response_code != ResponseCode::NoError {
            let error = format!("the resolver says {}", reply.metadata.response_code);
            return Err(io::Error::new(io::ErrorKind::NotFound, error));
        }
        let ttl = reply.answers.iter().map(|record| record.ttl).min();
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        };
        let addresses = reply.answers.iter().filter_map(|record| address(&record.data)).collect();
        Ok((addresses, Duration::from_secs(ttl.unwrap_or(0).into())))
    }

    async fn reply(&self, question: &[u8], over: Over) -> io::Result<Message> {
        let reply = self.upstream.ask(question, over, false).await;
        let reply = reply.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "no resolver answers"))?;
        Message::from_vec(&reply)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    }
}

/// No answer is asked for anew sooner, whatever its TTL.
const LEAST_TTL: Duration = Duration::from_secs(1);
/// When to ask again where nothing says so: Envoy's default refresh rate.
const IN_DOUBT: Duration = Duration::from_secs(5);
/// No answer counts longer.
const MOST_TTL: Duration = Duration::from_mins(5);
/// Names remembered; with more all are forgotten.
const MOST_NAMES: usize = 4_096;
/// Addresses of one name.
const MOST_ADDRESSES: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

    use hickory_proto::rr::Record;
    use tokio::net::UdpSocket;

    use super::*;

    /// A resolver that knows one address for every name; 0: it fails.
    struct Resolver {
        address: SocketAddr,
        last_byte: Arc<AtomicU8>,
        /// In seconds.
        ttl: Arc<AtomicU32>,
        asked: Arc<AtomicUsize>,
    }

    impl Resolver {
        async fn start() -> Self {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
            let address = socket.local_addr().expect("an address");
            let (last_byte, ttl) = (Arc::new(AtomicU8::new(1)), Arc::new(AtomicU32::new(60)));
            let resolver = Self { address, last_byte, ttl, asked: Arc::default() };
            let (last_byte, asked) = (resolver.last_byte.clone(), resolver.asked.clone());
            let ttl = resolver.ttl.clone();
            task::spawn("test", async move {
                let mut buffer = [0; 512];
                while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let question = Message::from_vec(&buffer[..length]).expect("a question");
                    let ttl = ttl.load(Ordering::Relaxed);
                    let reply = answer(&question, last_byte.load(Ordering::Relaxed), ttl);
                    socket.send_to(&reply, from).await.expect("sent");
                }
            });
            resolver
        }

        fn lookup(&self) -> Arc<Lookup> {
            Lookup::with(&Settings {
                resolvers: Resolvers { servers: vec![self.address], search: vec!["corp.example".into()] },
                timeout: Duration::from_secs(2),
                ttl: Duration::from_secs(5),
                mark: 0x6d65,
            })
        }
    }

    fn answer(question: &Message, last_byte: u8, ttl: u32) -> Vec<u8> {
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        let query = question.queries[0].clone();
        if last_byte == 0 {
            reply.metadata.response_code = ResponseCode::NXDomain;
        } else if query.query_type() == RecordType::A {
            let name = query.name().to_ascii();
            let third = if name.ends_with("corp.example.") { 1 } else { 2 };
            let data = RData::A(Ipv4Addr::new(192, 0, third, last_byte).into());
            reply.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
        }
        reply.add_query(query);
        reply.to_vec().expect("a reply")
    }

    impl Lookup {
        fn outdate(&self) {
            for kept in self.kept.lock().expect("sound").values_mut() {
                kept.until = Instant::now();
            }
        }

        async fn first(self: &Arc<Self>, name: &str) -> String {
            self.addresses(name).await.expect("an answer")[0].to_string()
        }
    }

    #[tokio::test]
    async fn an_answer_is_remembered_and_asked_for_anew_in_time() {
        let resolver = Resolver::start().await;
        let lookup = resolver.lookup();

        assert_eq!(lookup.first("api.example.com").await, "192.0.2.1");
        assert_eq!(lookup.first("API.example.com.").await, "192.0.2.1");
        assert_eq!(resolver.asked.load(Ordering::Relaxed), 2, "once for each family");

        resolver.last_byte.store(7, Ordering::Relaxed);
        lookup.outdate();
        assert_eq!(lookup.first("api.example.com").await, "192.0.2.1", "nobody waits for the new one");
        while lookup.first("api.example.com").await != "192.0.2.7" {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_answer_lasts_as_long_as_its_ttl_says_within_bounds() {
        let resolver = Resolver::start().await;
        let lookup = resolver.lookup();
        let rate = Duration::from_secs(17);
        for (ttl, lasts) in [(0, rate), (1, LEAST_TTL), (60, Duration::from_mins(1)), (86_400, MOST_TTL)] {
            resolver.ttl.store(ttl, Ordering::Relaxed);
            let begun = Instant::now();
            let (_, told) = lookup.renew("api.example.com", rate).await.expect("an answer");
            assert_eq!(told, lasts, "a TTL of {ttl} s");
            let kept = lookup.kept.lock().expect("sound")["api.example.com"].until - begun;
            assert!(kept >= lasts && kept < lasts + Duration::from_secs(3), "{kept:?} of {lasts:?}");
        }
    }

    #[tokio::test]
    async fn the_last_good_answer_outlives_its_name() {
        let resolver = Resolver::start().await;
        let lookup = resolver.lookup();
        lookup.first("api.example.com").await;
        resolver.last_byte.store(0, Ordering::Relaxed);
        lookup.outdate();

        assert_eq!(lookup.first("api.example.com").await, "192.0.2.1");
        while resolver.asked.load(Ordering::Relaxed) < 4 {
            tokio::task::yield_now().await;
        }
        assert_eq!(lookup.first("api.example.com").await, "192.0.2.1");

        let unknown = lookup.addresses("never.example.com").await;
        assert_eq!(unknown.expect_err("no answer").kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn short_names_get_the_search_suffixes() {
        let lookup = Resolver::start().await.lookup();
        assert_eq!(lookup.first("db").await, "192.0.1.1");
        assert_eq!(lookup.first("198.51.100.7").await, "198.51.100.7");
    }
}
