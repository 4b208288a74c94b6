//! The machine's console: whole texts, one CPU at a time.
use platform::uart::Console;
use spin::mutex::TicketMutex;

/// Rank 60: the last lock, nothing is taken under it.
static CONSOLE: TicketMutex<Option<Console>> = TicketMutex::new(None);

/// Uses this UART from now on.
pub fn init(console: Console) {
    *CONSOLE.lock() = Some(console);
}

/// Writes a text; newlines become CR LF.
pub fn write(text: &[u8]) {
    let mut guard = CONSOLE.lock();
    if let Some(console) = guard.as_mut() {
        put(console, text);
    }
}

/// Writes even if the lock is held by a CPU that will never give it back: for dying only.
pub fn write_anyway(text: &[u8]) {
    for _ in 0..1_000_000_u32 {
        if let Some(mut guard) = CONSOLE.try_lock() {
            if let Some(console) = guard.as_mut() {
                put(console, text);
            }
            return;
        }
    }
}

/// Waits, for a bounded time, until everything has left.
pub fn drain() {
    if let Some(guard) = CONSOLE.try_lock()
        && let Some(console) = guard.as_ref()
    {
        // Some FIFO's worth at 9600 baud, by the time that register reads take.
        let _ = (0..1_000_000_u32).any(|_| console.is_idle());
    }
}

fn put(console: &mut Console, text: &[u8]) {
    for byte in text {
        if *byte == b'\n' {
            console.put(b'\r');
        }
        console.put(*byte);
    }
}
