//! What mimalloc holds on to although nobody uses it.
//!
//! It gives pages back a second after they were freed, and only when it is used then.
//!
//! Freed pages stay with the process until the allocator is used again, which it is not while new work is refused for
//! want of memory.

/// Gives the kernel back what this thread has freed, and what ended threads left. Takes up to a few milliseconds.
#[expect(unsafe_code, reason = "mimalloc offers it as a C function only")]
pub(crate) fn give_back() {
    // SAFETY: takes no pointers; meant to be called from any thread at any time, also where it is not the global allocator.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Whether pages go back to the kernel as soon as they are free: while meshd starts, much is made that is soon thrown
/// away. Later that would cost more than it saves.
#[expect(unsafe_code, reason = "mimalloc offers it as a C function only")]
pub(crate) fn give_back_at_once(whether: bool) {
    let delay = if whether { 0 } else { PURGE_DELAY_MS };
    // SAFETY: takes no pointers; an option may be set from any thread at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, delay) };
}

/// `mi_option_purge_delay` of mimalloc 3, which the bindings do not name; in milliseconds.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// mimalloc's default.
const PURGE_DELAY_MS: std::ffi::c_long = 1_000;

#[cfg(test)]
mod tests {
    /// Options have other numbers and defaults in other versions of mimalloc.
    #[test]
    #[expect(unsafe_code, reason = "mimalloc offers it as a C function only")]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: takes no pointers; an option may be read from any thread at any time.
        assert_eq!(unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) }, super::PURGE_DELAY_MS);
    }
}
