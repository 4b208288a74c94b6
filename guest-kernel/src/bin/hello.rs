//! The smallest guest: says hello, what it has and on what it runs, and powers off.
#![no_std]
#![no_main]
use guest_kernel::{Guest, hypercall, println};
use pv_abi::Errno;

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), Errno> {
    let version = hypercall::xen_version()?;
    println!("Hello from a guest in Rust.");
    println!(
        "memory {} KiB, {} vCPU, command line \"{}\"",
        guest.tree.memory_size() / 1024,
        guest.tree.cpus,
        guest.tree.bootargs
    );
    println!("Xen interface {}.{}", version >> 16, version & 0xffff);
    Ok(())
}
