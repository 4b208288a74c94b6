//! `console_io`: what a guest may write to the console, and how much.
use hypervisor::console::{self, BURST, LINE_LENGTH};
use hypervisor::fake::COUNTER_FREQUENCY;
use hypervisor::hypercall::Outcome;
use pavo_tests::{ARG, Guest, NOWHERE, guest, number, two};

use super::{E2BIG, EFAULT, ENOSYS};

#[test]
fn a_guest_writes_lines_under_its_name() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let say = |guest: Guest<'_>, text: &[u8]| {
        guest.write(ARG, text);
        assert_eq!(guest.call(number::CONSOLE_IO, [0, text.len() as u64, ARG, 0, 0]), 0);
        world.machine.hw.take_console()
    };
    assert_eq!(say(one, b"hello\n"), b"(d1) hello\n");
    assert_eq!(say(one, b"half a "), b"");
    assert_eq!(say(two, b"other\n"), b"(d2) other\n");
    assert_eq!(say(one, b"line\nnext\n\n"), b"(d1) half a line\n(d1) next\n(d1) \n");
    assert_eq!(say(one, b"\x1b[31m\tr\xC3\xA9d\x07\r\x7f\n"), "(d1) [31m\tr\u{e9}d\n".as_bytes());
    let long = [b'x'; 300];
    let out = say(one, &long);
    assert_eq!(out.len(), LINE_LENGTH + 6, "what is full goes out");
    assert_eq!(say(one, b"\n").len(), 300 - LINE_LENGTH + 6);
}

#[test]
fn no_terminal_is_told_to_go_where_others_lines_are() {
    let world = two();
    let one = guest(&world, 1);
    // CSI in UTF-8 and alone, longer forms of it, and what breaks or orders lines: up a line, "erase", and another's name.
    for sequence in ["\u{9B}", "\u{85}", "\u{2028}", "\u{202E}", "\u{2066}"]
        .map(str::as_bytes)
        .into_iter()
        .chain([b"\x9B".as_slice(), b"\xE0\x82\x9B", b"\xC2\xC2\x9B", b"\x1B\x9B"])
    {
        // At the start of a line, in it, and where it is full; each byte by a call of its own.
        for before in [0, 7, LINE_LENGTH - 2, LINE_LENGTH - 1, LINE_LENGTH, LINE_LENGTH + 1] {
            for part in
                [vec![b'y'; before], sequence.to_vec(), b"1A(d2) \xC3\xA9\n".to_vec()].concat().chunks(1)
            {
                one.write(ARG, part);
                one.call(number::CONSOLE_IO, [0, 1, ARG, 0, 0]);
            }
            let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
            let lines: Vec<_> = out.lines().collect();
            assert!(lines.iter().all(|line| line.starts_with("(d1) ")), "{sequence:x?} {lines:?}");
            let said: String = lines.iter().filter_map(|line| line.strip_prefix("(d1) ")).collect();
            assert_eq!(said, "y".repeat(before) + "1A(d2) \u{e9}", "{sequence:x?}");
        }
    }
}

#[test]
fn a_character_is_not_torn_by_the_end_of_a_line_or_of_a_life() {
    let world = two();
    let one = guest(&world, 1);
    for before in LINE_LENGTH - 3..LINE_LENGTH {
        let text = "x".repeat(before) + "\u{20AC}\n";
        one.write(ARG, text.as_bytes());
        assert_eq!(one.call(number::CONSOLE_IO, [0, text.len() as u64, ARG, 0, 0]), 0);
        let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
        assert_eq!(out.lines().count(), if before == LINE_LENGTH - 3 { 1 } else { 2 });
        assert_eq!(out.replace("(d1) ", "").replace('\n', ""), text.trim_end());
    }
    // What has begun, a character or a line that is over the rate, is not gone on with by the next life.
    one.write(ARG, b"end\xE2\x82");
    assert_eq!(one.call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]), 0);
    console::flush(&world.machine.hw, world.domain(1));
    assert_eq!(world.machine.hw.take_console(), b"(d1) end\n");
    one.write(ARG, b"\xACnew\n");
    assert_eq!(one.call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]), 0);
    assert_eq!(world.machine.hw.take_console(), b"(d1) new\n");
    let more = [b'x'; 2048];
    one.write(ARG, &more);
    for _ in 0..=BURST / 2048 {
        assert_eq!(one.call(number::CONSOLE_IO, [0, 2048, ARG, 0, 0]), 0);
    }
    world.machine.hw.take_console();
    console::flush(&world.machine.hw, world.domain(1));
    world.machine.hw.take_console();
    world.machine.hw.advance(COUNTER_FREQUENCY);
    one.write(ARG, b"hello\n");
    assert_eq!(one.call(number::CONSOLE_IO, [0, 6, ARG, 0, 0]), 0);
    assert_eq!(world.machine.hw.take_console(), b"(d1) hello\n");
}

#[test]
fn the_mark_of_the_log_cannot_be_written() {
    let world = two();
    let one = guest(&world, 1);
    let mut texts = vec![b"\xC2\xA7x\n".to_vec(), b"\xC2\xC2\xA7\xA7\n".to_vec(), b"\xC2\x01\xA7\n".to_vec()];
    // Across a full line, and across two calls.
    for at in LINE_LENGTH - 3..LINE_LENGTH + 3 {
        texts.push([vec![b'y'; at], b"\xC2\xA7\n".to_vec()].concat());
    }
    for text in texts {
        let (head, tail) = text.split_at(text.len() - 2);
        for part in [head, tail] {
            one.write(ARG, part);
            one.call(number::CONSOLE_IO, [0, part.len() as u64, ARG, 0, 0]);
        }
        let out = world.machine.hw.take_console();
        assert!(!out.windows(2).any(|pair| pair == [0xC2, 0xA7]), "{out:x?}");
    }
}

#[test]
fn a_flood_is_cut_and_counted() {
    let world = two();
    let one = guest(&world, 1);
    one.write(ARG, &[b'z'; 4000]);
    let mut said = 0;
    while said < 2 * BURST {
        assert_eq!(one.call(number::CONSOLE_IO, [0, 4000, ARG, 0, 0]), 0);
        said += 4000;
    }
    let out = world.machine.hw.take_console();
    assert!(u64::try_from(out.len()).unwrap() < BURST + BURST / 16);
    world.machine.hw.advance(COUNTER_FREQUENCY);
    one.write(ARG, b"\n\n");
    one.call(number::CONSOLE_IO, [0, 2, ARG, 0, 0]);
    let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
    assert!(out.starts_with("(d1) [") && out.contains("bytes dropped]\n(d1) "), "{out}");
    guest(&world, 2).write(ARG, b"fine\n");
    guest(&world, 2).call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]);
    assert_eq!(world.machine.hw.take_console(), b"(d2) fine\n", "others are not cut");
}

#[test]
fn of_a_flood_every_line_comes_whole_or_is_counted_whole() {
    // Neither divides what is copied or admitted at once.
    for length in [2, 37, 100, LINE_LENGTH] {
        let world = two();
        let one = guest(&world, 1);
        let line = [vec![b'z'; length - 1], vec![b'\n']].concat();
        let (mut said, mut out) = (0, Vec::new());
        one.write(ARG, &line.repeat(20));
        while said < BURST + BURST / 4 {
            one.call(number::CONSOLE_IO, [0, 20 * length as u64, ARG, 0, 0]);
            said += 20 * length as u64;
            // Little by little there is room for a part of a line.
            world.machine.hw.advance(COUNTER_FREQUENCY / 100_000);
            out.extend(world.machine.hw.take_console());
        }
        world.machine.hw.advance(COUNTER_FREQUENCY);
        one.write(ARG, b"\nend\n");
        one.call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]);
        out.extend(world.machine.hw.take_console());
        let out = String::from_utf8(out).unwrap();
        let whole = format!("(d1) {}", "z".repeat(length - 1));
        let (mut came, mut dropped) = (0, 0);
        for line in out.lines() {
            let note = line.strip_prefix("(d1) [").and_then(|rest| rest.strip_suffix(" bytes dropped]"));
            match note {
                Some(bytes) => dropped += bytes.parse::<u64>().unwrap(),
                None if line == whole => came += 1,
                None => assert!(["(d1) ", "(d1) end"].contains(&line), "{line}"),
            }
        }
        assert!(dropped != 0 && came != 0);
        // The newline before `end` is of a line of its own, or ends what was dropped.
        let rest = (came * length as u64 + dropped).wrapping_sub(said);
        assert!(rest <= 1, "{length}: {came} lines came, {dropped} bytes were dropped, {said} said");
    }
}

#[test]
fn what_the_console_has_no_room_for_is_written_again_and_nothing_is_lost() {
    let world = two();
    let one = guest(&world, 1);
    world.machine.hw.limit_console(150);
    let lines =
        |name: &str| (0..200).fold(String::new(), |text, number| text + &format!("{name}line {number}\n"));
    let text = lines("");
    let mut args = [0, text.len() as u64, ARG, 0, 0];
    one.write(ARG, text.as_bytes());
    let mut shown = Vec::new();
    for _ in 0..text.len() {
        let outcome = one.once(number::CONSOLE_IO, args);
        shown.extend(world.machine.hw.take_console());
        match outcome {
            Outcome::Done(result) => {
                assert_eq!(result, 0);
                break;
            }
            Outcome::Restart(rest) => args = rest,
        }
    }
    assert_eq!(String::from_utf8(shown).unwrap(), lines("(d1) "));
}

#[test]
fn a_console_that_never_has_room_costs_a_line_seconds_and_the_line_is_counted() {
    let world = two();
    let one = guest(&world, 1);
    world.machine.hw.limit_console(0);
    one.write(ARG, b"lost\nsaid\n");
    let lost = [0, 5, ARG, 0, 0];
    let rest = [0, 1, ARG + 4, 0, 0];
    assert_eq!(one.once(number::CONSOLE_IO, lost), Outcome::Restart(rest));
    for _ in 0..3 {
        assert_eq!(one.once(number::CONSOLE_IO, rest), Outcome::Restart(rest));
        world.machine.hw.advance(COUNTER_FREQUENCY / 4);
    }
    world.machine.hw.advance(2 * COUNTER_FREQUENCY);
    assert_eq!(one.once(number::CONSOLE_IO, rest), Outcome::Done(0));
    world.machine.hw.limit_console(1000);
    assert_eq!(one.call(number::CONSOLE_IO, [0, 5, ARG + 5, 0, 0]), 0);
    let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
    assert_eq!(out, "(d1) [5 bytes dropped]\n(d1) said\n");
}

#[test]
fn there_is_nothing_to_read_at_the_console() {
    let world = two();
    let one = guest(&world, 1);
    for (count, result) in
        [(0, 0), (10, 0), ((1 << 31) - 1, 0), (1 << 31, E2BIG), ((1 << 32) - 1, E2BIG), (1 << 32, 0)]
    {
        assert_eq!(one.call(number::CONSOLE_IO, [1, count, NOWHERE, 0, 0]), result, "{count}");
    }
    assert_eq!(one.call(number::CONSOLE_IO, [2, 10, ARG, 0, 0]), ENOSYS);
    assert_eq!(one.call(number::CONSOLE_IO, [0, 1, NOWHERE, 0, 0]), EFAULT);
    assert_eq!(one.call(number::CONSOLE_IO, [0, 0, NOWHERE, 0, 0]), 0);
    assert_eq!(one.call(number::CONSOLE_IO, [0, u64::from(u32::MAX), u64::MAX, 0, 0]), EFAULT);
}
