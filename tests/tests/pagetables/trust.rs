//! The end of the trust: roots, controls, the seal.
use super::*;

#[test]
fn the_first_root_ends_the_trust() {
    let world = world();
    let one = guest(&world, 1);
    assert_eq!(one.mapping(PAGES >> 12).unwrap().kind, Kind::Ram);
    tree(&one);
    assert_eq!(ext(&one, NEW_BASEPTR, ROOT >> 12, 0), EINVAL, "no root for the lower half");
    assert_eq!(ext(&one, NEW_USER_BASEPTR, L1 >> 12, 0), EINVAL, "no root");
    assert_eq!(ext(&one, NEW_USER_BASEPTR, ROOT >> 12, 1 << 16), EINVAL, "no ASID");
    assert_eq!(ext(&one, NEW_USER_BASEPTR, ROOT >> 12, 5), 0);
    for wrong in [
        Controls { sctlr: controls().sctlr & !1, ..controls() },
        Controls { sctlr: controls().sctlr & !4, ..controls() },
        Controls { sctlr: controls().sctlr | 1 << 25, ..controls() },
        Controls { tcr: controls().tcr | 1 << 39, ..controls() },
        Controls { tcr: controls().tcr | 1 << 40, ..controls() },
        Controls { tcr: controls().tcr + 1, ..controls() },
        Controls { tcr: controls().tcr | 1 << 14, ..controls() },
        Controls { tcr: controls().tcr & !(3 << 12), ..controls() },
        Controls { tcr: controls().tcr | 1 << 59, ..controls() },
    ] {
        world.machine.hw.set_controls(wrong);
        assert_eq!(ext(&one, NEW_BASEPTR, ROOT >> 12, 0), EINVAL);
    }
    world.machine.hw.set_controls(controls());
    assert!(world.domain(1).permits(Register::Base, 0));
    assert_eq!(ext(&one, NEW_BASEPTR, ROOT >> 12, 0), 0);
    assert_eq!(world.machine.hw.bases(), [5 << 48 | ROOT, ROOT]);
    // Both halves, and both as the first ones.
    assert_eq!(role(&one, ROOT), (Role::Table0, 4));
    assert_eq!(one.mapping(PAGES >> 12).unwrap().kind, Kind::Data);
    assert_eq!(one.mapping(TEXT >> 12).unwrap().kind, Kind::Text);
    let domain = world.domain(1);
    let (sctlr, tcr) = (controls().sctlr, controls().tcr);
    for (register, value, permitted) in [
        (Register::Base, ROOT, false),
        (Register::Mair, controls().mair, true),
        (Register::Mair, 0, false),
        (Register::Sctlr, sctlr ^ 1 << 12, true),
        (Register::Sctlr, sctlr & !1, false),
        (Register::Sctlr, sctlr & !4, false),
        (Register::Sctlr, sctlr | 1 << 25, false),
        (Register::Tcr, tcr | 1 << 7, true),
        (Register::Tcr, tcr | 1 << 39, false),
        (Register::Tcr, tcr | 1 << 40, false),
        (Register::Tcr, tcr | 1 << 41, false),
        (Register::Tcr, tcr + 9, false),
        (Register::Harmless, 77, true),
    ] {
        assert_eq!(domain.permits(register, value), permitted, "{register:?} {value:#x}");
    }
    world.check();
}

#[test]
fn no_kernel_text_comes_after_the_seal() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    assert_eq!(ext(&one, PIN_KERNEL_TEXT, PAGES >> 12, 0), 0);
    assert_eq!(ext(&one, SEAL, 0, 0), 0);
    assert_eq!(ext(&one, PIN_KERNEL_TEXT, (PAGES + 0x1000) >> 12, 0), EPERM);
    assert_eq!(ext(&one, PIN_USER_TEXT, (PAGES + 0x1000) >> 12, 0), 0);
}

#[test]
fn the_other_vcpu_starts_by_the_first_roots_with_the_mmu_on() {
    let world = world();
    let one = guest(&world, 1);
    let domain = world.domain(1);
    let start =
        || hypervisor::pagetable::start(&world.machine, domain, &mut domain.state.lock(), &domain.vcpus[1]);
    assert_eq!(start(), None, "trusted with itself: MMU off");
    install(&one);
    let bases = start().unwrap();
    assert_eq!((bases.lower, bases.upper, bases.controls), (5 << 48 | ROOT, ROOT, controls()));
    assert_eq!(role(&one, ROOT), (Role::Table0, 6));
    start().unwrap();
    assert_eq!(role(&one, ROOT), (Role::Table0, 6));
    world.check();
    assert_eq!(unpin(&one, ROOT), EBUSY);
}
