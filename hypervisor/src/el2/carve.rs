//! Storage for ever, cut from RAM at boot: the frame table, the domains, their tables. After boot EL2 allocates nothing.
#![expect(unsafe_code, reason = "turns raw memory into slices")]

use core::alloc::Layout;
use core::cell::RefCell;
use core::ptr::with_exposed_provenance_mut;
use core::slice;

use buddy_system_allocator::Heap;
use hypervisor::domain_build::Storage;

use super::direct;

/// Orders of the boot heap: up to 2^32 bytes.
const ORDERS: usize = 33;

/// A region that is being cut up.
pub struct Carve {
    heap: RefCell<Heap<ORDERS>>,
}

impl Carve {
    /// Cuts from `pa..pa+size`, which is in the direct map and nobody else's for ever.
    ///
    /// # Safety
    /// Just that.
    pub unsafe fn new(pa: u64, size: usize) -> Self {
        let mut heap = Heap::empty();
        // SAFETY: the caller's promise.
        unsafe { heap.init(direct::virt(pa), size) };
        Self { heap: RefCell::new(heap) }
    }
}

impl Storage for Carve {
    fn slice<T: Send + Sync + 'static>(
        &self,
        n: usize,
        mut make: impl FnMut(usize) -> T,
    ) -> Option<&'static mut [T]> {
        let layout = Layout::array::<T>(n).ok()?;
        if layout.size() == 0 {
            return Some(&mut []);
        }
        let memory = self.heap.try_borrow_mut().ok()?.alloc(layout).ok()?;
        let first = with_exposed_provenance_mut::<T>(memory.as_ptr().expose_provenance());
        for index in 0..n {
            // SAFETY: the allocation holds `n` values of `T`, aligned; this one is not initialised yet.
            unsafe { first.wrapping_add(index).write(make(index)) };
        }
        // SAFETY: all `n` values are initialised, and the memory is never given back.
        Some(unsafe { slice::from_raw_parts_mut(first, n) })
    }
}
