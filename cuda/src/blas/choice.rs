//! Which algorithm computes which product, and the file in which a machine keeps that: one for each kind of device,
//! version of cuBLASLt and driver.

use super::library::Algorithm;
use super::product::Product;
use crate::device::Device;
use crate::files;
use crate::machine::Machine as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The algorithm of a product, as one rank tells it to the others and the file keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub product: Product,
    /// Seconds that it took when it was chosen.
    pub seconds: f64,
    /// 64 bytes in hexadecimal digits that only the library understands.
    #[serde(serialize_with = "digits", deserialize_with = "undigits")]
    pub(super) algorithm: Algorithm,
}

fn digits<S: Serializer>(algorithm: &Algorithm, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&algorithm.map(|word| format!("{word:016x}")).concat())
}

fn undigits<'de, D: Deserializer<'de>>(from: D) -> Result<Algorithm, D::Error> {
    let text = String::deserialize(from)?;
    let word = |i: usize| u64::from_str_radix(text.get(16 * i..16 * i + 16)?, 16).ok();
    let words: Option<Vec<u64>> = (0..8).map(word).collect();
    let whole = words.filter(|_| text.len() == 128).and_then(|words| words.try_into().ok());
    whole.ok_or_else(|| serde::de::Error::custom("an algorithm is 128 hexadecimal digits"))
}

/// What the time of an algorithm depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub(super) device: String,
    /// A part of a device has fewer under the same name.
    pub(super) processors: usize,
    pub(super) cublaslt: usize,
    pub(super) driver: String,
}

impl Machine {
    pub(super) fn here(device: &Device, cublaslt: usize) -> Machine {
        let (name, driver) = (device.info().name.clone(), device.driver().to_string());
        Machine { device: name, processors: device.processors(), cublaslt, driver }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { device, processors, cublaslt, driver } = self;
        write!(f, "{device} with {processors} multiprocessors, cuBLASLt {cublaslt} and a driver of CUDA {driver}")
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    machine: Machine,
    choices: Vec<Choice>,
}

/// The file of one kind of machine.
pub(super) struct Store {
    path: PathBuf,
    machine: Machine,
}

/// By product, so that every list of them has the same order.
pub(super) type Choices = BTreeMap<Product, Choice>;

impl Store {
    /// In the folder of caches.
    pub fn of(folder: &Path, machine: Machine) -> Store {
        let Machine { device, processors, cublaslt, driver } = &machine;
        let device: String = device.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let name = format!("products-{device}-{processors}-cublaslt-{cublaslt}-cuda-{driver}.json");
        Store { path: folder.join(name), machine }
    }

    /// What was chosen before, and a note where the file is not what it should be: it is made anew then.
    pub fn read(&self) -> (Choices, Option<String>) {
        let note = |what: String| {
            Some(format!("{}: {what}; products are timed again and the file is made anew", self.path.display()))
        };
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return (Choices::new(), None),
            Err(e) => return (Choices::new(), note(e.to_string())),
        };
        match serde_json::from_slice::<Contents>(&bytes) {
            Err(e) => (Choices::new(), note(e.to_string())),
            Ok(found) if found.machine != self.machine => {
                (Choices::new(), note(format!("it is of {:?}, not of {:?}", found.machine, self.machine)))
            }
            Ok(found) => (by_product(found.choices), None),
        }
    }

    /// Adds to what the file has by now, since other runs may have added to it.
    pub fn add(&self, choices: &Choices) -> Result<(), String> {
        let (mut all, _) = self.read();
        all.extend(choices.clone());
        let contents = Contents { machine: self.machine.clone(), choices: all.into_values().collect() };
        let text = serde_json::to_vec_pretty(&contents).expect("numbers and texts are written");
        let written = std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new("")))
            .and_then(|()| files::write(&self.path, &[&text, b"\n"]));
        written.map_err(|e| format!("{}: {e}; products are timed again the next time", self.path.display()))
    }
}

pub(super) fn by_product(choices: Vec<Choice>) -> Choices {
    choices.into_iter().map(|choice| (choice.product, choice)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::product::Form;
    use super::*;

    fn machine() -> Machine {
        let device = "NVIDIA H100 80GB HBM3/SXM".into();
        Machine { device, processors: 132, cublaslt: 120901, driver: "12.9".into() }
    }

    fn choice(m: usize, word: u64) -> Choice {
        let product = Product::new(Form::Nt, m, 5397, 4096);
        Choice { product, seconds: 0.1 + 1e-7 * word as f64, algorithm: std::array::from_fn(|i| word << i) }
    }

    fn choices(list: &[Choice]) -> Choices {
        by_product(list.to_vec())
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::of(&tmp.path().join("not/there"), machine());
        assert_eq!(store.read(), (Choices::new(), None));
        let (one, two) = (choice(6, u64::MAX), choice(3, 0x123));
        store.add(&choices(std::slice::from_ref(&one))).unwrap();
        store.add(&choices(std::slice::from_ref(&two))).unwrap();
        assert_eq!(store.read(), (choices(&[one, two]), None));
        // The later choice stays, and nothing else lies beside the file.
        let newer = choice(3, 0x456);
        store.add(&choices(std::slice::from_ref(&newer))).unwrap();
        assert_eq!(store.read().0[&newer.product], newer);
        assert_eq!(std::fs::read_dir(tmp.path().join("not/there")).unwrap().count(), 1);
    }

    #[test]
    fn every_kind_of_machine_has_a_file() {
        let name = |machine| Store::of(Path::new(""), machine).path;
        let others = [
            Machine { device: "NVIDIA H200".into(), ..machine() },
            Machine { processors: 66, ..machine() },
            Machine { cublaslt: 120902, ..machine() },
            Machine { driver: "12.8".into(), ..machine() },
        ];
        for other in others {
            assert_ne!(name(other), name(machine()));
        }
        let plain = name(machine()).into_os_string().into_string().unwrap();
        assert_eq!(plain, "products-NVIDIA-H100-80GB-HBM3-SXM-132-cublaslt-120901-cuda-12.9.json");
    }

    /// Cut anywhere it is noted and made anew; so is one of another machine under this name, and another shape.
    #[test]
    fn a_damaged_or_foreign_file_is_noted_and_made_anew() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::of(tmp.path(), machine());
        let one = choices(&[choice(6, 7)]);
        store.add(&one).unwrap();
        let whole = std::fs::read(&store.path).unwrap();
        let text = String::from_utf8(whole.clone()).unwrap();
        let mut wrong: Vec<Vec<u8>> = (0..whole.len() - 2).map(|n| whole[..n].to_vec()).collect();
        for (from, to) in [("120901", "120902"), ("\"nt\"", "\"tt\""), ("\"0000", "\"000x"), ("\"0000", "\"00000")] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            wrong.push(changed.into_bytes());
        }
        for bytes in wrong {
            std::fs::write(&store.path, &bytes).unwrap();
            let (found, note) = store.read();
            let note = note.unwrap_or_else(|| panic!("no note: {}", String::from_utf8_lossy(&bytes)));
            assert!(found.is_empty() && note.contains(store.path.to_str().unwrap()), "{note}");
            store.add(&one).unwrap();
            assert_eq!(std::fs::read(&store.path).unwrap(), whole);
        }
    }

    #[test]
    fn where_nothing_can_be_written_a_note_says_so() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("file");
        std::fs::write(&file, "").unwrap();
        let store = Store::of(&file, machine());
        assert!(store.add(&choices(&[choice(3, 1)])).unwrap_err().contains("timed again"));
        assert!(store.read().1.is_some());
    }
}
