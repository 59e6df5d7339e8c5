//! Who should vote: the next single change of the Raft group, decided by its leader.
//!
//! The aim is a fixed odd number of voters (three by default). While the mesh forms, voters are
//! promoted in pairs, because two voters survive less than one. Later a voter that has been silent
//! for [`DEAD_AFTER`] is replaced by a standby that has been steady for [`STEADY_AFTER`]. Never two
//! changes at once, and never one that would leave fewer live voters than a quorum.
//!
//! Pure: the time comes in as an argument, the change goes out as a value.
//!
//! Source: shared design "Control plane", section 1; hashicorp/raft-autopilot for the thresholds.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mesh_proto::command::HostId;

/// A voter silent for this long may be replaced.
pub const DEAD_AFTER: Duration = Duration::from_secs(30);
/// A replacement must have answered without a pause for this long.
pub const STEADY_AFTER: Duration = Duration::from_secs(10);
/// A standby is caught up when it lags no more entries than this.
pub const CAUGHT_UP_WITHIN: u64 = 250;
/// A standby that has not answered for this long is not promoted.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// The default number of voters.
pub const VOTERS: usize = 3;
/// Standbys beside the voters; each costs the leader a copy of every entry.
pub const STANDBYS_MAX: usize = 4;

/// A member of the Raft group as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which host.
    pub id: HostId,
    /// Whether it votes; a standby otherwise.
    pub voter: bool,
    /// When it last answered; the time the leader was elected if it has not answered since.
    pub heard: Instant,
    /// Since when it has answered without a pause; `None` while it does not answer.
    pub steady_since: Option<Instant>,
    /// How many entries it lags behind the leader's log.
    pub lag: u64,
}

/// What the leader knows.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The present moment.
    pub now: Instant,
    /// The leader itself; it is a member and always alive.
    pub leader: HostId,
    /// How many voters there should be; an odd number.
    pub wanted: usize,
    /// All members of the group, the leader included.
    pub members: &'a [Member],
    /// Hosts that may vote and are not gone or fenced, oldest first.
    pub eligible: &'a [HostId],
    /// Hosts that are still part of the mesh, gone or not; others are taken out of the group.
    pub known: &'a BTreeSet<HostId>,
}

/// One change of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Begin to copy the log to this host.
    AddStandby(HostId),
    /// Make a standby a voter.
    Promote(HostId),
    /// Let `by` vote instead of `dead`, as one joint change.
    Replace {
        /// The voter that is taken out.
        dead: HostId,
        /// The standby that takes its place.
        by: HostId,
    },
    /// Stop copying the log to a host that left the mesh.
    RemoveStandby(HostId),
}

/// Decides the next change; `None` when the group is as good as it can be now.
pub fn decide(view: &View<'_>) -> Option<Step> {
    remove_unknown(view).or_else(|| promote(view)).or_else(|| replace(view)).or_else(|| add(view))
}

/// Takes out a standby whose host is no longer part of the mesh.
fn remove_unknown(view: &View<'_>) -> Option<Step> {
    let unknown = |member: &&Member| !member.voter && !view.known.contains(&member.id);
    view.members.iter().find(unknown).map(|member| Step::RemoveStandby(member.id))
}

/// Grows the group while it forms: two at a time, so that it never rests at an even number.
fn promote(view: &View<'_>) -> Option<Step> {
    let count = voters(view).count();
    if count >= view.wanted {
        return None;
    }
    // A dead voter is replaced, not outvoted: growing past it would raise the quorum.
    if count > 1 && voters(view).any(|member| is_dead(view, member)) {
        return None;
    }
    let needed = if count % 2 == 1 { 2 } else { 1 };
    // Stability is asked of later changes only; a mesh of minutes has none.
    let mut ready = candidates(view, count >= VOTERS);
    let first = ready.next()?;
    (ready.count() + 1 >= needed).then_some(Step::Promote(first.id))
}

/// Lets a steady standby take the place of a dead voter.
fn replace(view: &View<'_>) -> Option<Step> {
    let total = voters(view).count();
    let live = voters(view).filter(|member| !is_dead(view, member)).count();
    let quorum = total / 2 + 1;
    if live < quorum {
        return None;
    }
    let dead = voters(view).find(|member| is_dead(view, member))?;
    let by = candidates(view, true).next()?;
    Some(Step::Replace { dead: dead.id, by: by.id })
}

/// Makes an eligible host a standby.
fn add(view: &View<'_>) -> Option<Step> {
    let standbys = view.members.iter().filter(|member| !member.voter).count();
    let missing = view.wanted.saturating_sub(voters(view).count());
    if standbys >= missing + STANDBYS_MAX {
        return None;
    }
    let is_member = |id: HostId| view.members.iter().any(|member| member.id == id);
    let newcomer = view.eligible.iter().find(|id| !is_member(**id))?;
    Some(Step::AddStandby(*newcomer))
}

fn voters<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Member> {
    view.members.iter().filter(|member| member.voter)
}

/// Standbys fit to vote, oldest host first.
fn candidates<'a>(view: &View<'a>, steady: bool) -> impl Iterator<Item = &'a Member> {
    let View { now, members, .. } = *view;
    view.eligible.iter().filter_map(move |id| members.iter().find(|member| member.id == *id)).filter(
        move |member| {
            !member.voter
                && member.lag <= CAUGHT_UP_WITHIN
                && now.saturating_duration_since(member.heard) <= ANSWERS_WITHIN
                && match member.steady_since {
                    Some(since) => !steady || now.saturating_duration_since(since) >= STEADY_AFTER,
                    None => false,
                }
        },
    )
}

fn is_dead(view: &View<'_>, member: &Member) -> bool {
    member.id != view.leader && view.now.saturating_duration_since(member.heard) >= DEAD_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some moment; which one does not matter.
    #[expect(clippy::disallowed_methods, reason = "an Instant cannot be made otherwise")]
    fn some_moment() -> Instant {
        Instant::now()
    }

    struct Group {
        now: Instant,
        members: Vec<Member>,
        eligible: Vec<HostId>,
    }

    impl Group {
        /// Host 1 leads and is the only voter.
        fn new() -> Self {
            let mut group = Self {
                now: some_moment() + Duration::from_secs(1_000),
                members: Vec::new(),
                eligible: Vec::new(),
            };
            group.add(1, true);
            group
        }

        fn add(&mut self, id: u64, voter: bool) -> &mut Member {
            self.eligible.push(HostId(id));
            self.members.push(Member {
                id: HostId(id),
                voter,
                heard: self.now,
                steady_since: Some(self.now.checked_sub(STEADY_AFTER).expect("a late start")),
                lag: 0,
            });
            self.members.last_mut().expect("just pushed")
        }

        fn silent(&mut self, id: u64, seconds: u64) {
            let heard = self.now.checked_sub(Duration::from_secs(seconds));
            let member = self.members.iter_mut().find(|member| member.id.0 == id);
            let member = member.expect("a member");
            member.heard = heard.expect("a late start");
            member.steady_since = None;
        }

        fn step(&self) -> Option<Step> {
            decide(&View {
                now: self.now,
                leader: HostId(1),
                wanted: VOTERS,
                members: &self.members,
                eligible: &self.eligible,
                known: &self.eligible.iter().copied().collect(),
            })
        }
    }

    #[test]
    fn eligible_host_becomes_a_standby_first() {
        let mut group = Group::new();
        group.eligible.push(HostId(9));
        assert_eq!(group.step(), Some(Step::AddStandby(HostId(9))));
    }

    #[test]
    fn two_eligible_hosts_stay_at_one_voter_and_one_standby() {
        let mut group = Group::new();
        group.add(2, false);
        assert_eq!(group.step(), None);
    }

    #[test]
    fn third_host_brings_two_promotions_one_after_the_other() {
        let mut group = Group::new();
        group.add(2, false);
        group.add(3, false);
        assert_eq!(group.step(), Some(Step::Promote(HostId(2))));
        group.members[1].voter = true;
        assert_eq!(group.step(), Some(Step::Promote(HostId(3))));
        group.members[2].voter = true;
        assert_eq!(group.step(), None);
    }

    #[test]
    fn first_voters_need_no_ten_seconds_of_stability() {
        let mut group = Group::new();
        let now = group.now;
        group.add(2, false).steady_since = Some(now);
        group.add(3, false).steady_since = Some(now);
        assert_eq!(group.step(), Some(Step::Promote(HostId(2))));
    }

    #[test]
    fn lagging_standby_is_not_promoted() {
        let mut group = Group::new();
        group.add(2, false);
        group.add(3, false).lag = CAUGHT_UP_WITHIN + 1;
        assert_eq!(group.step(), None);
    }

    #[test]
    fn dead_voter_is_replaced_after_thirty_seconds() {
        let mut group = Group::new();
        group.add(2, true);
        group.add(3, true);
        group.add(4, false);
        group.silent(3, 29);
        assert_eq!(group.step(), None);
        group.silent(3, 30);
        let (dead, by) = (HostId(3), HostId(4));
        assert_eq!(group.step(), Some(Step::Replace { dead, by }));
    }

    #[test]
    fn replacement_must_be_steady() {
        let mut group = Group::new();
        group.add(2, true);
        group.add(3, true);
        let now = group.now;
        group.add(4, false).steady_since = Some(now);
        group.silent(3, 60);
        assert_eq!(group.step(), None);
    }

    #[test]
    fn nothing_is_replaced_without_a_quorum_of_live_voters() {
        let mut group = Group::new();
        group.add(2, true);
        group.add(3, true);
        group.add(4, false);
        group.silent(2, 60);
        group.silent(3, 60);
        assert_eq!(group.step(), None);
    }

    #[test]
    fn host_that_left_the_mesh_is_no_standby() {
        let mut group = Group::new();
        group.add(2, false);
        group.eligible.pop();
        assert_eq!(group.step(), Some(Step::RemoveStandby(HostId(2))));
    }
}
