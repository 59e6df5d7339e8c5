//! Leases: which hosts are alive, as the leader sees it.
//!
//! Every host shows itself to the server that holds its stream, servers tell the leader, and the
//! leader alone keeps these timers. Nothing here enters the log; only what *changes* does: a host
//! became suspect, is gone, came back. A new leader starts all leases at full length, so a change
//! of leaders never costs a host its services.
//!
//! Pure: the time comes in as an argument.
//!
//! Source: shared design "Control plane", section 3.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_proto::command::{HostId, Liveness};

/// A silent host is suspect after this long: its endpoints stay but lose priority.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(5);
/// A host whose stream closed is suspect after this long; a reconnection takes less.
pub const CLOSED_SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// A host not heard of for this long is gone: its endpoints are removed.
pub const GONE_AFTER: Duration = Duration::from_secs(10);
/// Losses within this window count together for the mass-loss guard.
pub const MASS_LOSS_WINDOW: Duration = Duration::from_mins(1);
/// Fewer losses than this are never a mass loss.
pub const MASS_LOSS_HOSTS: usize = 5;
/// More than one host in this many is a mass loss (20 %).
const MASS_LOSS_SHARE: usize = 5;
/// How much two reports of the same sign of life may differ, by rounding and by the network.
const REPORT_JITTER: Duration = Duration::from_millis(50);
/// Hosts declared gone in one entry.
pub const GONE_PER_ENTRY: usize = 1_000;

/// The leases of all hosts, kept by the leader.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    hosts: BTreeMap<HostId, Lease>,
    lost: Vec<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    heard: Instant,
    closed: Option<Instant>,
    /// Left, or known as gone since before this leader: so it stays until it is heard.
    out: Option<Liveness>,
    /// What the log says; proposals are made until it says what the timer says.
    agreed: Liveness,
}

/// What the leader should do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Changes to propose; at most [`GONE_PER_ENTRY`] of them become gone.
    pub changes: Vec<(HostId, Liveness)>,
    /// Hosts whose removal is frozen by the mass-loss guard; empty in good times.
    pub frozen: Vec<HostId>,
}

impl Leases {
    /// Starts every lease at full length: this server has just become the leader.
    pub fn restart(now: Instant, hosts: impl IntoIterator<Item = (HostId, Liveness)>) -> Self {
        let mut leases = Self::default();
        for (host, agreed) in hosts {
            leases.hosts.insert(host, Lease::new(now, agreed));
        }
        leases
    }

    /// Brings the list of hosts and what the log says of them up to date.
    ///
    /// A host not known yet begins with a full lease.
    pub fn agree(&mut self, now: Instant, hosts: impl IntoIterator<Item = (HostId, Liveness)>) {
        let mut agreed = BTreeMap::new();
        for (host, standing) in hosts {
            let lease = self.hosts.get(&host).copied();
            let mut lease = lease.unwrap_or_else(|| Lease::new(now, standing));
            lease.agreed = standing;
            agreed.insert(host, lease);
        }
        self.hosts = agreed;
    }

    /// Notes a sign of life.
    pub fn heard(&mut self, host: HostId, at: Instant) {
        if let Some(lease) = self.hosts.get_mut(&host) {
            lease.heard = lease.heard.max(at);
            lease.closed = None;
            lease.out = None;
        }
    }

    /// Notes that a stream of a host ended without a goodbye; it was last heard on it at `heard`.
    ///
    /// Says nothing when the host was heard elsewhere since: it only changed its server.
    pub fn closed(&mut self, host: HostId, heard: Instant, now: Instant) {
        if let Some(lease) = self.hosts.get_mut(&host)
            && lease.heard <= heard + REPORT_JITTER
        {
            lease.closed.get_or_insert(now);
        }
    }

    /// Notes a goodbye: the host is gone at once, and no loss.
    pub fn left(&mut self, host: HostId) {
        if let Some(lease) = self.hosts.get_mut(&host) {
            lease.out = Some(Liveness::Left);
        }
    }

    /// Returns what should be proposed now.
    ///
    /// The same changes are returned again until [`Leases::agree`] has seen them in the log.
    pub fn due(&mut self, now: Instant) -> Due {
        self.lost.retain(|at| now.duration_since(*at) < MASS_LOSS_WINDOW);
        let frozen = self.mass_loss(now);
        let mut due = Due::default();
        let mut gone = 0;
        for (host, lease) in &mut self.hosts {
            let standing = lease.standing(now);
            if standing == lease.agreed {
                continue;
            }
            let lost = standing == Liveness::Gone;
            if lost && frozen {
                due.frozen.push(*host);
                continue;
            }
            if lost {
                gone += 1;
                if gone > GONE_PER_ENTRY {
                    continue;
                }
            }
            due.changes.push((*host, standing));
        }
        due
    }

    /// Notes that a host was declared gone because it was lost, for the mass-loss guard.
    pub fn declared_lost(&mut self, at: Instant) {
        self.lost.push(at);
    }

    /// Returns what the timers say of a host; `None` for one not known.
    pub fn standing(&self, host: HostId, now: Instant) -> Option<Liveness> {
        Some(self.hosts.get(&host)?.standing(now))
    }

    /// Whether more hosts are lost, or about to be, than a mesh loses by chance.
    ///
    /// All that are silent count, not only those whose lease has ended: twenty hosts cut off
    /// together run out one after the other, and the first must not be removed either.
    fn mass_loss(&self, now: Instant) -> bool {
        let present = || self.hosts.values().filter(|lease| lease.out.is_none() && lease.is_in());
        let silent = present().filter(|lease| lease.standing(now) != Liveness::Live);
        let losses = silent.count() + self.lost.len();
        let hosts = present().count() + self.lost.len();
        losses >= MASS_LOSS_HOSTS && losses * MASS_LOSS_SHARE > hosts
    }
}

impl Lease {
    fn new(now: Instant, agreed: Liveness) -> Self {
        let lease = Self { heard: now, closed: None, out: None, agreed };
        let out = (!lease.is_in()).then_some(agreed);
        Self { out, ..lease }
    }

    /// Whether the log still counts the host in.
    fn is_in(&self) -> bool {
        matches!(self.agreed, Liveness::Live | Liveness::Suspect)
    }

    fn standing(&self, now: Instant) -> Liveness {
        let silence = now.saturating_duration_since(self.heard);
        let closed = self.closed.map(|at| now.saturating_duration_since(at));
        if let Some(out) = self.out {
            out
        } else if silence >= GONE_AFTER {
            Liveness::Gone
        } else if silence >= SUSPECT_AFTER || closed.is_some_and(|age| age >= CLOSED_SUSPECT_AFTER) {
            Liveness::Suspect
        } else {
            Liveness::Live
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some moment; which one does not matter.
    #[expect(clippy::disallowed_methods, reason = "an Instant cannot be made otherwise")]
    fn some_moment() -> Instant {
        Instant::now()
    }

    fn hosts(count: u64) -> impl Iterator<Item = (HostId, Liveness)> {
        (1..=count).map(|id| (HostId(id), Liveness::Live))
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn silent_host_becomes_suspect_then_gone() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(3));
        for host in [1, 2] {
            leases.heard(HostId(host), start + seconds(9));
        }
        assert_eq!(leases.due(start + Duration::from_millis(4_900)), Due::default());
        let suspect = leases.due(start + seconds(5)).changes;
        assert_eq!(suspect, [(HostId(3), Liveness::Suspect)]);
        let gone = leases.due(start + seconds(10)).changes;
        assert_eq!(gone, [(HostId(3), Liveness::Gone)]);
    }

    #[test]
    fn closed_stream_makes_a_host_suspect_after_a_second() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(3));
        leases.closed(HostId(2), start, start);
        assert_eq!(leases.due(start + Duration::from_millis(900)), Due::default());
        let due = leases.due(start + seconds(1)).changes;
        assert_eq!(due, [(HostId(2), Liveness::Suspect)]);
    }

    #[test]
    fn host_that_came_back_to_another_server_is_live() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(3));
        leases.closed(HostId(2), start, start);
        leases.heard(HostId(2), start + Duration::from_millis(300));
        assert_eq!(leases.due(start + seconds(2)), Due::default());
    }

    #[test]
    fn late_word_of_the_old_server_does_not_count() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(3));
        leases.heard(HostId(2), start + Duration::from_millis(300));
        leases.closed(HostId(2), start, start + Duration::from_millis(400));
        assert_eq!(leases.due(start + seconds(2)), Due::default());
    }

    #[test]
    fn goodbye_is_gone_at_once() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(3));
        leases.left(HostId(1));
        assert_eq!(leases.due(start).changes, [(HostId(1), Liveness::Left)]);
    }

    #[test]
    fn gone_host_stays_gone_until_heard() {
        let start = some_moment();
        let mut leases = Leases::restart(start, [(HostId(4), Liveness::Gone)]);
        assert_eq!(leases.due(start + seconds(1)), Due::default());
        leases.heard(HostId(4), start + seconds(1));
        let due = leases.due(start + seconds(1)).changes;
        assert_eq!(due, [(HostId(4), Liveness::Live)]);
    }

    #[test]
    fn what_is_agreed_is_not_proposed_again() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(1));
        let later = start + seconds(6);
        assert_eq!(leases.due(later).changes.len(), 1);
        leases.agree(later, [(HostId(1), Liveness::Suspect)]);
        assert_eq!(leases.due(later), Due::default());
    }

    #[test]
    fn mass_loss_freezes_removal() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(40));
        for host in 21..=40 {
            leases.heard(HostId(host), start + seconds(12));
        }
        // The twenty others run out one after the other.
        for host in 1..=20 {
            leases.heard(HostId(host), start + Duration::from_millis(100 * host));
        }
        for tenth in 100..=125 {
            let due = leases.due(start + Duration::from_millis(100 * tenth));
            let gone = due.changes.iter().filter(|change| change.1 == Liveness::Gone);
            assert_eq!(gone.count(), 0, "at {tenth}");
        }
        assert_eq!(leases.due(start + Duration::from_millis(12_500)).frozen.len(), 20);
    }

    #[test]
    fn four_lost_hosts_of_a_small_mesh_are_removed() {
        let start = some_moment();
        let mut leases = Leases::restart(start, hosts(7));
        for host in 5..=7 {
            leases.heard(HostId(host), start + seconds(10));
        }
        assert_eq!(leases.due(start + seconds(10)).changes.len(), 4);
    }
}
