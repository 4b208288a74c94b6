//! Devices that are no bus masters: they can be given to a guest where nothing checks what devices write.

/// What the device tree calls them: UARTs, clocks and pins.
pub const WITHOUT_DMA: [&str; 8] = [
    "arm,pl011",
    "arm,pl031",
    "arm,pl061",
    "brcm,bcm2835-aux-uart",
    "brcm,bcm2711-gpio",
    "brcm,bcm2835-gpio",
    "brcm,bcm2835-i2c",
    "brcm,bcm2835-rng",
];
