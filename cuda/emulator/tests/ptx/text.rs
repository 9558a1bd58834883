//! PTX as text: the instructions of a module's kernels with their operands (PTX ISA, "Syntax" and "State spaces"). What
//! NVRTC writes for the probes is read; all else is an error that names the line.

use std::collections::HashMap;

/// The kernels of a module.
pub struct Module {
    pub entries: Vec<Entry>,
}

/// A kernel: its registers, and its instructions in order.
pub struct Entry {
    pub name: String,
    /// The name and the size of its one parameter.
    pub param: (String, usize),
    /// The types of its registers.
    pub registers: Vec<String>,
    pub body: Vec<Statement>,
    /// The instruction that each label stands before.
    pub labels: HashMap<String, usize>,
}

/// An instruction.
#[derive(Debug)]
pub struct Statement {
    pub line: usize,
    /// The predicate, and the value with which the instruction is executed.
    pub guard: Option<(usize, bool)>,
    /// The name and its modifiers: `add.s32` is `[add, s32]`.
    pub op: Vec<String>,
    pub operands: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    Register(usize),
    /// The bits of a constant, sign-extended if it is an integer.
    Constant(u64),
    /// `%tid.x` and its like.
    Special(String),
    /// A variable, a parameter or a label.
    Name(String),
    /// `{a, b}`
    List(Vec<Operand>),
    /// `[base + offset]`, or with coordinates `[base, {x, y}]`.
    Address(Box<Operand>, i64, Vec<Operand>),
    /// `_`, a result that is not wanted.
    Sink,
}

impl Statement {
    /// The instruction's name with all modifiers.
    pub fn name(&self) -> String {
        self.op.join(".")
    }
}

impl Module {
    pub fn read(text: &str) -> Result<Module, String> {
        let mut reader = Reader { tokens: tokens(text), at: 0 };
        let mut entries = Vec::new();
        while let Some(token) = reader.next() {
            match token.text {
                ".version" | ".target" | ".address_size" => _ = reader.word()?,
                // Variables have no value here: an instruction that reads one is an error.
                ".extern" | ".global" => reader.skip(";")?,
                ".visible" => {
                    reader.expect(".entry")?;
                    entries.push(reader.entry()?);
                }
                other => return Err(format!("line {}: {other} is not known", token.line)),
            }
        }
        Ok(Module { entries })
    }
}

#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Words with their dots, and single characters.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let mut rest = text.split("//").next().unwrap_or("").trim_start();
        while !rest.is_empty() {
            let of_word = |c: char| c.is_alphanumeric() || "_$%.".contains(c);
            let mut end = rest.find(|c| !of_word(c)).unwrap_or(rest.len());
            // `shared::cta` is one word, `label:` is two.
            while end > 0 && rest[end..].starts_with("::") {
                end += 2 + rest[end + 2..].find(|c| !of_word(c)).unwrap_or(rest.len() - end - 2);
            }
            let (token, after) = rest.split_at(end.max(1));
            out.push(Token { text: token, line });
            rest = after.trim_start();
        }
    }
    out
}

struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

/// The registers of a kernel by name, innermost braces last.
type Scopes = Vec<HashMap<String, usize>>;

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        self.at += 1;
        self.tokens.get(self.at - 1).copied()
    }

    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |token| token.text)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |token| token.line)
    }

    fn word(&mut self) -> Result<&'a str, String> {
        self.next().map(|token| token.text).ok_or_else(|| "the text ends early".to_string())
    }

    /// Whether the next token is this one, which is then skipped.
    fn take(&mut self, text: &str) -> bool {
        let here = self.peek() == text;
        self.at += usize::from(here);
        here
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        let (line, found) = (self.line(), self.peek());
        if self.take(text) { Ok(()) } else { Err(format!("line {line}: {found} stands where {text} should")) }
    }

    /// Skips everything up to this token, and the token.
    fn skip(&mut self, end: &str) -> Result<(), String> {
        while self.word()? != end {}
        Ok(())
    }

    fn integer(&mut self) -> Result<i64, String> {
        let (line, sign) = (self.line(), if self.take("-") { -1 } else { 1 });
        let word = self.word()?;
        let (digits, radix) = word.strip_prefix("0x").map_or((word, 10), |hex| (hex, 16));
        let value = u64::from_str_radix(digits.trim_end_matches('U'), radix);
        value.map(|v| (v as i64).wrapping_mul(sign)).map_err(|_| format!("line {line}: {word} is not a number"))
    }

    /// `name(.param .align 8 .b8 name[32]) .maxntid 64, 1, 1 { .. }`
    fn entry(&mut self) -> Result<Entry, String> {
        let name = self.word()?.to_string();
        for expected in ["(", ".param", ".align"] {
            self.expect(expected)?;
        }
        self.integer()?;
        self.expect(".b8")?;
        let param = self.word()?.to_string();
        self.expect("[")?;
        let size = self.integer()? as usize;
        self.expect("]")?;
        self.expect(")")?;
        self.skip("{")?;
        let (registers, body, labels) = Default::default();
        let mut entry = Entry { name, param: (param, size), registers, body, labels };
        self.block(&mut entry, &mut vec![HashMap::new()])?;
        Ok(entry)
    }

    fn block(&mut self, entry: &mut Entry, scopes: &mut Scopes) -> Result<(), String> {
        loop {
            let token = self.next().ok_or("the text ends inside a kernel")?;
            match token.text {
                "}" => return Ok(()),
                "{" => {
                    scopes.push(HashMap::new());
                    self.block(entry, scopes)?;
                    scopes.pop();
                }
                ".reg" => self.registers(entry, scopes)?,
                ".pragma" => self.skip(";")?,
                label if self.take(":") => _ = entry.labels.insert(label.to_string(), entry.body.len()),
                _ => {
                    self.at -= 1;
                    let statement = self.statement(scopes)?;
                    entry.body.push(statement);
                }
            }
        }
    }

    /// `.reg .b32 %r<7>;` declares `%r0` to `%r6`, `.reg .f16 l, h;` what it says.
    fn registers(&mut self, entry: &mut Entry, scopes: &mut Scopes) -> Result<(), String> {
        let class = self.word()?.trim_start_matches('.').to_string();
        loop {
            let name = self.word()?;
            let mut names = vec![name.to_string()];
            if self.take("<") {
                names = (0..self.integer()?).map(|i| format!("{name}{i}")).collect();
                self.expect(">")?;
            }
            for name in names {
                scopes.last_mut().expect("a kernel's scope").insert(name, entry.registers.len());
                entry.registers.push(class.clone());
            }
            if self.take(";") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn statement(&mut self, scopes: &Scopes) -> Result<Statement, String> {
        let line = self.line();
        let mut guard = None;
        if self.take("@") {
            let value = !self.take("!");
            let Operand::Register(p) = self.operand(scopes)? else { return Err(format!("line {line}: no predicate")) };
            guard = Some((p, value));
        }
        let op = self.word()?;
        if op.starts_with('.') {
            return Err(format!("line {line}: {op} is not known"));
        }
        // `shared::cta` is one modifier.
        let op = op.split('.').map(String::from).collect();
        let mut operands = Vec::new();
        while !self.take(";") {
            operands.push(self.operand(scopes)?);
            if self.peek() != ";" {
                self.expect(",")?;
            }
        }
        Ok(Statement { line, guard, op, operands })
    }

    fn operand(&mut self, scopes: &Scopes) -> Result<Operand, String> {
        if self.take("{") {
            let mut list = vec![self.operand(scopes)?];
            while !self.take("}") {
                self.expect(",")?;
                list.push(self.operand(scopes)?);
            }
            return Ok(Operand::List(list));
        }
        if self.take("[") {
            let (base, mut offset, mut coordinates) = (self.operand(scopes)?, 0, Vec::new());
            if self.take("+") || self.peek() == "-" {
                offset = self.integer()?;
            }
            while !self.take("]") {
                self.expect(",")?;
                coordinates.push(self.operand(scopes)?);
            }
            return Ok(Operand::Address(Box::new(base), offset, coordinates));
        }
        let word = self.peek();
        let float = |prefix: &str, digits: usize| {
            word.strip_prefix(prefix).filter(|d| d.len() == digits).and_then(|d| u64::from_str_radix(d, 16).ok())
        };
        if let Some(bits) = float("0f", 8).or_else(|| float("0d", 16)) {
            self.at += 1;
            return Ok(Operand::Constant(bits));
        }
        if word == "-" || word.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(Operand::Constant(self.integer()? as u64));
        }
        self.at += 1;
        let register = scopes.iter().rev().find_map(|scope| scope.get(word));
        Ok(match register {
            Some(&register) => Operand::Register(register),
            None if word == "_" => Operand::Sink,
            None if word.starts_with('%') => Operand::Special(word.to_string()),
            None => Operand::Name(word.to_string()),
        })
    }
}
