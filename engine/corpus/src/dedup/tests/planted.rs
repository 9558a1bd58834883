//! Documents with planted near duplicates, from fixed seeds.

/// A small generator of numbers (Steele, Lea and Flood 2014).
pub struct SplitMix(pub u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// `n` documents, of which the later ones are, with a chance of a third, a copy of an earlier one with up to one change
/// in 40 characters. Documents have 20 to `longest` characters in lines of about 20, a tenth of which is from a short
/// list.
pub fn documents(seed: u64, n: usize, longest: usize) -> Vec<String> {
    let mut random = SplitMix(seed);
    let mut documents: Vec<Vec<char>> = Vec::new();
    for at in 0..n {
        let document = match at > 10 && random.below(3) == 0 {
            true => {
                let earlier = documents[random.below(at)].clone();
                changed(&mut random, earlier)
            }
            false => fresh(&mut random, longest),
        };
        documents.push(document);
    }
    documents.into_iter().map(|document| document.into_iter().collect()).collect()
}

fn fresh(random: &mut SplitMix, longest: usize) -> Vec<char> {
    let length = 20 + random.below(longest - 19);
    let mut text = Vec::new();
    while text.len() < length {
        if random.below(10) == 0 {
            text.extend(format!("これは{}番目の決まり文句です。\n", random.below(20)).chars());
        }
        for _ in 0..20 {
            text.push(any(random));
        }
        text.push('\n');
    }
    text
}

fn any(random: &mut SplitMix) -> char {
    char::from_u32(0x3042 + random.below(60) as u32).expect("hiragana")
}

/// Replaces, inserts or removes some characters.
fn changed(random: &mut SplitMix, mut text: Vec<char>) -> Vec<char> {
    for _ in 0..random.below(2 + text.len() / 40) {
        let at = random.below(text.len());
        match random.below(3) {
            0 => text[at] = any(random),
            1 => text.insert(at, any(random)),
            _ => drop(text.remove(at)),
        }
    }
    text
}
