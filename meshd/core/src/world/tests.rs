//! Behaviour of the World as a whole.
