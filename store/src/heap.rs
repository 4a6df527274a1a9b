//! How the process's memory grows.
//!
//! glibc's heaps of all threads but the first grow by single pages, with a system call for each, and
//! give the memory at their end back, page by page, whenever a buffer there is freed. Both cost more
//! than a request should. The two functions here are allocations that are freed at once: they touch
//! no memory, and do nothing where another allocator is used.

use std::hint::black_box;

/// Blocks of up to this size come from a heap, and twice as much is kept at its end.
const LARGE: usize = 3 << 19;
/// A heap grows by this much, as soon as half of it may be used up.
const STEP: usize = 1 << 20;

/// Has glibc's heaps keep what is freed. A block that was mapped for itself and is freed tells it
/// that such sizes come and go (mallopt(3), `M_MMAP_THRESHOLD`); it begins with 128 KiB.
pub fn keep() {
    block(LARGE);
}

/// Lets a thread's heap grow ahead of what it keeps.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// The bytes up to which the heap was seen to.
    until: usize,
}

impl Growth {
    /// To be called by the thread that allocates, with all it keeps, every few hundred KiB.
    pub(crate) fn follow(&mut self, bytes: usize) {
        if bytes > self.until {
            block(STEP);
            self.until = bytes + STEP / 2;
        } else if bytes + STEP < self.until {
            // Much was freed, and will be used first.
            self.until = bytes + STEP / 2;
        }
    }
}

fn block(size: usize) {
    drop(black_box(Vec::<u8>::with_capacity(size)));
}
