use pv_abi::Port;
use vm_fdt::FdtWriter;

use super::super::fixtures::{Blob, Fill, list, node, qemu_virt};
use super::*;

fn module(w: &mut FdtWriter, kind: &str, start: u32, size: u32, fill: Fill<'_>) {
    node(w, &format!("module@{start:x}"), &|w| {
        list(w, "compatible", &[kind, "multiboot,module"]);
        w.property_array_u32("reg", &[start, size]).unwrap();
        fill(w);
    });
}

/// A domain with the usual properties and a kernel, and what `fill` adds.
fn domain(w: &mut FdtWriter, name: &str, fill: Fill<'_>) {
    bare_domain(w, name, &|w| {
        w.property_u64("memory", 0x2_0000).unwrap();
        w.property_u32("cpus", 1).unwrap();
        fill(w);
        module(w, "multiboot,kernel", 0x4900_0000, 0x1_0000, &|_| {});
    });
}

fn bare_domain(w: &mut FdtWriter, name: &str, fill: Fill<'_>) {
    node(w, name, &|w| {
        w.property_string("compatible", "xen,domain").unwrap();
        w.property_u32("#address-cells", 1).unwrap();
        w.property_u32("#size-cells", 1).unwrap();
        fill(w);
    });
}

fn channel(w: &mut FdtWriter, port: u32, own: u32, peer: u32) {
    node(w, &format!("ec@{own:x}"), &|w| {
        w.property_string("compatible", "xen,evtchn-v1").unwrap();
        w.property_array_u32("xen,evtchn", &[port, peer]).unwrap();
        w.property_phandle(own).unwrap();
    });
}

fn board(chosen: Fill<'_>) -> Blob {
    qemu_virt(3, 1, &[(0x4000_0000, 1 << 30)], chosen)
}

/// Two domains with everything, a dom0 kernel before them.
pub(in super::super) fn two_domains() -> Blob {
    board(&|w| {
        module(w, "multiboot,kernel", 0x4800_0000, 0x1000, &|_| {});
        bare_domain(w, "domU1", &|w| {
            w.property_u64("memory", 0x2_0000).unwrap();
            w.property_u32("cpus", 2).unwrap();
            w.property_null("vpl011").unwrap();
            w.property_string("xen,enhanced", "no-xenstore").unwrap();
            w.property_string("pavo,name", "ping").unwrap();
            w.property_string("pavo,paging", "pv").unwrap();
            w.property_null("unknown,property").unwrap();
            w.property_u32("max_grant_frames", 32).unwrap();
            module(w, "multiboot,kernel", 0x4900_0000, 0x1_0000, &|w| {
                w.property_string("bootargs", "console=hvc0 peer=2").unwrap();
            });
            module(w, "multiboot,ramdisk", 0x4a00_0000, 0x2_0000, &|_| {});
            module(w, "multiboot,device-tree", 0x4b00_0000, 0x3000, &|_| {});
            channel(w, 10, 0xaaa1, 0xaaa2);
        });
        node(w, "unrelated", &|w| node(w, "child", &|_| {}));
        domain(w, "domU2", &|w| channel(w, 11, 0xaaa2, 0xaaa1));
    })
}

fn reasons(blob: &Blob) -> std::vec::Vec<Result<u16, (Option<u16>, Refusal)>> {
    let tree = blob.tree();
    let domains = Domains::new(&tree).unwrap();
    domains.map(|d| d.map(|d| d.id.0).map_err(|r| (r.id.map(|id| id.0), r.reason))).collect()
}

/// What becomes of one domain that `fill` makes, beside a healthy second one.
fn outcome(fill: Fill<'_>) -> Option<Refusal> {
    let blob = board(&|w| {
        fill(w);
        domain(w, "healthy", &|_| {});
    });
    let all = reasons(&blob);
    assert_eq!(all.len(), 2);
    assert_eq!(all[1], Ok(2));
    all[0].err().map(|(id, reason)| {
        assert_eq!(id, Some(1));
        reason
    })
}

#[test]
fn what_becomes_of_a_domain_is_read_word_by_word() {
    use crate::life::{Action, Policy};
    let read = |on_reboot: Option<&str>, on_crash: Option<&str>, most: Option<u32>| {
        let blob = board(&|w| {
            domain(w, "one", &|w| {
                let _ = on_reboot.map(|word| w.property_string("pavo,on-reboot", word).unwrap());
                let _ = on_crash.map(|word| w.property_string("pavo,on-crash", word).unwrap());
                let _ = most.map(|most| w.property_u32("pavo,max-restarts", most).unwrap());
            });
        });
        let tree = blob.tree();
        let policy = Domains::new(&tree).unwrap().next().unwrap().map(|config| config.policy);
        policy.map_err(|refused| refused.reason)
    };
    let words = [("destroy", Action::Destroy), ("restart", Action::Restart), ("preserve", Action::Preserve)];
    for (word, action) in words {
        let crash = Policy { on_crash: action, on_reboot: Action::Destroy, max_restarts: 5 };
        assert_eq!(read(None, Some(word), None), Ok(crash));
        let reboot = Policy { on_reboot: action, on_crash: Action::Destroy, max_restarts: 9 };
        assert_eq!(read(Some(word), None, Some(9)), Ok(reboot));
    }
    let both = Policy { on_reboot: Action::Preserve, on_crash: Action::Restart, max_restarts: 0 };
    assert_eq!(read(Some("preserve"), Some("restart"), Some(0)), Ok(both));
    assert_eq!(read(None, Some("Restart"), None), Err(Refusal::UnknownAction));
    assert_eq!(read(Some(""), None, None), Err(Refusal::UnknownAction));
}

#[test]
fn a_domain_with_everything_is_read() {
    let blob = two_domains();
    let tree = blob.tree();
    let domains: std::vec::Vec<_> = Domains::new(&tree).unwrap().collect();
    let first = DomainConfig {
        id: DomId(1),
        name: "ping",
        memory_kib: 0x2_0000,
        vcpus: 2,
        vpl011: true,
        console: false,
        enhanced: Enhanced::NoXenstore,
        paging: Paging::Pv,
        isolated: false,
        kernel: PhysRange::new(0x4900_0000, 0x1_0000).unwrap(),
        bootargs: b"console=hvc0 peer=2",
        ramdisk: PhysRange::new(0x4a00_0000, 0x2_0000),
        device_tree: PhysRange::new(0x4b00_0000, 0x3000),
        channels: Vec::from_slice(&[StaticChannel {
            local_port: Port(10),
            peer: DomId(2),
            peer_port: Port(11),
        }])
        .unwrap(),
        // 2 vCPUs, 128 MiB: 512 + 128 + 128 frames are three MiB exactly.
        quotas: Quotas {
            max_ports: 1024,
            grant_frames: 32,
            maptrack_frames: 1024,
            stage2_frames: 768,
            memory_kib: 0x2_0000,
        },
        policy: crate::life::Policy::NONE,
        scheduling: crate::sched::plan::Scheduling::default(),
    };
    assert_eq!(domains[0], Ok(first));
    let second = domains[1].as_ref().unwrap();
    assert_eq!(
        (second.id, second.name, second.enhanced, second.paging),
        (DomId(2), "domU2", Enhanced::None, Paging::Nested)
    );
    assert_eq!(
        second.channels,
        [StaticChannel { local_port: Port(11), peer: DomId(1), peer_port: Port(10) }]
    );
    assert_eq!((second.quotas.grant_frames, second.bootargs, second.ramdisk), (64, &b""[..], None));
    assert_eq!(domains.len(), 2);
}

#[test]
fn a_kernel_for_dom0_is_reported() {
    assert_eq!(has_dom0_modules(&two_domains().tree()), Ok(true));
    let without = board(&|w| domain(w, "domU1", &|_| {}));
    assert_eq!(has_dom0_modules(&without.tree()), Ok(false));
    let untyped = board(&|w| {
        node(w, "module@0", &|w| w.property_string("compatible", "multiboot,module").unwrap());
    });
    assert_eq!(has_dom0_modules(&untyped.tree()), Ok(true));
}

#[test]
fn a_tree_without_domains_gives_none() {
    assert_eq!(reasons(&board(&|_| {})), []);
}

#[test]
fn each_omission_is_refused_by_its_name_and_the_next_domain_goes_on() {
    assert_eq!(outcome(&|w| domain(w, "d", &|_| {})), None);
    let no_memory = |w: &mut FdtWriter| w.property_u32("cpus", 1).unwrap();
    assert_eq!(outcome(&|w| bare_domain(w, "d", &no_memory)), Some(Refusal::MemoryMissing));
    let sized = |memory: u64, cpus: u32| {
        outcome(&|w| {
            bare_domain(w, "d", &|w| {
                w.property_u64("memory", memory).unwrap();
                w.property_u32("cpus", cpus).unwrap();
            });
        })
    };
    assert_eq!(sized(0, 1), Some(Refusal::MemoryIsZero));
    assert_eq!(sized(u64::MAX, 1), Some(Refusal::MemoryTooLarge));
    let most = |kib| outcome(&|w| domain(w, "domU1", &|w| w.property_u64("pavo,max-memory", kib).unwrap()));
    assert_eq!(
        (most(u64::MAX), most(0)),
        (Some(Refusal::MaxMemoryOutOfRange), Some(Refusal::MaxMemoryOutOfRange))
    );
    assert_eq!(most(1 << 20), None);
    assert_eq!(sized(1024, 0), Some(Refusal::CpusIsZero));
    assert_eq!(sized(1024, 9), Some(Refusal::TooManyVcpus));
    assert_eq!(sized(1024, 8), Some(Refusal::KernelMissing));
    // Four bytes are no `memory` property, to Xen neither.
    let short = |w: &mut FdtWriter| {
        w.property_u32("memory", 1024).unwrap();
        w.property_u32("cpus", 1).unwrap();
    };
    assert_eq!(outcome(&|w| bare_domain(w, "d", &short)), Some(Refusal::MemoryMissing));
    let paging = |w: &mut FdtWriter| w.property_string("pavo,paging", "shadow").unwrap();
    assert_eq!(outcome(&|w| domain(w, "d", &paging)), Some(Refusal::UnknownPaging));
    let frames = |w: &mut FdtWriter| w.property_u32("max_maptrack_frames", 1 << 31).unwrap();
    assert_eq!(outcome(&|w| domain(w, "d", &frames)), Some(Refusal::FrameCountTooLarge));
    let ports = |w: &mut FdtWriter| w.property_u32("pavo,max-ports", 1).unwrap();
    assert_eq!(outcome(&|w| domain(w, "d", &ports)), Some(Refusal::PortsOutOfRange));
    let ramdisk = |w: &mut FdtWriter| module(w, "multiboot,ramdisk", 0x4a00_0000, 0, &|_| {});
    assert_eq!(outcome(&|w| domain(w, "d", &ramdisk)), Some(Refusal::ModuleMalformed));
}

#[test]
fn a_channel_must_have_two_ends_that_name_each_other() {
    let with = |fill: Fill<'_>| outcome(&|w| domain(w, "d", fill));
    assert_eq!(with(&|w| channel(w, 5, 0x10, 0x11)), Some(Refusal::ChannelPeerMissing));
    assert_eq!(with(&|w| channel(w, 5, 0x10, 0x10)), Some(Refusal::ChannelNotMutual));
    assert_eq!(with(&|w| channel(w, 0, 0x10, 0x11)), Some(Refusal::ChannelPortOutOfRange));
    assert_eq!(with(&|w| channel(w, 1024, 0x10, 0x11)), Some(Refusal::ChannelPortOutOfRange));
    let malformed = |w: &mut FdtWriter| {
        node(w, "ec", &|w| {
            w.property_string("compatible", "xen,evtchn-v1").unwrap();
            w.property_u32("xen,evtchn", 5).unwrap();
        });
    };
    assert_eq!(with(&malformed), Some(Refusal::ChannelMalformed));
    // Two ends in one domain are a channel, with two ports; with one port they are not.
    let inside = |first, second| {
        with(&|w| {
            channel(w, first, 0x10, 0x11);
            channel(w, second, 0x11, 0x10);
        })
    };
    assert_eq!(inside(5, 6), None);
    assert_eq!(inside(5, 5), Some(Refusal::ChannelPortTwice));
    let not_back = |w: &mut FdtWriter| {
        channel(w, 5, 0x10, 0x11);
        channel(w, 6, 0x11, 0x12);
    };
    assert_eq!(with(&not_back), Some(Refusal::ChannelNotMutual));
}

#[test]
fn more_channels_than_fit_are_refused() {
    let pairs = |count: u32| {
        outcome(&|w| {
            domain(w, "d", &|w| {
                for pair in 0..count {
                    channel(w, 1 + 2 * pair, 0x100 + 2 * pair, 0x101 + 2 * pair);
                    channel(w, 2 + 2 * pair, 0x101 + 2 * pair, 0x100 + 2 * pair);
                }
            });
        })
    };
    assert_eq!(pairs(4), None);
    assert_eq!(pairs(5), Some(Refusal::TooManyChannels));
}

#[test]
fn what_is_told_of_xen_follows_its_rules() {
    let told = |fill: Fill<'_>| {
        let blob = board(&|w| domain(w, "d", fill));
        let tree = blob.tree();
        Domains::new(&tree).unwrap().next().unwrap().unwrap().enhanced
    };
    assert_eq!(told(&|w| w.property_null("xen,enhanced").unwrap()), Enhanced::Full);
    assert_eq!(told(&|w| w.property_string("xen,enhanced", "enabled").unwrap()), Enhanced::Full);
    assert_eq!(told(&|w| w.property_string("xen,enhanced", "no-xenstore").unwrap()), Enhanced::NoXenstore);
    assert_eq!(told(&|w| w.property_string("xen,enhanced", "disabled").unwrap()), Enhanced::None);
    assert_eq!(told(&|_| {}), Enhanced::None);
}

#[test]
fn refused_domains_keep_their_ids() {
    let blob = board(&|w| {
        domain(w, "a", &|_| {});
        bare_domain(w, "b", &|_| {});
        domain(w, "c", &|_| {});
    });
    assert_eq!(reasons(&blob), [Ok(1), Err((Some(2), Refusal::MemoryMissing)), Ok(3)]);
}

#[test]
fn hundreds_of_domains_are_listed() {
    let blob = board(&|w| (0..300).for_each(|n| domain(w, &format!("d{n}"), &|_| {})));
    let ids: std::vec::Vec<_> = reasons(&blob).into_iter().map(Result::unwrap).collect();
    assert_eq!(ids, (1..=300).collect::<std::vec::Vec<u16>>());
}

#[test]
fn modules_inherit_cell_counts_as_in_xen() {
    let blob = board(&|w| {
        node(w, "d", &|w| {
            w.property_string("compatible", "xen,domain").unwrap();
            w.property_u64("memory", 1024).unwrap();
            w.property_u32("cpus", 1).unwrap();
            node(w, "kernel", &|w| {
                w.property_string("compatible", "multiboot,kernel").unwrap();
                // The board's root has two cells each.
                w.property_array_u64("reg", &[0x1_4000_0000, 0x1000]).unwrap();
            });
        });
    });
    let tree = blob.tree();
    let kernel = Domains::new(&tree).unwrap().next().unwrap().unwrap().kernel;
    assert_eq!(Some(kernel), PhysRange::new(0x1_4000_0000, 0x1000));
}
