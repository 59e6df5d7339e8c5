//! What mimalloc holds on to although nobody uses it.
//!
//! Freed pages stay with the process until the allocator is used again, which it is not while new work is refused for
//! want of memory.

/// Gives the kernel back what this thread has freed, and what ended threads left. Takes up to a few milliseconds.
#[expect(unsafe_code, reason = "mimalloc offers it as a C function only")]
pub(crate) fn give_back() {
    // SAFETY: takes no pointers; meant to be called from any thread at any time, also where it is not the global allocator.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
