//! Proves that the panic check can fail: links small images with the real toolchain, one with a slice index that can be
//! out of bounds, one without, and looks at both.

use crate::failure::{Failure, Outcome};
use crate::setup::Toolchain;
use crate::{process, workspace};

use super::Found;
use super::panic_reach;

/// The parts that both images have.
const FRAME: &str = r#"#![no_std]
#![no_main]
core::arch::global_asm!(".section .text.vectors,\"ax\"", ".global vectors", "vectors: b on_trap");
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }
static TABLE: [u8; 16] = *b"0123456789abcdef";
"#;
/// Can be out of bounds.
const PLANTED: &str = r#"#[unsafe(no_mangle)]
extern "C" fn on_trap(index: usize) -> u8 { TABLE[index] }
"#;
/// Cannot.
const CLEAN: &str = r#"#[unsafe(no_mangle)]
extern "C" fn on_trap(index: usize) -> u8 { TABLE.get(index).copied().unwrap_or(0) }
"#;
/// Keeps the vector table as a section of its own.
const SCRIPT: &str = "ENTRY(vectors)\nSECTIONS {\n  . = 0x40200000;\n  .text.vectors : { KEEP(*(.text.vectors)) }\n  \
                      .text : { *(.text .text.*) }\n  .rodata : { *(.rodata .rodata.*) }\n}\n";

/// Both images must be judged rightly.
pub(super) fn check(toolchain: &Toolchain) -> Outcome<Found> {
    let (found, _) = panic_reach::check(&link(toolchain, "planted", PLANTED)?)?;
    let chain = found.first().map(panic_reach::Finding::line).unwrap_or_default();
    if !chain.starts_with("vectors -> on_trap -> core::panicking::") {
        return Err(Failure::failed(format!("a planted slice index was not found (found: \"{chain}\")")));
    }
    let (found, _) = panic_reach::check(&link(toolchain, "clean", CLEAN)?)?;
    match found.first() {
        None => Ok(Found::Good(String::new())),
        Some(finding) => {
            Err(Failure::failed(format!("an image without a panic has one: {}", finding.line())))
        }
    }
}

fn link(toolchain: &Toolchain, name: &str, body: &str) -> Outcome<Vec<u8>> {
    let folder = workspace::pavo().join("planted");
    let (source, script, image) =
        (folder.join(format!("{name}.rs")), folder.join("script.ld"), folder.join(name));
    workspace::write(&source, format!("{FRAME}{body}").as_bytes())?;
    workspace::write(&script, SCRIPT.as_bytes())?;
    let mut command = toolchain.rustc();
    command.args(["-O", "-Cpanic=abort", "--crate-type", "bin", "-o"]).arg(&image).arg(&source);
    command.arg(format!("-Clink-arg=-T{}", script.display()));
    process::quiet(&mut command)?;
    workspace::read(&image)
}
