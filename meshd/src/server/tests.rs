//! Whole servers in one process: formation, loss of the leader, restart, quorum, watching.

mod damage;
mod formats;
mod mesh;
mod stories;
mod versions;
