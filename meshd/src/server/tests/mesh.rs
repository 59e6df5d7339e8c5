//! A mesh of servers in one process: each on runtimes and in a folder of its own, joined by streams
//! in memory that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_core::world::World;
use mesh_proto::api::{
    ApiError, Applied, Apply, Call, ErrorCode, Get, JoinRequest, Joined, Request, Response, SignRequest,
};
use mesh_proto::command::{
    Batch, Bootstrap, HostFacts, HostId, Mesh as MeshFacts, NewHost, Precondition, ResourceChange, Revision,
    Timestamp, VoterWish,
};
use mesh_proto::resource::Object;
use mesh_proto::token::Token;
use mesh_proto::value::Labels;
use mesh_proto::watch::{Down, Hello, Up};
use rustls::sign::CertifiedKey;
use tokio::runtime::{Builder, Runtime};

use crate::server::ca::Authority;
use crate::server::{Answer, Carrier, NoAnswer, Notary, OpenError, Server, Setup};
use crate::transport::frame::MAX_BULK_FRAME_BYTES;
use crate::transport::socket::{Share, bind_udp, listen_tcp};
use crate::transport::{
    Accepted, ControlClient, Credentials, Dialer, Expect, FrameStream, Listener, QuicListener, QuicOptions,
    Refused, Service, SocketOptions, Trust, join,
};

pub(super) const MESH: &str = "0123456789abcdef";

/// Servers by id, and who cannot reach whom.
#[derive(Default)]
struct Switch {
    servers: BTreeMap<HostId, Arc<Server>>,
    cut: BTreeSet<(HostId, HostId)>,
    /// Hosts to which everything is said in the words of a version that is newer than theirs.
    older: BTreeSet<HostId>,
}

/// What joins the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// Streams in memory.
    Memory,
    /// Loopback sockets with mutual TLS, QUIC first.
    Quic,
    /// The same, with nobody listening on UDP.
    Tcp,
}

/// The mesh; dropping it kills every server.
pub(super) struct Mesh {
    medium: Medium,
    authority: Authority,
    addresses: BTreeMap<String, SocketAddr>,
    switch: Arc<Mutex<Switch>>,
    hosts: BTreeMap<HostId, Place>,
}

struct Place {
    folder: tempfile::TempDir,
    has_log: bool,
    runtimes: Option<(Runtime, Runtime)>,
}

struct Wire {
    me: HostId,
    switch: Arc<Mutex<Switch>>,
}

impl Carrier for Wire {
    fn call(&self, to: HostId, _: SocketAddr, service: Service, body: Bytes, _: Duration) -> Answer<'_> {
        Box::pin(async move {
            let mut stream =
                self.open(to, service).ok_or_else(|| NoAnswer(format!("host {to} is cut off")))?;
            let is_older = self.switch.lock().expect("not poisoned").older.contains(&to);
            let body = if is_older && service == Service::Raft { in_newer_words(&body) } else { body };
            let lost = |_| NoAnswer(format!("host {to} went away"));
            stream.send(body).await.map_err(lost)?;
            stream.recv().await.map_err(lost)?.ok_or_else(|| NoAnswer(format!("host {to} went away")))
        })
    }
}

impl Wire {
    fn open(&self, to: HostId, service: Service) -> Option<FrameStream> {
        let switch = self.switch.lock().expect("not poisoned");
        if switch.cut.contains(&(self.me, to)) {
            return None;
        }
        let server = switch.servers.get(&to)?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        server.serve(self.me, service, FrameStream::new(theirs, MAX_BULK_FRAME_BYTES));
        Some(FrameStream::new(ours, MAX_BULK_FRAME_BYTES))
    }
}

/// Adds a field to every entry in a message of Raft.
fn in_newer_words(frame: &[u8]) -> Bytes {
    const APPEND: u8 = 1;
    const READ: u8 = 5;
    let mut body: serde_json::Value = match frame[0] {
        APPEND | READ => serde_json::from_slice(&frame[1..]).expect("JSON"),
        _ => return Bytes::copy_from_slice(frame),
    };
    let entries = match frame[0] {
        READ => vec![&mut body],
        _ => body["entries"]
            .as_array_mut()
            .expect("entries")
            .iter_mut()
            .map(|entry| &mut entry["payload"]["Normal"])
            .collect(),
    };
    for change in entries.into_iter().filter_map(|entry| entry.get_mut("command")?.get_mut("change")) {
        change["wave"] = 2.into();
    }
    [&frame[..1], &serde_json::to_vec(&body).expect("JSON")].concat().into()
}

/// Calls over real sockets, unless the switch has cut the way.
struct Sockets {
    wire: Wire,
    dialer: Dialer,
    clients: Mutex<BTreeMap<(HostId, SocketAddr), ControlClient>>,
}

impl Carrier for Sockets {
    fn call(&self, to: HostId, at: SocketAddr, service: Service, body: Bytes, limit: Duration) -> Answer<'_> {
        let mut clients = self.clients.lock().expect("not poisoned");
        let client = clients.entry((to, at)).or_insert_with(|| {
            let expect = Expect::Identity(host_identity(to));
            ControlClient::new(self.dialer.clone(), at, expect)
        });
        let client = client.clone();
        Box::pin(async move {
            if self.wire.switch.lock().expect("not poisoned").cut.contains(&(self.wire.me, to)) {
                return Err(NoAnswer("cut off".to_owned()));
            }
            client.call(service, body, limit).await.map_err(|error| NoAnswer(error.to_string()))
        })
    }
}

fn host_identity(id: HostId) -> Identity {
    Identity::host("cluster.local", &id.to_string()).expect("an identity")
}

/// Keys and a certificate for a host.
fn certify(authority: &Authority, id: HostId) -> Arc<Credentials> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a CSR");
    let identity = host_identity(id);
    let chain = authority.sign(csr.der(), &identity, Duration::from_hours(1), SystemTime::now());
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(
        &rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
    );
    let certified = CertifiedKey::new(chain.expect("a chain"), signer.expect("a signer"));
    let trust = Trust::new("cluster.local", vec![authority.root().clone()]).expect("a root");
    let credentials = Credentials::new(trust);
    credentials.install(&identity, Arc::new(certified));
    credentials.set_host(&identity);
    credentials
}

/// A loopback address that is free on TCP and UDP at this moment.
fn free_address() -> SocketAddr {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    loop {
        let tcp = std::net::TcpListener::bind(loopback).expect("a free port");
        let address = tcp.local_addr().expect("bound");
        if std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

fn joined_address(switch: &Mutex<Switch>, id: HostId) -> SocketAddr {
    let switch = switch.lock().expect("not poisoned");
    let known = |server: &Arc<Server>| server.world().hosts.get(&id).map(|host| host.facts.address);
    switch.servers.values().find_map(known).expect("a joined host")
}

/// Accepts control streams for a server, over TCP and (unless only TCP is wanted) QUIC.
fn listen(
    runtime: &Runtime,
    medium: Medium,
    address: SocketAddr,
    credentials: &Arc<Credentials>,
    server: &Arc<Server>,
) {
    let entered = runtime.enter();
    let tcp = listen_tcp(address, Share::Alone).expect("a port that was free");
    let mut tcp = Listener::new(tcp, credentials).expect("a listener");
    let served = Arc::downgrade(server);
    runtime.spawn(async move {
        loop {
            serve(&served, tcp.accept().await);
        }
    });
    if medium == Medium::Quic {
        let udp = bind_udp(address, Share::Alone).expect("a port that was free");
        let mut quic = QuicListener::new(udp, credentials, &QuicOptions::default()).expect("a listener");
        let served = Arc::downgrade(server);
        runtime.spawn(async move {
            loop {
                serve(&served, quic.accept().await);
            }
        });
    }
    drop(entered);
}

fn serve(server: &Weak<Server>, accepted: Result<Accepted, Refused>) {
    if let (Some(server), Ok(Accepted::Control(peer, service, stream))) = (server.upgrade(), accepted)
        && let Some(Identity::Host { id, .. }) = peer.identity
    {
        server.serve(HostId(id.parse().expect("a number")), service, stream);
    }
}

struct NoCertificates;

impl Notary for NoCertificates {
    fn sign(&self, requests: &[SignRequest]) -> Result<Vec<Vec<String>>, String> {
        Ok(requests.iter().map(|request| vec![request.identity.clone()]).collect())
    }

    fn seal_root(&self, wrap_key: &str) -> Result<Option<String>, String> {
        Ok(Some(format!("sealed for {wrap_key}")))
    }
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().expect("a runtime")
}

pub(super) fn facts() -> HostFacts {
    HostFacts {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 15008)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: Labels::new(),
        locality: String::new(),
        voter: VoterWish::Auto,
    }
}

impl Mesh {
    /// One server, host 1, that has begun a mesh in memory.
    pub(super) async fn init() -> Self {
        Self::init_over(Medium::Memory).await
    }

    fn empty(medium: Medium) -> Self {
        let now = SystemTime::now();
        let root = Authority::new_root("cluster.local", now).expect("a root");
        let authority = Authority::from_root("cluster.local", root.key, root.certificate, now);
        Self {
            medium,
            authority: authority.expect("an authority"),
            addresses: BTreeMap::new(),
            switch: Arc::default(),
            hosts: BTreeMap::new(),
        }
    }

    pub(super) async fn init_over(medium: Medium) -> Self {
        let mut mesh = Self::empty(medium);
        let bootstrap = mesh.bootstrap();
        mesh.start(HostId(1)).await.expect("the first server starts");
        mesh.server(1).bootstrap(bootstrap).await.expect("the mesh begins");
        mesh
    }

    /// One server, on a copy of the files that another left.
    pub(super) async fn of_files(left: &Path) -> Self {
        let mut mesh = Self::empty(Medium::Memory);
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("snapshots")).expect("made");
        std::fs::copy(left.join("raft.redb"), folder.path().join("raft.redb")).expect("copied");
        for snapshot in left.join("snapshots").read_dir().expect("listed").flatten() {
            let to = folder.path().join("snapshots").join(snapshot.file_name());
            std::fs::copy(snapshot.path(), to).expect("copied");
        }
        mesh.hosts.insert(HostId(1), Place { folder, has_log: true, runtimes: None });
        mesh.start(HostId(1)).await.expect("it is taken up");
        mesh
    }

    /// Three servers, all voters: hosts 1, and the two returned.
    pub(super) async fn of_three() -> (Self, u64, u64) {
        Self::of_three_over(Medium::Memory).await
    }

    pub(super) async fn of_three_over(medium: Medium) -> (Self, u64, u64) {
        let mut mesh = Self::init_over(medium).await;
        let second = mesh.join("vm2").await;
        let third = mesh.join("vm3").await;
        mesh.until("three voters", |mesh| mesh.voters(1).len() == 3).await;
        (mesh, second, third)
    }

    fn new_host(&mut self, name: &str) -> NewHost {
        let address = *self.addresses.entry(name.to_owned()).or_insert_with(|| match self.medium {
            Medium::Memory => SocketAddr::from((Ipv4Addr::LOCALHOST, 15008)),
            _ => free_address(),
        });
        NewHost {
            name: name.to_owned(),
            public_key: BASE64.encode(name.as_bytes()),
            wrap_key: format!("wrap key of {name}"),
            facts: HostFacts { address, ..facts() },
        }
    }

    fn bootstrap(&mut self) -> Bootstrap {
        Bootstrap {
            mesh: MeshFacts {
                id: MESH.to_owned(),
                trust_domain: "cluster.local".to_owned(),
                domain: "cluster.local".to_owned(),
                roots: vec![BASE64.encode(self.authority.root())],
                created: Timestamp(1),
            },
            sealed_root: BTreeMap::from([("1".to_owned(), "sealed".to_owned())]),
            host: self.new_host("vm1"),
        }
    }

    /// Joins a host by a token and starts its server; returns its id.
    pub(super) async fn join(&mut self, name: &str) -> u64 {
        let line = self.token().await;
        let joined = self.try_join(name, &line, wall_ms()).await.expect("joins");
        self.start(joined.id).await.expect("starts");
        joined.id.0
    }

    pub(super) async fn token(&self) -> String {
        let request = Request::CreateToken { role: None, ttl_seconds: 60 };
        match self.call(1, request).await.expect("a token") {
            Response::Token { line, .. } => line,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn try_join(
        &mut self,
        name: &str,
        line: &str,
        clock_ms: u64,
    ) -> Result<Joined, ApiError> {
        let token = Token::parse(line).expect("a token");
        let (exporter, host) = ([5; 32], self.new_host(name));
        let proof = join::proof(&token.secret, &exporter, name.as_bytes());
        let request = JoinRequest {
            token: token.id,
            proof: BASE64.encode(&proof),
            binding: String::new(),
            host,
            csr: String::new(),
            clock_ms,
        };
        let (mut ours, theirs) = pipe();
        self.server(1).serve_join(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), theirs, exporter);
        ours.send(serde_json::to_vec(&request).expect("JSON").into()).await.expect("sent");
        let answer = ours.recv().await.expect("answered").expect("answered");
        let answer: Result<Response, ApiError> = serde_json::from_slice(&answer).expect("JSON");
        answer.map(|response| match response {
            Response::Joined(joined) => *joined,
            other => panic!("{other:?}"),
        })
    }

    /// Starts a host's server on what is in its folder.
    pub(super) async fn start(&mut self, id: HostId) -> Result<(), OpenError> {
        self.start_knowing(id, Arc::default()).await
    }

    /// Starts a host's server with a mirror of what another knows.
    pub(super) async fn start_beside(&mut self, id: u64, other: u64) -> Result<(), OpenError> {
        let mirror = World::from_public(&self.world(other).public());
        self.start_knowing(HostId(id), Arc::new(mirror)).await
    }

    async fn start_knowing(&mut self, id: HostId, mirror: Arc<World>) -> Result<(), OpenError> {
        let place = self.hosts.entry(id).or_insert_with(|| Place {
            folder: tempfile::tempdir().expect("a temporary folder"),
            has_log: false,
            runtimes: None,
        });
        let (raft, work) = (runtime("raft"), runtime("work"));
        let wire = Wire { me: id, switch: Arc::clone(&self.switch) };
        let credentials = (self.medium != Medium::Memory).then(|| certify(&self.authority, id));
        let carrier: Arc<dyn Carrier> = match &credentials {
            None => Arc::new(wire),
            Some(credentials) => {
                let dialer = Dialer::new(Arc::clone(credentials), SocketOptions::default());
                Arc::new(Sockets { wire, dialer, clients: Mutex::default() })
            }
        };
        let setup = || Setup {
            id,
            folder: place.folder.path().to_owned(),
            has_log: place.has_log,
            carrier: Arc::clone(&carrier),
            mirror: Arc::clone(&mirror),
            notary: Arc::new(NoCertificates),
            analyze: |_, _| Vec::new(),
            raft_runtime: raft.handle().clone(),
            work_runtime: work.handle().clone(),
            voters: 3,
        };
        // The files of a killed server are closed a moment later.
        let deadline = Instant::now() + Duration::from_secs(5);
        let server = loop {
            match Server::start(setup()).await {
                Err(error) if error.to_string().contains("already open") && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(server) => break server,
                Err(error) => {
                    raft.shutdown_background();
                    work.shutdown_background();
                    return Err(error);
                }
            }
        };
        if let Some(credentials) = credentials {
            let address = match id {
                HostId(1) => self.addresses["vm1"],
                _ => joined_address(&self.switch, id),
            };
            listen(&raft, self.medium, address, &credentials, &server);
        }
        place.runtimes = Some((raft, work));
        place.has_log = true;
        self.switch.lock().expect("not poisoned").servers.insert(id, server);
        Ok(())
    }

    /// Ends a server without a word: its tasks are dropped where they stand.
    pub(super) fn kill(&mut self, id: u64) {
        self.switch.lock().expect("not poisoned").servers.remove(&HostId(id));
        let place = self.hosts.get_mut(&HostId(id)).expect("a host");
        if let Some((raft, work)) = place.runtimes.take() {
            raft.shutdown_background();
            work.shutdown_background();
        }
    }

    /// Cuts a host off from all others, or lets it back.
    pub(super) fn cut(&self, id: u64, off: bool) {
        let mut switch = self.switch.lock().expect("not poisoned");
        for other in self.hosts.keys().copied().filter(|other| other.0 != id) {
            for pair in [(HostId(id), other), (other, HostId(id))] {
                if off {
                    switch.cut.insert(pair)
                } else {
                    switch.cut.remove(&pair)
                };
            }
        }
    }

    /// Lets a host be of an older version than what the others write, or as new as they.
    pub(super) fn set_older(&self, id: u64, older: bool) {
        let all = &mut self.switch.lock().expect("not poisoned").older;
        if older {
            all.insert(HostId(id))
        } else {
            all.remove(&HostId(id))
        };
    }

    pub(super) fn server(&self, id: u64) -> Arc<Server> {
        Arc::clone(&self.switch.lock().expect("not poisoned").servers[&HostId(id)])
    }

    pub(super) fn folder(&self, id: u64) -> &std::path::Path {
        self.hosts[&HostId(id)].folder.path()
    }

    pub(super) fn world(&self, id: u64) -> Arc<World> {
        self.server(id).world()
    }

    pub(super) fn voters(&self, id: u64) -> Vec<HostId> {
        self.server(id).members().iter().filter(|member| member.voter).map(|member| member.id).collect()
    }

    pub(super) async fn call(&self, id: u64, request: Request) -> Result<Response, ApiError> {
        self.server(id).call(request, "a test").await
    }

    /// Writes a `ServiceEntry` of that name under that key.
    pub(super) async fn apply(&self, id: u64, name: &str, key: &str) -> Result<Applied, ApiError> {
        match self.call(id, Request::Apply(order(name, key))).await? {
            Response::Applied(applied) => Ok(applied),
            other => panic!("{other:?}"),
        }
    }

    /// Writes until it works; returns how long that took.
    pub(super) async fn apply_until_done(&self, id: u64, name: &str) -> Duration {
        let began = Instant::now();
        while let Err(error) = self.apply(id, name, name).await {
            assert!(began.elapsed() < Duration::from_secs(20), "{error}");
        }
        began.elapsed()
    }

    pub(super) async fn names(&self, id: u64) -> Result<Vec<String>, ApiError> {
        match self.call(id, Request::Get(Get::default())).await? {
            Response::Resources { items, .. } => {
                Ok(items.into_iter().map(|stored| stored.object.metadata.name.to_string()).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain for: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn agent(&self, server: u64, host: u64, from: Option<Revision>) -> Agent {
        Agent::connect(&self.server(server), host, from).await
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for id in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.kill(id.0);
        }
    }
}

/// The agent of a host, as its server sees it.
pub(super) struct Agent {
    stream: FrameStream,
    pub(super) world: World,
    pub(super) worlds: usize,
}

impl Agent {
    async fn connect(server: &Arc<Server>, host: u64, from: Option<Revision>) -> Self {
        let (mut stream, theirs) = pipe();
        server.serve(HostId(host), Service::Watch, theirs);
        let hello = Hello { mesh: MESH.to_owned(), from, version: "1.0.0".to_owned() };
        stream.send(serde_json::to_vec(&hello).expect("JSON").into()).await.expect("sent");
        Self { stream, world: World::default(), worlds: 0 }
    }

    pub(super) async fn say(&mut self, up: Up) {
        self.stream.send(serde_json::to_vec(&up).expect("JSON").into()).await.expect("sent");
    }

    /// Says what no version of today says.
    pub(super) async fn say_json(&mut self, up: &serde_json::Value) {
        self.stream.send(serde_json::to_vec(up).expect("JSON").into()).await.expect("sent");
    }

    /// Waits until the server ends the stream.
    pub(super) async fn until_ended(&mut self) {
        while let Ok(Some(_)) = self.stream.recv().await {}
    }

    /// Follows the stream until the mirror holds.
    pub(super) async fn follow(&mut self, what: &str, holds: impl Fn(&World) -> bool) {
        let follow = async {
            while !holds(&self.world) {
                let frame = self.stream.recv().await.expect("open").expect("not ended");
                self.take_in(serde_json::from_slice(&frame).expect("JSON"));
            }
        };
        tokio::time::timeout(Duration::from_secs(20), follow)
            .await
            .unwrap_or_else(|_| panic!("in vain: {what}"));
    }

    fn take_in(&mut self, down: Down) {
        match down {
            Down::World(public) => {
                self.world = World::from_public(&public);
                self.worlds += 1;
            }
            Down::Delta { from, to, changes } => {
                assert_eq!(from, self.world.revision, "a delta follows on what the mirror has");
                assert!(to > from);
                self.world.absorb_all(to, &changes);
            }
            Down::Bookmark { at, .. } => {
                assert!(at >= self.world.revision, "revisions do not fall");
                self.world.revision = at;
            }
        }
    }
}

pub(super) fn order(name: &str, key: &str) -> Apply {
    let object: Object = serde_json::from_value(serde_json::json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"hosts": [format!("{name}.example.com")], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            "resolution": "DNS"},
    }))
    .expect("a ServiceEntry");
    let change = ResourceChange { key: object.key(), object: Some(object), expect: Precondition::Any };
    let batch = Batch { changes: vec![change], reason: format!("apply {name}") };
    Apply { batch, dry_run: false, strict: false, key: key.to_owned() }
}

pub(super) fn pipe() -> (FrameStream, FrameStream) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    (FrameStream::new(ours, MAX_BULK_FRAME_BYTES), FrameStream::new(theirs, MAX_BULK_FRAME_BYTES))
}

pub(super) fn wall_ms() -> u64 {
    super::super::wall_ms()
}

/// A call from another host on a stream of its own.
pub(super) async fn call_from(server: &Arc<Server>, host: u64, call: &Call) -> Result<Response, ApiError> {
    call_in(server, host, &serde_json::to_value(call).expect("JSON")).await
}

/// As [`call_from`], in the words of any version.
pub(super) async fn call_in(
    server: &Arc<Server>,
    host: u64,
    call: &serde_json::Value,
) -> Result<Response, ApiError> {
    let (mut ours, theirs) = pipe();
    server.serve(HostId(host), Service::Api, theirs);
    ours.send(serde_json::to_vec(call).expect("JSON").into()).await.expect("sent");
    let answer = ours.recv().await.expect("answered").expect("answered");
    serde_json::from_slice(&answer).expect("JSON")
}

pub(super) fn code<T: std::fmt::Debug>(answer: Result<T, ApiError>) -> (ErrorCode, String) {
    let error = answer.expect_err("refused");
    (error.code, error.message)
}
