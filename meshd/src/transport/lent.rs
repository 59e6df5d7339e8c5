//! Large buffers, lent while bytes flow: a connection at rest holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// A large buffer; goes back to its thread when dropped.
#[derive(Debug)]
pub(crate) struct Lent(Box<[u8]>);

/// Lends a buffer of [`LENT_BYTES`]. What is in it is of no meaning: someone else's bytes, as long as nobody shows them.
pub(crate) fn lend() -> Lent {
    let kept = SHELF.with_borrow_mut(Vec::pop);
    Lent(kept.unwrap_or_else(|| vec![0; LENT_BYTES].into_boxed_slice()))
}

thread_local! {
    static SHELF: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that ends has no shelf any more.
        let _ = SHELF.try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            if shelf.len() < MOST_KEPT {
                shelf.push(buffer);
            }
        });
    }
}

/// Eight records of TLS, less the header of a frame: a frame of that much fills whole records.
pub(crate) const LENT_BYTES: usize = 128 * 1024 - 4;
/// How many buffers a thread keeps for the next who ask.
const MOST_KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_was_given_back_is_lent_again_and_few_are_kept() {
        let first = lend();
        let address = first.as_ptr();
        drop(first);
        assert_eq!(lend().as_ptr(), address);

        let many: Vec<Lent> = (0..3 * MOST_KEPT).map(|_| lend()).collect();
        assert!(many.iter().all(|buffer| buffer.len() == LENT_BYTES));
        drop(many);
        assert_eq!(SHELF.with_borrow(Vec::len), MOST_KEPT);
    }
}
