//! The device tree that the hypervisor reads: QEMU's own, with a `xen,domain` node under `/chosen` for each domain.
//!
//! Source: Xen `docs/misc/arm/device-tree/booting.txt`, sections "Creating Multiple Domains directly from Xen" and
//! "Static Event Channel". Properties of our own start with `pavo,`.

use crate::fdt::Node;
use crate::machine::Placed;
use crate::system::{Domain, Paging, System};

/// The first free grant reference: Xen reserves eight.
const FIRST_REFERENCE: u32 = 8;

/// Where a domain's modules are.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    pub(crate) kernel: Option<Placed>,
    pub(crate) ramdisk: Option<Placed>,
    pub(crate) device_tree: Option<Placed>,
}

/// One end of a static event channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// The other domain, as an index into the file.
    peer: usize,
    /// The local port.
    port: u32,
    /// The node of this end.
    phandle: u32,
    /// The node of the other end.
    peer_phandle: u32,
}

/// Adds the domains to a tree.
pub(crate) fn add_domains(tree: &mut Node, system: &System, modules: &[Modules]) {
    let ends = connect(system, tree.largest_phandle());
    let ids = system.ids();
    let chosen = tree.child("chosen");
    if system.machine.dom0_module {
        chosen.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]);
        if let Some(place) = modules.first().and_then(|modules| modules.kernel.as_ref()) {
            chosen.children.push(module(place, "multiboot,kernel"));
        }
    }
    for (index, domain) in system.domains.iter().enumerate() {
        let ends = ends.get(index).map_or(&[][..], |ends| ends);
        chosen.children.push(domain_node(index, domain, modules.get(index), ends, &ids));
    }
}

/// Gives every end of every channel its port and node. Ports count from 1 in each domain, in file order.
fn connect(system: &System, largest_phandle: u32) -> Vec<Vec<End>> {
    let mut ends: Vec<Vec<End>> = vec![Vec::new(); system.domains.len()];
    let mut phandle = largest_phandle;
    for (index, domain) in system.domains.iter().enumerate() {
        for peer in &domain.channels {
            let (here, there) = (phandle + 1, phandle + 2);
            phandle = there;
            for (from, to, phandle, peer_phandle) in
                [(index, *peer, here, there), (*peer, index, there, here)]
            {
                let port = u32::try_from(ends[from].len()).unwrap_or(u32::MAX).saturating_add(1);
                ends[from].push(End { peer: to, port, phandle, peer_phandle });
            }
        }
    }
    ends
}

fn domain_node(index: usize, domain: &Domain, modules: Option<&Modules>, ends: &[End], ids: &[u32]) -> Node {
    let mut node = Node::new(format!("domU{}", index + 1));
    node.set_strings("compatible", &["xen,domain"]);
    node.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]);
    node.set_u64s("memory", &[domain.memory >> 10]).set_cells("cpus", &[domain.vcpus]);
    if domain.max_memory != domain.memory {
        node.set_u64s("pavo,max-memory", &[domain.max_memory >> 10]);
    }
    if let Some(frames) = domain.maptrack_frames {
        node.set_cells("max_maptrack_frames", &[frames]);
    }
    node.set_strings("xen,enhanced", &["no-xenstore"]);
    node.set_strings("pavo,name", &[&domain.name]);
    if domain.vuart {
        node.set("vpl011", []);
    }
    if domain.pv_console {
        node.set("pavo,console", []);
    }
    node.set_strings("pavo,on-reboot", &[&domain.on_reboot])
        .set_strings("pavo,on-crash", &[&domain.on_crash]);
    node.set_cells("pavo,max-restarts", &[domain.max_restarts]);
    if domain.privileged {
        node.set("pavo,privileged", []);
    }
    if domain.isolated {
        node.set("pavo,isolated", []);
    }
    let scheduling = &domain.scheduling;
    let (cpus, scheduler) = scheduling.pool.unzip();
    for (name, value) in [
        ("pavo,weight", scheduling.weight),
        ("pavo,cap", scheduling.cap),
        ("pavo,affinity", scheduling.affinity),
        ("pavo,pool", cpus),
    ] {
        if let Some(value) = value {
            node.set_cells(name, &[value]);
        }
    }
    if let Some(scheduler) = scheduler {
        node.set_strings("pavo,scheduler", &[scheduler]);
    }
    match domain.paging {
        Paging::Nested => {}
        Paging::Pv => {
            node.set_strings("pavo,paging", &["pv"]);
        }
    }
    if let Some(place) = modules.and_then(|modules| modules.kernel.as_ref()) {
        let mut kernel = module(place, "multiboot,kernel");
        if let Some(line) = command_line(domain, ends, ids) {
            kernel.set_strings("bootargs", &[&line]);
        }
        node.children.push(kernel);
    }
    if let Some(place) = modules.and_then(|modules| modules.ramdisk.as_ref()) {
        node.children.push(module(place, "multiboot,ramdisk"));
    }
    if let Some(place) = modules.and_then(|modules| modules.device_tree.as_ref()) {
        node.children.push(module(place, "multiboot,device-tree"));
    }
    for end in ends {
        let mut channel = Node::new(format!("evtchn@{}", end.port));
        channel.set_strings("compatible", &["xen,evtchn-v1"]).set_cells("phandle", &[end.phandle]);
        channel.set_cells("xen,evtchn", &[end.port, end.peer_phandle]);
        node.children.push(channel);
    }
    node
}

fn module(place: &Placed, kind: &str) -> Node {
    let mut node = Node::new(format!("module@{:x}", place.address));
    node.set_strings("compatible", &[kind, "multiboot,module"]).set_u64s("reg", &[place.address, place.size]);
    node
}

/// The file's command line, with what two guests need to find each other.
fn command_line(domain: &Domain, ends: &[End], ids: &[u32]) -> Option<String> {
    let list = |numbers: Vec<u32>| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut words: Vec<String> = domain.cmdline.clone().into_iter().collect();
    if !ends.is_empty() {
        words.push(format!("peer={}", list(ends.iter().map(|end| ids[end.peer]).collect())));
        words.push(format!("port={}", list(ends.iter().map(|end| end.port).collect())));
        words.push(format!("ref={}", list(ends.iter().map(|end| FIRST_REFERENCE + end.port - 1).collect())));
    }
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::system::Checking;

    fn tree_of(text: &str) -> Node {
        let system = System::parse("s.toml", Path::new(""), text, Checking::Unchecked).unwrap();
        let modules: Vec<_> = (0..system.domains.len() as u64)
            .map(|index| Modules {
                kernel: Some(Placed { address: 0x5000_0000 + (index << 24), size: 9 }),
                ..Modules::default()
            })
            .collect();
        let mut tree = Node::new("");
        tree.child("intc").set_cells("phandle", &[0x8000]);
        add_domains(&mut tree, &system, &modules);
        tree
    }

    fn domain<'a>(tree: &'a mut Node, name: &str) -> &'a mut Node {
        tree.child("chosen").child(name)
    }

    const PAIR: &str = "[[domain]]\nname = \"a\"\nmemory = \"32M\"\ncmdline = \"x\"\nchannels = [\"b\"]\n\
                        [[domain]]\nname = \"b\"\npaging = \"pv\"\nvuart = true\n";

    #[test]
    fn a_domain_node_is_as_booting_txt_says() {
        let mut tree = tree_of(PAIR);
        let node = domain(&mut tree, "domU1");
        assert_eq!(node.get("compatible"), Some(&b"xen,domain\0"[..]));
        assert_eq!(node.get("memory"), Some(&32768u64.to_be_bytes()[..]));
        assert_eq!(node.get("cpus"), Some(&[0, 0, 0, 1][..]));
        assert_eq!(node.get("xen,enhanced"), Some(&b"no-xenstore\0"[..]));
        assert_eq!((node.get("vpl011"), node.get("pavo,paging")), (None, None));
        let kernel = node.child("module@50000000");
        assert_eq!(kernel.get("compatible"), Some(&b"multiboot,kernel\0multiboot,module\0"[..]));
        assert_eq!(kernel.get("reg"), Some(&[0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..]));
        let other = domain(&mut tree, "domU2");
        assert_eq!((other.get("vpl011"), other.get("pavo,paging")), (Some(&[][..]), Some(&b"pv\0"[..])));
    }

    #[test]
    fn channel_ends_name_each_other_and_both_guests_learn_their_ports() {
        let mut tree = tree_of(PAIR);
        let end = |tree: &mut Node, name: &str| {
            let node = domain(tree, name).child("evtchn@1").clone();
            (node.get("phandle").unwrap().to_vec(), node.get("xen,evtchn").unwrap().to_vec())
        };
        let (first, second) = (end(&mut tree, "domU1"), end(&mut tree, "domU2"));
        assert_eq!(first.1, [&[0, 0, 0, 1], &second.0[..]].concat());
        assert_eq!(second.1, [&[0, 0, 0, 1], &first.0[..]].concat());
        assert!(first.0 > 0x8000u32.to_be_bytes().to_vec() && first.0 != second.0);
        let line = |tree: &mut Node, name: &str, module: &str| {
            String::from_utf8(domain(tree, name).child(module).get("bootargs").unwrap().to_vec()).unwrap()
        };
        assert_eq!(line(&mut tree, "domU1", "module@50000000"), "x peer=2 port=1 ref=8\0");
        assert_eq!(line(&mut tree, "domU2", "module@51000000"), "peer=1 port=1 ref=8\0");
    }

    #[test]
    fn ports_count_in_file_order_in_each_domain() {
        let mut tree = tree_of(
            "[[domain]]\nname = \"a\"\nchannels = [\"b\", \"c\"]\n[[domain]]\nname = \"b\"\nchannels = [\"c\"]\n\
             [[domain]]\nname = \"c\"\n",
        );
        let line = domain(&mut tree, "domU3").child("module@52000000").get("bootargs").unwrap().to_vec();
        assert_eq!(line, b"peer=1,2 port=1,2 ref=8,9\0");
    }

    #[test]
    fn the_control_domain_is_0_and_does_not_count() {
        let mut tree = tree_of(
            "[[domain]]\nname = \"a\"\nchannels = [\"b\", \"c\"]\n[[domain]]\nname = \"b\"\nprivileged = true\n\
             [[domain]]\nname = \"c\"\n",
        );
        assert_eq!(domain(&mut tree, "domU2").get("pavo,privileged"), Some(&[][..]));
        assert_eq!(domain(&mut tree, "domU1").get("pavo,privileged"), None);
        let line = domain(&mut tree, "domU1").child("module@50000000").get("bootargs").unwrap().to_vec();
        assert_eq!(line, b"peer=0,2 port=1,2 ref=8,9\0");
    }

    #[test]
    fn a_dom0_module_lies_directly_under_chosen() {
        let mut tree = tree_of("[machine]\ndom0_module = true\n[[domain]]\nname = \"a\"\n");
        let module = tree.child("chosen").child("module@50000000");
        assert_eq!(module.get("compatible"), Some(&b"multiboot,kernel\0multiboot,module\0"[..]));
    }
}
