//! Reads what `nvdisasm -c` prints: functions, their instructions, where control goes from each, and loops.

use std::collections::{BTreeMap, BTreeSet};

/// A kernel with the routines that it calls.
#[derive(Default)]
pub struct Function<'a> {
    pub name: &'a str,
    pub code: Vec<Instruction<'a>>,
    /// The instruction that follows each label.
    labels: BTreeMap<&'a str, usize>,
}

pub struct Instruction<'a> {
    /// Whether it is executed under a predicate.
    guarded: bool,
    /// `LDG.E.128`
    pub name: &'a str,
    pub operands: &'a str,
}

/// All functions of a disassembled cubin.
pub fn functions(sass: &str) -> Vec<Function<'_>> {
    let mut functions: Vec<Function> = Vec::new();
    for line in sass.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            functions.push(Function { name, ..Function::default() });
            continue;
        }
        let Some(function) = functions.last_mut() else { continue };
        if let Some(label) = line.strip_suffix(':') {
            function.labels.insert(label, function.code.len());
        } else {
            function.code.extend(instruction(line));
        }
    }
    functions
}

/// `/*0050*/ @!P0 BRA P1, `(.L_x_0) ;`
fn instruction(line: &str) -> Option<Instruction<'_>> {
    let text = line.strip_prefix("/*")?.split_once("*/")?.1.trim_end_matches(';').trim();
    let (guarded, text) = match text.starts_with('@') {
        true => (true, text.split_once(' ')?.1.trim_start()),
        false => (false, text),
    };
    let (name, operands) = text.split_once(' ').unwrap_or((text, ""));
    Some(Instruction { guarded, name, operands })
}

impl Instruction<'_> {
    /// The name without its modifiers: `LDG`.
    pub fn kind(&self) -> &str {
        self.name.split('.').next().unwrap_or(self.name)
    }
}

impl Function<'_> {
    /// The instructions that may follow instruction `i`. A call returns, and threads that wait for each other go on.
    pub fn after(&self, i: usize) -> Vec<usize> {
        let (at, mut next) = (&self.code[i], Vec::new());
        let operands = at.operands;
        let jumps = at.kind() == "BRA";
        // A condition may also be an operand before the label: `BRA P1, `(.L_x_0)`.
        let always = match at.kind() {
            "BRA" => operands.starts_with('`'),
            "EXIT" | "RET" | "BRX" | "JMP" | "KILL" => true,
            _ => false,
        };
        if (at.guarded || !always) && i + 1 < self.code.len() {
            next.push(i + 1);
        }
        if jumps {
            let label = operands.split_once("`(").and_then(|(_, rest)| rest.split_once(')')).map(|(label, _)| label);
            next.extend(label.and_then(|label| self.labels.get(label)).filter(|to| **to < self.code.len()));
        }
        next
    }

    /// The edges that close loops, and all instructions that can be reached, each after those that follow it by other
    /// edges.
    pub fn order(&self) -> (BTreeSet<(usize, usize)>, Vec<usize>) {
        let (mut back, mut done) = (BTreeSet::new(), Vec::new());
        let (mut seen, mut open) = (vec![false; self.code.len()], vec![false; self.code.len()]);
        let mut stack = Vec::new();
        if !self.code.is_empty() {
            stack.push((0, self.after(0)));
            (seen[0], open[0]) = (true, true);
        }
        while let Some((at, left)) = stack.last_mut() {
            let at = *at;
            match left.pop() {
                Some(to) if open[to] => _ = back.insert((at, to)),
                Some(to) if seen[to] => {}
                Some(to) => {
                    (seen[to], open[to]) = (true, true);
                    stack.push((to, self.after(to)));
                }
                None => {
                    open[at] = false;
                    done.push(at);
                    stack.pop();
                }
            }
        }
        (back, done)
    }

    /// The loops: the first instruction of each, and all of its instructions.
    pub fn loops(&self) -> BTreeMap<usize, BTreeSet<usize>> {
        let (back, reached) = self.order();
        let mut before: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &from in &reached {
            self.after(from).into_iter().for_each(|to| before.entry(to).or_default().push(from));
        }
        let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (last, first) in back {
            let body = loops.entry(first).or_insert_with(|| BTreeSet::from([first]));
            let mut todo = vec![last];
            while let Some(at) = todo.pop() {
                if body.insert(at) {
                    todo.extend(before.get(&at).into_iter().flatten());
                }
            }
        }
        loops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop with a branch in it, and a routine behind the end.
    const SASS: &str = "\
\t.target\tsm_90a
a:
.text.a:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/               @P0 EXIT ;
.L_x_0:
        /*0020*/               @P1 BRA P2, `(.L_x_1) ;
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0050*/                   LDG.E R4, desc[UR4][R2.64] ;
.L_x_2:
        /*0060*/              @!P3 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
.L_x_4:

//--------------------- .text.b
.text.b:
        /*0000*/                   CALL.REL.NOINC `($__internal_0) ;
        /*0010*/                   EXIT ;
";

    #[test]
    fn functions_and_instructions_are_read() {
        let functions = functions(SASS);
        assert_eq!(functions.iter().map(|f| (f.name, f.code.len())).collect::<Vec<_>>(), [("a", 9), ("b", 2)]);
        let load = &functions[0].code[3];
        let read = (load.guarded, load.name, load.kind(), load.operands);
        assert_eq!(read, (false, "LDG.E.128", "LDG", "R4, desc[UR4][R2.64]"));
        assert!(functions[0].code[1].guarded && functions[0].code[1].name == "EXIT");
        assert!(super::functions("").is_empty());
    }

    #[test]
    fn control_goes_on_to_the_next_instruction_and_to_labels() {
        let functions = functions(SASS);
        let after = |i| functions[0].after(i);
        assert_eq!([after(0), after(1), after(2)], [vec![1], vec![2], vec![3, 5]]);
        assert_eq!([after(4), after(6), after(7)], [vec![6], vec![7, 2], vec![]]);
        assert_eq!(functions[1].after(0), [1]);
    }

    #[test]
    fn a_loop_is_all_that_reaches_its_end() {
        let functions = functions(SASS);
        assert_eq!(functions[0].loops(), BTreeMap::from([(2, BTreeSet::from([2, 3, 4, 5, 6]))]));
        assert!(functions[1].loops().is_empty());
        // What cannot be reached is in no order.
        assert_eq!(functions[0].order().1.len(), 8);
    }
}
