//! Tells the linker where a guest's parts go, when a guest is built.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=guest.ld");
    println!("cargo::metadata=linker_script={folder}/guest.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo::rustc-link-arg-bins=-T{folder}/guest.ld");
        println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
