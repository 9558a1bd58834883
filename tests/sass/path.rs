//! The accesses to global memory on the way through a kernel that its whole vectors take.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::code::{Function, Instruction};

/// An access to global memory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Access<'a> {
    /// `LDG`, or `LD` where the compiler does not know that the address is global.
    kind: &'a str,
    bits: u32,
}

impl Access<'_> {
    fn of<'a>(at: &Instruction<'a>) -> Option<Access<'a>> {
        let mut parts = at.name.split('.');
        let kind = parts.next().filter(|kind| ["LDG", "LD", "STG", "ST"].contains(kind))?;
        let bits = parts.find_map(|part| match part {
            "U8" | "S8" => Some(8),
            "U16" | "S16" => Some(16),
            "64" => Some(64),
            "128" => Some(128),
            _ => None,
        });
        Some(Access { kind, bits: bits.unwrap_or(32) })
    }

    fn is_load(self) -> bool {
        self.kind.starts_with("LD")
    }
}

/// What is worth counting on the way.
#[derive(Clone, Copy)]
struct Worth {
    /// Bits accessed by 64 or more at once. The branches for the ends of rows access single elements.
    wide: u32,
    narrow: Reverse<u32>,
}

/// The accesses of the way, in the order of the code, through an iteration of the loop that accesses the most by whole
/// vectors, else through the whole kernel. They are grouped: loads that are in flight together, stores, barriers.
/// `4 LDG.128 > 3 STG.128 + STG.64` are four loads, none of which is waited for before the last, then four stores;
/// `BAR` is a barrier, and `2 x (LDG.128 > STG.128)` comes twice in a row.
pub fn accesses(function: &Function) -> String {
    let loops = function.loops();
    let ways = loops.iter().map(|(first, body)| widest(function, *first, body));
    let whole = || widest(function, 0, &(0..function.code.len()).collect()).1;
    // Of two loops with the same accesses the inner one, which begins later.
    let best = ways.max_by_key(|(wide, _)| *wide).filter(|(wide, _)| *wide > 0);
    repeated(&groups(&best.map_or_else(whole, |(_, way)| way)))
}

/// All stores of a kernel, on all ways.
pub fn stores(function: &Function) -> String {
    let stores = function.code.iter().filter_map(Access::of).filter(|access| !access.is_load());
    text(&stores.collect::<Vec<_>>())
}

/// The bits of the way through a region that accesses the most by whole vectors, and, of several, the least else; and
/// its instructions. An inner loop is passed once.
fn widest<'a, 'f>(
    function: &'f Function<'a>,
    first: usize,
    region: &BTreeSet<usize>,
) -> (u32, Vec<&'f Instruction<'a>>) {
    let (back, order) = function.order();
    let mut best: Vec<Option<(Worth, Option<usize>)>> = (0..function.code.len()).map(|_| None).collect();
    for at in order.into_iter().filter(|at| region.contains(at)) {
        let next = function.after(at).into_iter().filter(|to| !back.contains(&(at, *to)));
        let next = next.filter_map(|to| Some((best[to]?.0, to)));
        let next = next.max_by_key(|(worth, to)| (worth.wide, worth.narrow, Reverse(*to)));
        let mut worth = next.map_or(Worth { wide: 0, narrow: Reverse(0) }, |(worth, _)| worth);
        match Access::of(&function.code[at]) {
            Some(access) if access.bits >= 64 => worth.wide += access.bits,
            Some(_) => worth.narrow.0 += 1,
            None => {}
        }
        best[at] = Some((worth, next.map(|(_, to)| to)));
    }
    let way = std::iter::successors(Some(first), |at| best[*at].and_then(|(_, next)| next));
    (best[first].map_or(0, |(worth, _)| worth.wide), way.map(|at| &function.code[at]).collect())
}

/// The groups of accesses on a way.
fn groups(way: &[&Instruction]) -> Vec<String> {
    let mut groups: Vec<Vec<Access>> = Vec::new();
    // Registers that loads in flight will write; None after one of them was waited for.
    let mut coming: Option<Vec<u32>> = None;
    for at in way {
        if registers(at.operands).any(|register| coming.as_ref().is_some_and(|coming| coming.contains(&register))) {
            coming = None;
        }
        if at.kind() == "BAR" {
            groups.push(vec![Access { kind: "BAR", bits: 0 }]);
            coming = None;
        }
        let Some(access) = Access::of(at) else { continue };
        let joins = groups.last().is_some_and(|group| {
            group[0].kind != "BAR" && group[0].is_load() == access.is_load() && (!access.is_load() || coming.is_some())
        });
        if joins {
            groups.last_mut().unwrap().push(access)
        } else {
            groups.push(vec![access])
        }
        if access.is_load() {
            let to =
                registers(at.operands).next().into_iter().flat_map(|first| first..first + access.bits.div_ceil(32));
            coming.get_or_insert_default().extend(to);
        }
    }
    groups.iter().map(|group| text(group)).collect()
}

/// `3 STG.128 + STG.64`
fn text(group: &[Access]) -> String {
    let mut kinds: Vec<Access> = Vec::new();
    group.iter().for_each(|access| {
        if !kinds.contains(access) {
            kinds.push(*access)
        }
    });
    kinds.sort_by_key(|access| (Reverse(access.bits), access.kind));
    let said = kinds.iter().map(|kind| match (kind.bits, group.iter().filter(|access| *access == kind).count()) {
        (0, _) => kind.kind.to_string(),
        (bits, 1) => format!("{}.{bits}", kind.kind),
        (bits, count) => format!("{count} {}.{bits}", kind.kind),
    });
    said.collect::<Vec<_>>().join(" + ")
}

/// The groups as one text, in which what comes several times in a row is written once.
fn repeated(mut groups: &[String]) -> String {
    let mut said = Vec::new();
    while !groups.is_empty() {
        let times = |length: usize| groups.chunks(length).take_while(|part| *part == &groups[..length]).count();
        let length = (1..=groups.len() / 2).find(|length| times(*length) > 1).unwrap_or(1);
        let (part, times) = (groups[..length].join(" > "), times(length));
        said.push(if times > 1 { format!("{times} x ({part})") } else { part });
        groups = &groups[length * times..];
    }
    said.join(" > ")
}

/// The numbers of the registers among operands: `R4, desc[UR4][R2.64+0x4]` names 4 and 2.
fn registers(operands: &str) -> impl Iterator<Item = u32> + '_ {
    let words = operands.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    words.flat_map(|word| {
        let (name, modifiers) = word.split_once('.').unwrap_or((word, ""));
        let register: Option<u32> = name.strip_prefix('R').and_then(|number| number.parse().ok());
        // `R2.64` is R2 and R3.
        let next = register.filter(|_| modifiers.split('.').any(|of| of == "64")).map(|register| register + 1);
        register.into_iter().chain(next)
    })
}

#[cfg(test)]
mod tests {
    use super::super::code::functions;
    use super::*;

    /// The accesses of a kernel with these lines.
    fn of(lines: &[&str]) -> String {
        let line = |line: &&str| if line.ends_with(':') { line.to_string() } else { format!("/*0000*/ {line} ;") };
        let sass = [".text.a:".to_string()].into_iter().chain(lines.iter().map(line)).collect::<Vec<_>>().join("\n");
        accesses(&functions(&sass)[0])
    }

    const LOAD: &str = "LDG.E.128 R4, desc[UR4][R2.64]";
    const NEXT: &str = "LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10]";
    const STORE: &str = "STG.E.128 desc[UR4][R2.64], R4";
    const USE: &str = "FADD R12, R5, R5";

    /// The branch for the end of a row is passed over, and so is what comes before the loop.
    #[test]
    fn the_way_of_whole_vectors_is_taken() {
        let tail = ["@P0 LDG.E.U16 R4, [R2.64]", "@P1 LDG.E.U16 R5, [R2.64+0x2]", "BRA `(.L_2)"];
        let before = ["LDG.E R9, [R2.64]", ".L_0:", "@!P0 BRA P1, `(.L_1)"];
        let after = [".L_1:", LOAD, ".L_2:", STORE, "@P0 BRA `(.L_0)", "EXIT"];
        assert_eq!(of(&[&before[..], &tail, &after].concat()), "LDG.128 > STG.128");
        // Without whole vectors the way with the fewest accesses is shown, of the whole kernel.
        assert_eq!(of(&[&before[..], &tail, &[".L_1:", ".L_2:", "@P0 BRA `(.L_0)", "EXIT"]].concat()), "LDG.32");
    }

    #[test]
    fn loads_are_together_until_one_is_waited_for() {
        assert_eq!(of(&[LOAD, NEXT, USE, STORE]), "2 LDG.128 > STG.128");
        assert_eq!(of(&[LOAD, USE, NEXT, STORE]), "2 x (LDG.128) > STG.128");
        assert_eq!(of(&[LOAD, "BAR.SYNC.DEFER_BLOCKING 0x0", NEXT, STORE]), "LDG.128 > BAR > LDG.128 > STG.128");
        assert_eq!(of(&[LOAD, STORE, NEXT, STORE]), "2 x (LDG.128 > STG.128)");
    }

    #[test]
    fn parts_of_vectors_are_seen() {
        let halves = ["LDG.E.64 R4, [R2.64]", "LDG.E.64 R6, [R2.64+0x8]", "ST.E [R2.64], R4"];
        assert_eq!(of(&halves), "2 LDG.64 > ST.32");
        assert_eq!(
            of(&["STG.E.128 [R2.64], R4", "STG.E.U8 [R2.64], R4", "STG.E.128 [R2.64], R8"]),
            "2 STG.128 + STG.8"
        );
        assert_eq!(of(&["EXIT"]), "");
        let sass = ".text.a:\n/*0000*/ @P0 EXIT ;\n/*0010*/ STG.E [R2.64], R4 ;\n/*0020*/ @P1 STG.E.128 [R2.64], R4 ;";
        assert_eq!(stores(&functions(sass)[0]), "STG.128 + STG.32");
    }
}
