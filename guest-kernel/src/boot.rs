//! From the boot assembly to the guest's `main`: the order in which a guest comes up.
#![expect(unsafe_code, reason = "entered from assembly; memory that the device tree names")]
use core::arch::global_asm;
use core::panic::PanicInfo;

use crate::bootargs::BootArgs;
use crate::mmio::Registers;
use crate::tree::{self, Region, Tree};
use crate::{console, heap, paging, power, smp};

global_asm!(include_str!("asm/boot.S"), options(raw));

/// Largest tree that is read, bytes.
const TREE_LIMIT: u32 = 2 << 20;
/// One page, bytes.
const PAGE: u64 = 4096;

/// The machine that the hypervisor gave this guest.
pub struct Guest {
    /// What the device tree says.
    pub tree: Tree<'static>,
    /// The ramdisk; empty if there is none.
    pub ramdisk: &'static [u8],
    /// RAM that the heap did not get: the image, the device tree and the ramdisk.
    pub taken: [Region; 3],
}

impl Guest {
    /// The command line.
    pub fn args(&self) -> BootArgs<'static> {
        BootArgs::new(self.tree.bootargs)
    }
}

/// What a guest's `main` may return.
pub trait Outcome {
    /// Ends the domain accordingly.
    fn end(self) -> !;
}

impl Outcome for () {
    fn end(self) -> ! {
        power::power_off()
    }
}

impl<E: core::fmt::Debug> Outcome for Result<(), E> {
    fn end(self) -> ! {
        match self {
            Ok(()) => power::power_off(),
            Err(error) => {
                crate::println!("guest failed: {error:?}");
                power::crash()
            }
        }
    }
}

/// Names the guest's `main`: a function from `&'static Guest` to nothing or to a `Result`. When it returns, the domain powers
/// off, or ends as crashed if it returns an error.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn guest_kernel_main(guest: &'static $crate::Guest) -> ! {
            $crate::Outcome::end($main(guest))
        }
    };
}

unsafe extern "Rust" {
    fn guest_kernel_main(guest: &'static Guest) -> !;
}

/// The device tree's bytes, or the reason why there are none.
fn tree_at(address: u64) -> Result<&'static [u8], &'static str> {
    let image = paging::image();
    if address == 0 || !address.is_multiple_of(8) || address >= 1 << 32 {
        return Err("x0 names no device tree");
    }
    let pointer = core::ptr::with_exposed_provenance::<[u32; 2]>(address as usize);
    // SAFETY: the hypervisor placed the tree there (boot protocol); aligned and mapped by the boot tables.
    let header = unsafe { pointer.read() };
    let size = tree::size(header).filter(|size| *size <= TREE_LIMIT).ok_or("x0 names no device tree")?;
    if address < image.end && image.start < address + u64::from(size) {
        return Err("the device tree lies inside the image");
    }
    // SAFETY: the tree is `size` bytes long, nothing writes to it: it is kept out of the heap.
    Ok(unsafe { core::slice::from_raw_parts(pointer.cast(), size as usize) })
}

#[unsafe(no_mangle)]
extern "C" fn guest_kernel_start(tree_address: u64) -> ! {
    let blob = or_crash(tree_at(tree_address), "device tree");
    let tree = or_crash(Tree::parse(blob), "device tree");
    or_crash(paging::start(&tree.memory), "page tables");
    if !BootArgs::new(tree.bootargs).has("unsealed") {
        or_crash(paging::seal(), "page tables");
    }
    if let Some(uart) = tree.uart
        && paging::map_device(uart).is_ok()
    {
        console::use_uart(Registers::new(uart.start as usize, uart.size as usize));
    }
    let taken = [
        Region { start: 0, size: paging::image().end },
        Region { start: tree_address, size: blob.len() as u64 },
        tree.ramdisk.unwrap_or_default(),
    ];
    for bank in &tree.memory {
        add_free(*bank, taken);
    }
    let ramdisk = tree.ramdisk.filter(|file| inside(*file, &tree.memory)).map_or(&[][..], |file| {
        let start = core::ptr::with_exposed_provenance::<u8>(file.start as usize);
        // SAFETY: it lies in RAM, is mapped, and nothing writes to it: it is kept out of the heap.
        unsafe { core::slice::from_raw_parts(start, file.size as usize) }
    });
    smp::set_count(tree.cpus);
    let guest = alloc::boxed::Box::leak(alloc::boxed::Box::new(Guest { tree, ramdisk, taken }));
    // SAFETY: `main!` defines it with this signature.
    unsafe { guest_kernel_main(guest) }
}

fn inside(file: Region, memory: &[Region]) -> bool {
    memory.iter().any(|bank| bank.start <= file.start && file.end() <= bank.end())
}

/// Gives what is left of `bank` to the heap: walks over the taken ranges in ascending order.
fn add_free(bank: Region, mut taken: [Region; 3]) {
    taken.sort_unstable_by_key(|region| region.start);
    let mut start = bank.start;
    let bank_end = bank.end().min(paging::LIMIT);
    for region in taken.iter().filter(|region| region.size > 0) {
        let end = (region.start & !(PAGE - 1)).min(bank_end);
        if end > start {
            // SAFETY: RAM, mapped by `paging::start`, between the ranges that are in use.
            unsafe { heap::add(Region { start, size: end - start }) };
        }
        start = start.max(region.end().next_multiple_of(PAGE));
    }
    if bank_end > start {
        // SAFETY: as above.
        unsafe { heap::add(Region { start, size: bank_end - start }) };
    }
}

fn or_crash<T, E: core::fmt::Debug>(outcome: Result<T, E>, what: &str) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => {
            console::print_last_words(format_args!("guest-kernel: {what}: {error:?}\n"));
            power::crash()
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::print_last_words(format_args!("{info}\n"));
    power::crash()
}
