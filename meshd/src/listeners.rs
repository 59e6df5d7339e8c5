//! What this process listens on, by place: sockets that outlive it.
//!
//! Whoever listens asks here. A socket that a predecessor left at the same place is taken over with all who wait in
//! its queue, so that nobody is refused while meshd restarts (systemd kept it) or is replaced
//! (`app::handover`). What is held here stays open until [`Listeners::close`], however its user ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{SockRef, Type};

use crate::systemd;
use crate::transport::socket::{self, BindError, Share};

/// The listening sockets of this process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Listeners(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// From a predecessor; nobody has asked for them yet.
    given: BTreeMap<Place, Vec<OwnedFd>>,
    /// In use; a second descriptor of each.
    held: BTreeMap<Place, Vec<OwnedFd>>,
    /// Whether systemd keeps them too.
    stored: bool,
}

/// Where one listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

impl Listeners {
    /// Begins with sockets of a predecessor. What is no listening socket is closed.
    pub fn inherited(sockets: Vec<OwnedFd>) -> Self {
        let mut given: BTreeMap<Place, Vec<OwnedFd>> = BTreeMap::new();
        for socket in sockets {
            if let Some(place) = Place::of(&socket) {
                given.entry(place).or_default().push(socket);
            }
        }
        Self(Arc::new(Mutex::new(State { given, ..State::default() })))
    }

    /// From now on systemd keeps every socket as well, for the next run. Unix sockets apart: their folder goes with the
    /// unit.
    pub fn keep_in_store(&self) {
        let mut state = self.state();
        state.stored = true;
        for (place, sockets) in &state.held {
            place.store(sockets);
        }
    }

    /// Listens for TCP with a group of sockets on one address, at least `count`, one for each worker. A predecessor may
    /// have had more of them: all must be accepted on.
    ///
    /// # Errors
    /// When none can be bound.
    pub fn tcp_group(&self, address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, BindError> {
        let mut group: Vec<TcpListener> =
            self.take(&Place::Tcp(address)).into_iter().map(Into::into).collect();
        if group.is_empty() {
            group = socket::listen_tcp_group(address, count)?;
        }
        while group.len() < count {
            // Fails where the predecessor listened alone; those it had are enough.
            let Ok(more) = socket::listen_tcp(address, Share::Group) else { break };
            group.push(more);
        }
        let place = group.first().and_then(|first| first.local_addr().ok()).unwrap_or(address);
        self.hold(Place::Tcp(place), &group);
        Ok(group)
    }

    /// Listens for TCP.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn tcp(&self, address: SocketAddr) -> Result<TcpListener, BindError> {
        let mut taken = self.take(&Place::Tcp(address));
        // A group was there before: one socket cannot take the others' queues.
        let listener = match (taken.pop(), taken.is_empty()) {
            (Some(one), true) => one.into(),
            _ => socket::listen_tcp(address, Share::Alone)?,
        };
        self.hold(Place::Tcp(listener.local_addr().unwrap_or(address)), std::slice::from_ref(&listener));
        Ok(listener)
    }

    /// Binds a UDP socket.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn udp(&self, address: SocketAddr) -> Result<UdpSocket, BindError> {
        let socket: UdpSocket = match self.take(&Place::Udp(address)).pop() {
            Some(taken) => taken.into(),
            None => socket::bind_udp(address, Share::Alone)?,
        };
        self.hold(Place::Udp(socket.local_addr().unwrap_or(address)), std::slice::from_ref(&socket));
        Ok(socket)
    }

    /// Returns the unix socket that a predecessor listens on at a path.
    pub fn unix(&self, path: &Path) -> Option<UnixListener> {
        let listener: UnixListener = self.take(&Place::Unix(path.to_owned())).pop()?.into();
        self.hold_unix(path, &listener);
        Some(listener)
    }

    /// Takes note of a unix socket that was bound elsewhere.
    pub fn hold_unix(&self, path: &Path, listener: &UnixListener) {
        self.hold(Place::Unix(path.to_owned()), std::slice::from_ref(listener));
    }

    /// Lets go of an address that is not listened on any more, and of what a predecessor had there.
    pub fn close_tcp(&self, address: SocketAddr) {
        let place = Place::Tcp(address);
        let mut state = self.state();
        state.given.remove(&place);
        if state.held.remove(&place).is_some() && state.stored {
            place.unstore();
        }
    }

    /// Lets go of what a predecessor had and nobody asked for: the configuration names it no more.
    ///
    /// Doors are opened by rules, a moment after the start: call it when those of the first Plan are open.
    pub fn close_unclaimed(&self) {
        let mut state = self.state();
        let given = std::mem::take(&mut state.given);
        for place in given.keys().filter(|_| state.stored) {
            tracing::info!(?place, "no longer listening");
            place.unstore();
        }
    }

    /// Returns a descriptor of every socket, for a successor.
    ///
    /// # Errors
    /// When this process may have no more of them.
    pub fn all(&self) -> io::Result<Vec<OwnedFd>> {
        let state = self.state();
        state.held.values().chain(state.given.values()).flatten().map(OwnedFd::try_clone).collect()
    }

    /// Tells every place that is listened on: `tcp`, `udp` or `unix`, and address or path.
    pub fn places(&self) -> Vec<(&'static str, String)> {
        let place = |place: &Place| match place {
            Place::Tcp(address) => ("tcp", address.to_string()),
            Place::Udp(address) => ("udp", address.to_string()),
            Place::Unix(path) => ("unix", path.display().to_string()),
        };
        self.state().held.keys().map(place).collect()
    }

    /// Returns the TCP ports that are listened on, those that a predecessor left included.
    pub fn tcp_ports(&self) -> BTreeSet<u16> {
        let state = self.state();
        let port = |place: &Place| match place {
            Place::Tcp(address) => Some(address.port()),
            Place::Udp(_) | Place::Unix(_) => None,
        };
        state.held.keys().chain(state.given.keys()).filter_map(port).collect()
    }

    /// Lets go of everything: who accepts no more must not keep callers waiting. `Keep::InStore` leaves what systemd has.
    pub fn close(&self, keep: Keep) {
        let mut state = self.state();
        let (held, given) = (std::mem::take(&mut state.held), std::mem::take(&mut state.given));
        if state.stored && keep == Keep::Nothing {
            held.keys().chain(given.keys()).for_each(Place::unstore);
        }
    }

    fn take(&self, place: &Place) -> Vec<OwnedFd> {
        self.state().given.remove(place).unwrap_or_default()
    }

    fn hold(&self, place: Place, sockets: &[impl AsFd]) {
        // Without a second descriptor the socket works; it only cannot be handed on.
        let second: Vec<OwnedFd> =
            sockets.iter().filter_map(|socket| socket.as_fd().try_clone_to_owned().ok()).collect();
        let mut state = self.state();
        if state.stored {
            place.store(&second);
        }
        state.held.insert(place, second);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stays open when everything is closed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: callers are refused at once.
    Nothing,
    /// What systemd keeps: meshd comes back, callers wait.
    InStore,
}

impl Place {
    /// Finds out where a socket listens; `None` when it does not.
    fn of(socket: &OwnedFd) -> Option<Self> {
        let socket = SockRef::from(socket);
        let address = socket.local_addr().ok()?;
        if let Some(address) = address.as_socket() {
            return match socket.r#type().ok()? {
                Type::DGRAM => Some(Self::Udp(address)),
                Type::STREAM if is_listening(&socket) => Some(Self::Tcp(address)),
                _ => None,
            };
        }
        address.as_pathname().filter(|_| is_listening(&socket)).map(|path| Self::Unix(path.to_owned()))
    }

    /// The name in systemd's store: no colon may be in it.
    fn name(&self) -> String {
        let (kind, address) = match self {
            Self::Tcp(address) => ("tcp", address),
            Self::Udp(address) => ("udp", address),
            Self::Unix(path) => return format!("unix {}", path.display()).replace(':', "_"),
        };
        format!("{kind} {}", address.to_string().replace(':', "_"))
    }

    fn store(&self, sockets: &[OwnedFd]) {
        if !matches!(self, Self::Unix(_)) {
            systemd::store(&self.name(), sockets);
        }
    }

    fn unstore(&self) {
        if !matches!(self, Self::Unix(_)) {
            systemd::unstore(&self.name());
        }
    }
}

fn is_listening(socket: &SockRef<'_>) -> bool {
    socket.is_listener().unwrap_or(false)
}

#[cfg(test)]
mod tests;
