//! Not a parser of the engine: a parser with one mistake of each kind, by which the tests see that the harness sees.

use engine::error::{Error, Result};

pub fn parse() -> Result<()> {
    let text = std::fs::read_to_string("input").map_err(|e| Error::user(e.to_string()))?;
    match text.trim() {
        "panic" => panic!("planted"),
        "thread" => {
            std::thread::spawn(|| panic!("planted on a thread")).join().map_err(|_| Error::user("a thread died"))
        }
        "abort" => std::process::abort(),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "memory" => {
            let bytes = vec![1u8; 2 << 30];
            Err(Error::user(format!("{} bytes", std::hint::black_box(bytes).len())))
        }
        "fine" => Ok(()),
        other => Err(Error::user(format!("{other:?} is not planted"))),
    }
}
