//! The mesh's certificate authority on a voter.
