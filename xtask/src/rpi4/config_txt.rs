//! `config.txt`: written with a reason for every line, and read as the firmware reads it, as far as we use it.

use crate::failure::{Failure, Outcome};

/// What the firmware is told, each line with its reason. `stub` is a file in the place of the firmware's own stub.
pub(crate) fn write(guests: u64, stub: Option<&str>) -> String {
    let stub = stub.map(|file| {
        (
            "What runs at EL3, in the place of the firmware's own stub: TF-A knows PSCI, and closes Spectre variant 2.",
            format!("armstub={file}"),
        )
    });
    let lines = [
        (
            "AArch64: the firmware's stub enters the image at EL2, which a 32-bit start could not give.",
            "arm_64bit=1".into(),
        ),
        (
            "The hypervisor. It runs wherever it is loaded; the firmware takes 0x200000.",
            "kernel=kernel8.img".into(),
        ),
        (
            "Interrupts come through the GIC-400, whose virtual interface guests need, not the old controller.",
            "enable_gic=1".into(),
        ),
        (
            "Pins 14 and 15 are the mini-UART at 115200 baud, and the core clock that its rate hangs on stays still.",
            "enable_uart=1".into(),
        ),
        (
            "Kernels and RAM disks of all guests in one file, at the address that the overlay gives for each.",
            format!("initramfs guests.bin {guests:#x}"),
        ),
        (
            "The guests: overlays/pavo.dtbo adds them under /chosen of the board's own device tree.",
            "dtoverlay=pavo".into(),
        ),
    ];
    let mut text = String::from(
        "# Pavo on a Raspberry Pi 4. Written by `cargo xtask image`; options: raspberrypi.com, \"config.txt\".\n",
    );
    for (why, line) in lines.into_iter().chain(stub) {
        text.extend(["\n# ", why, "\n", &line, "\n"]);
    }
    text
}

/// What a `config.txt` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// The image.
    pub(crate) kernel: String,
    /// A file for memory, and where.
    pub(crate) initramfs: Option<(String, u64)>,
    /// A file in the place of the firmware's stub.
    pub(crate) stub: Option<String>,
    /// Overlays, in order.
    pub(crate) overlays: Vec<String>,
}

/// Reads a `config.txt`.
pub(crate) fn read(text: &str) -> Outcome<Config> {
    let mut config = Config { kernel: "kernel8.img".into(), ..Config::default() };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let bad = || {
            Failure::failed(format!(
                "config.txt: \"{line}\" is nothing that this emulation of the firmware knows"
            ))
        };
        if let Some(rest) = line.strip_prefix("initramfs ") {
            let (file, address) = rest.trim().split_once(' ').ok_or_else(bad)?;
            let address =
                address.trim().strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
            config.initramfs = Some((file.into(), address.ok_or_else(bad)?));
            continue;
        }
        match line.split_once('=').ok_or_else(bad)? {
            ("kernel", file) => config.kernel = file.into(),
            ("armstub", file) => config.stub = Some(file.into()),
            ("dtoverlay", name) => config.overlays.push(name.into()),
            ("arm_64bit" | "enable_gic" | "enable_uart", "1") => {}
            _ => return Err(bad()),
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_every_line_has_its_reason() {
        for stub in [None, Some("bl31.bin")] {
            let text = write(0x1000_0000, stub);
            let config = read(&text).unwrap();
            let expected = Config {
                kernel: "kernel8.img".into(),
                initramfs: Some(("guests.bin".into(), 0x1000_0000)),
                stub: stub.map(str::to_owned),
                overlays: vec!["pavo".into()],
            };
            assert_eq!(config, expected);
            let mut reason = false;
            for line in text.lines() {
                assert!(line.is_empty() || line.starts_with('#') || reason, "{line}");
                reason = line.starts_with('#');
            }
        }
    }

    #[test]
    fn an_option_that_the_emulation_lacks_is_refused() {
        assert!(read("hdmi_mode=4\n").is_err());
    }
}
