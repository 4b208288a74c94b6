//! Pavo's EL2 image. This page is the boot: one line a step; the steps are in `el2/boot.rs`.
#![no_std]
#![no_main]
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(missing_docs, unreachable_pub, reason = "a program: its interface is the boot protocol and pv-abi")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "usize is 64 bits wide here, and fields of registers are masked where they are cut out"
)]
#![allow(
    clippy::inline_always,
    reason = "on the path of every exception: a call more would be seen in the numbers"
)]

mod el2;

use el2::{boot, mmu, percpu, timer};

/// The first CPU, with the MMU on, on its stack: `pa` is the device tree's physical address, `load` the image's.
#[expect(unsafe_code, reason = "a name that boot.S calls")]
#[unsafe(no_mangle)]
extern "C" fn boot_primary(pa: u64, load: u64) -> ! {
    percpu::claim(0);
    mmu::init(load);
    timer::start();
    boot::early_console();
    let tree = boot::tree(pa);
    let host = boot::machine(&tree, pa);
    defmt::info!(
        "Pavo {=str}: EL2 at {=u64:#x}, {=usize} CPUs, {=u64} MiB",
        el2::VERSION,
        load,
        host.cpus.len(),
        host.ram.total() >> 20
    );
    boot::say_board();
    let interrupts = boot::interrupt_controller(&host);
    el2::set_interrupts(interrupts);
    boot::cpu_interrupts(&host, interrupts, percpu::this());
    let memory = boot::memory(&tree, &host);
    defmt::info!("EL2 resident {=u64} KiB", memory.resident >> 10);
    let cpus = boot::start_cpus(&host);
    let guests = boot::domains(&tree, &host, &memory, cpus);
    el2::publish(memory, guests, host);
    el2::release_secondaries();
    el2::run_guests()
}

/// Every other CPU, with the MMU on, on its stack.
#[expect(unsafe_code, reason = "a name that boot.S calls")]
#[unsafe(no_mangle)]
extern "C" fn boot_secondary(number: u64) -> ! {
    percpu::claim(number as usize);
    mmu::adopt();
    el2::join();
    el2::run_guests()
}
