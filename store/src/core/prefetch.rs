//! Telling the processor what will be read soon.
//!
//! The sequencer goes over many keys, each of which lies somewhere else in memory. One after the
//! other, each place costs the way to memory and back; told ahead, these ways overlap.

use std::ptr;

/// Begins to bring the cache line where `place` begins.
#[inline]
pub(super) fn prefetch<T: ?Sized>(place: &T) {
    prefetch_at(ptr::from_ref(place).cast(), 0);
}

/// The same for the line that is `offset` bytes behind an address.
#[inline]
#[cfg_attr(
    target_arch = "x86_64",
    allow(
        unsafe_code,
        reason = "a prefetch reads nothing and faults nowhere, whatever the address"
    )
)]
pub(super) fn prefetch_at(address: *const u8, offset: usize) {
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(offset).cast());
    }
    // No stable way: these have to wait for memory.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, offset);
}
