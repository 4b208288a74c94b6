use super::*;

fn read(text: &str) -> Outcome<System> {
    System::parse("s.toml", Path::new("/nowhere"), text, Checking::Unchecked)
}

fn refusal(text: &str) -> String {
    let failure = read(text).unwrap_err();
    assert_eq!(failure.status(), 2);
    failure.to_string()
}

#[test]
fn absent_keys_have_the_documented_defaults() {
    let system = read("[[domain]]\nname = \"a\"\nmemory = \"32M\"\n").unwrap();
    assert_eq!((system.machine.gic, system.machine.cpus, system.machine.memory), (3, 2, 1 << 30));
    let domain = &system.domains[0];
    assert_eq!((domain.vcpus, domain.paging, domain.vuart), (1, Paging::Nested, false));
}

#[test]
fn a_misspelt_key_names_file_place_and_nearest_key() {
    assert_eq!(
        refusal("[[domain]]\nname = \"a\"\nmemroy = \"32M\"\n"),
        "s.toml: domain[1].memroy: unknown key, did you mean \"memory\"?"
    );
    assert_eq!(
        refusal("[machine]\ngci = 2\n[[domain]]\nname = \"a\"\n"),
        "s.toml: machine.gci: unknown key, did you mean \"gic\"?"
    );
    assert_eq!(
        refusal("[machin]\n[[domain]]\nname = \"a\"\n"),
        "s.toml: machin: unknown key, did you mean \"machine\"?"
    );
}

#[test]
fn keys_of_later_features_are_refused_by_name() {
    assert_eq!(
        refusal("[[domain]]\nname = \"a\"\n[[domain]]\nname = \"b\"\njit = true\n"),
        "s.toml: domain[2].jit: is not supported yet"
    );
    assert_eq!(
        refusal("[machine]\nboard = \"rpi5\"\n[[domain]]\nname = \"a\"\n"),
        "s.toml: machine.board: expected \"virt\" or \"rpi4\", found \"rpi5\""
    );
}

#[test]
fn wrong_types_and_values_say_what_was_expected() {
    let with = |line: &str| refusal(&format!("[[domain]]\nname = \"a\"\n{line}\n"));
    assert_eq!(with("pool = \"p\""), "s.toml: domain[1].pool: no [[pool]] is named \"p\"");
    assert_eq!(with("affinity = [8]"), "s.toml: domain[1].affinity: expected a list of CPUs, each below 8");
    assert_eq!(
        with("[[pool]]\nname = \"p\"\ncpus = [1]\n[[pool]]\nname = \"q\"\ncpus = [1]"),
        "s.toml: pool[2].cpus: another pool has one of them"
    );
    assert_eq!(with("memory = 32"), "s.toml: domain[1].memory: expected a string, found a number");
    assert!(with("memory = \"32X\"").ends_with("such as \"32M\", found \"32X\""));
    assert_eq!(with("vuart = 1"), "s.toml: domain[1].vuart: expected true or false, found a number");
    assert!(with("vcpus = -1").contains("found -1"));
    assert!(with("paging = \"shadow\"").contains("expected \"pv\" or \"nested\", found \"shadow\""));
    let kernel = |name: &str| with(&format!("kernel = \"{name}\""));
    let place = "s.toml: domain[1].kernel: /nowhere";
    assert_eq!(
        kernel("Image"),
        format!("{place}/Image does not exist; a guest of this workspace is \"guest:NAME\"")
    );
    assert_eq!(kernel("hello"), format!("{place}/hello does not exist, did you mean \"guest:hello\"?"));
    assert!(with("ramdisk = \"r\"").ends_with("domain[1].ramdisk: /nowhere/r does not exist"));
}

#[test]
fn syntax_errors_are_one_line_with_a_line_number() {
    let text = refusal("[machine]\ncpus = = 2\n");
    assert!(text.starts_with("s.toml:2: "), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn names_are_unique_and_printable() {
    let twice = "[[domain]]\nname = \"a\"\n[[domain]]\nname = \"a\"\n";
    assert_eq!(refusal(twice), "s.toml: domain[2].name: \"a\" is the name of another domain already");
    assert!(refusal("[[domain]]\nname = \"a b\"\n").contains("domain[1].name"));
    assert!(refusal("[machine]\n").starts_with("s.toml: domain: missing"));
}

#[test]
fn channels_name_other_domains_once() {
    let pair = |a: &str, b: &str| {
        format!("[[domain]]\nname = \"a\"\nchannels = {a}\n[[domain]]\nname = \"b\"\nchannels = {b}\n")
    };
    assert_eq!(read(&pair("[\"b\"]", "[]")).unwrap().domains[0].channels, [1]);
    assert_eq!(refusal(&pair("[\"c\"]", "[]")), "s.toml: domain[1].channels: no domain is named \"c\"");
    assert!(refusal(&pair("[\"a\"]", "[]")).ends_with("a channel leads to another domain"));
    assert!(refusal(&pair("[\"b\"]", "[\"a\"]")).contains("domain[2].channels"));
}

#[test]
fn a_full_check_wants_kernel_and_memory() {
    let full = |text: &str| {
        System::parse("s.toml", Path::new("/nowhere"), text, Checking::Full).unwrap_err().to_string()
    };
    assert_eq!(
        full("[[domain]]\nname = \"a\"\nmemory = \"1M\"\n"),
        "s.toml: domain[1].kernel: missing: write for example kernel = \"guest:hello\""
    );
}

#[test]
fn what_is_missing_is_told_with_an_example() {
    let example =
        |text: &str| refusal(text).split_once(": missing: write for example ").unwrap().1.to_owned();
    assert_eq!(example("[[domain]]\nmemory = \"1M\"\n"), "name = \"ping\"");
    assert_eq!(example("[[pool]]\ncpus = [1]\n[[domain]]\nname = \"a\"\n"), "name = \"own\"");
    assert_eq!(example("[[pool]]\nname = \"p\"\n[[domain]]\nname = \"a\"\n"), "cpus = [1]");
}

#[test]
fn the_raspberry_pi_has_what_it_has_whatever_a_file_wants_of_virt() {
    let virt = "[machine]\ngic = 3\ncpu = \"max\"\ncpus = 8\nmemory = \"8G\"\n[[domain]]\nname = \"a\"\n";
    let system =
        System::parse_for("s.toml", Path::new("/nowhere"), virt, Checking::Unchecked, Some(Board::Rpi4));
    let machine = system.unwrap().machine;
    assert_eq!((machine.board, machine.gic, machine.cpus, machine.memory), (Board::Rpi4, 2, 4, 2 << 30));
    machine.check().unwrap();
    let asked = Machine { gic: 3, ..machine.clone() };
    assert_eq!(asked.check(), Err(("gic", "a Raspberry Pi 4 has a GICv2: leave it out".into())));
}

#[test]
fn a_file_for_the_raspberry_pi_says_nothing_else_than_the_board_is() {
    let with = |line: &str| format!("[machine]\nboard = \"rpi4\"\n{line}\n[[domain]]\nname = \"a\"\n");
    for (line, wrong) in [
        ("gic = 3", "gic: a Raspberry Pi 4 has a GICv2"),
        ("cpu = \"max\"", "cpu: a Raspberry Pi 4 has Cortex-A72 cores"),
        ("cpus = 5", "cpus: a Raspberry Pi 4 has 4 CPUs"),
        ("memory = \"4G\"", "memory: a Raspberry Pi 4 has 2 GiB under QEMU"),
        ("terrain = \"pieces\"", "terrain: a Raspberry Pi 4 has the RAM that it has"),
    ] {
        assert_eq!(refusal(&with(line)), format!("s.toml: machine.{wrong}: leave it out"));
    }
    let same = "gic = 2\ncpu = \"cortex-a72\"\ncpus = 4\nmemory = \"2G\"\nconsole = \"serial0:115200n8\"";
    assert_eq!(read(&with(same)).unwrap().machine.console.as_deref(), Some("serial0:115200n8"));
}

#[test]
fn a_console_is_chosen_where_there_are_two() {
    let text = "[machine]\nconsole = \"serial0\"\n[[domain]]\nname = \"a\"\n";
    assert_eq!(refusal(text), "s.toml: machine.console: QEMU's virt has one UART: leave it out");
    let file = |board| {
        System::parse_for("s.toml", Path::new("/nowhere"), text, Checking::Unchecked, Some(board)).unwrap()
    };
    assert_eq!(file(Board::Rpi4).machine.console.as_deref(), Some("serial0"));
}

#[test]
fn domains_have_cpus_that_the_machine_runs() {
    let check = |text: &str| read(text).unwrap().check_cpus().map_err(|failure| failure.to_string());
    let wrong = |text: &str| check(text).unwrap_err();
    let pool = |scheduler: &str, keys: &str| {
        format!(
            "[machine]\ncpus = 2\n[[pool]]\nname = \"p\"\ncpus = [1]\nscheduler = \"{scheduler}\"\n\
             [[domain]]\nname = \"a\"\npool = \"p\"\n{keys}\n"
        )
    };
    let affinity = "[[domain]]\nname = \"a\"\naffinity = [2, 7]\n";
    assert_eq!(wrong(affinity), "s.toml: domain[1].affinity: expected some of its pool's CPUs, CPUs 0, 1");
    assert!(check("[machine]\ncpus = 3\n[[domain]]\nname = \"a\"\naffinity = [2, 7]\n").is_ok());
    assert_eq!(
        wrong(&pool("fair", "affinity = [0]")),
        "s.toml: domain[1].affinity: expected some of its pool's CPUs, CPU 1"
    );
    assert!(check(&pool("fair", "vcpus = 2")).is_ok());
    assert_eq!(
        wrong(&pool("partition", "vcpus = 2")),
        "s.toml: domain[1].vcpus: a partition has a CPU for each vCPU: give the pool more"
    );
    assert_eq!(
        wrong(&pool("partition", "cap = 50")),
        "s.toml: domain[1].cap: a partition has its CPUs whole: leave it out"
    );
    assert_eq!(
        wrong(&pool("fair", "").replace("cpus = 2", "cpus = 1")),
        "s.toml: domain[1].pool: has CPU 1, and the machine runs CPU 0: raise machine.cpus"
    );
    let both = pool("fair", "[[domain]]\nname = \"b\"").replace("cpus = [1]", "cpus = [0, 1]");
    assert_eq!(
        wrong(&both),
        "s.toml: domain[2].pool: missing: all CPUs are in pools of other domains: name one"
    );
}

#[test]
fn there_is_no_more_of_anything_than_the_hypervisor_has_room_for() {
    let check = |text: &str| read(text).unwrap().check_counts().map_err(|failure| failure.to_string());
    let many = |domains: u32, vcpus: u32| {
        (0..domains)
            .map(|n| format!("[[domain]]\nname = \"a{n}\"\nvcpus = {vcpus}\n"))
            .collect::<Vec<_>>()
            .concat()
    };
    assert!(check(&many(64, 8)).is_ok() && check(&many(257, 1)).is_ok());
    assert_eq!(
        check(&many(65, 8)).unwrap_err(),
        "s.toml: domain: 520 vCPUs in all, and 512 are the most: give domains fewer"
    );
    assert_eq!(
        check(&many(258, 1)).unwrap_err(),
        "s.toml: domain: 258 of them, and 257 are the most: use fewer"
    );
    // A hub declares half of its channels, the others the rest.
    let star = |others: u32| {
        let all = (0..others / 2).map(|n| format!("\"a{n}\", ")).collect::<Vec<_>>().concat();
        let first = (0..others)
            .map(|n| {
                let with = if n < others / 2 { "" } else { "channels = [\"hub\"]\n" };
                format!("[[domain]]\nname = \"a{n}\"\n{with}")
            })
            .collect::<Vec<_>>()
            .concat();
        format!("{first}[[domain]]\nname = \"hub\"\nchannels = [{all}]\n")
    };
    assert!(check(&star(8)).is_ok());
    assert_eq!(
        check(&star(9)).unwrap_err(),
        "s.toml: domain[10].channels: 9 channels, both sides' counted, and 8 are the most: declare fewer"
    );
}
