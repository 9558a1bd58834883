//! The chosen algorithm of each product, and the file that caches them: one per kind of device, version of cuBLASLt and
//! driver.

use super::library::Algorithm;
use crate::compile::write_atomically;
use crate::device::Device;
use crate::machine::Machine;
use crate::product::Product;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The algorithm of a product, as ranks exchange it and the file stores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub product: Product,
    /// Its median time when it was chosen.
    pub seconds: f64,
    /// 64 bytes in hexadecimal, opaque to the engine.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub(super) algorithm: Algorithm,
}

fn to_hex<S: Serializer>(algorithm: &Algorithm, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&algorithm.map(|word| format!("{word:016x}")).concat())
}

fn from_hex<'de, D: Deserializer<'de>>(from: D) -> Result<Algorithm, D::Error> {
    let text = String::deserialize(from)?;
    let word = |i: usize| u64::from_str_radix(text.get(16 * i..16 * i + 16)?, 16).ok();
    let words: Option<Vec<u64>> = (0..8).map(word).collect();
    let whole = words.filter(|_| text.len() == 128).and_then(|words| words.try_into().ok());
    whole.ok_or_else(|| serde::de::Error::custom("an algorithm is 128 hexadecimal digits"))
}

/// Everything that an algorithm's time depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    device: String,
    /// Multiprocessors: a MIG instance has fewer under the same name.
    processors: usize,
    cublaslt: usize,
    driver: String,
}

impl Platform {
    pub(super) fn new(device: &Device, cublaslt: usize) -> Platform {
        let (name, driver) = (device.info().name.clone(), device.driver().to_string());
        Platform { device: name, processors: device.processors(), cublaslt, driver }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Platform { device, processors, cublaslt, driver } = self;
        write!(f, "{device} with {processors} multiprocessors, cuBLASLt {cublaslt} and a driver for CUDA {driver}")
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    machine: Platform,
    choices: Vec<Choice>,
}

/// The file of one platform.
pub(super) struct Store {
    path: PathBuf,
    platform: Platform,
}

/// Choices by product, in a canonical order.
pub(super) type Choices = BTreeMap<Product, Choice>;

impl Store {
    /// The file's name contains the platform.
    pub fn of(folder: &Path, platform: Platform) -> Store {
        let Platform { device, processors, cublaslt, driver } = &platform;
        let device: String = device.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let name = format!("products-{device}-{processors}-cublaslt-{cublaslt}-cuda-{driver}.json");
        Store { path: folder.join(name), platform }
    }

    /// The cached choices, and a note if the file is damaged: it is then replaced.
    pub fn read(&self) -> (Choices, Option<String>) {
        let note = |what: String| {
            Some(format!("{}: {what}; products are timed again and the file is replaced", self.path.display()))
        };
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return (Choices::new(), None),
            Err(e) => return (Choices::new(), note(e.to_string())),
        };
        match serde_json::from_slice::<Contents>(&bytes) {
            Err(e) => (Choices::new(), note(e.to_string())),
            Ok(found) if found.machine != self.platform => {
                (Choices::new(), note(format!("it is for {}, not for {}", found.machine, self.platform)))
            }
            Ok(found) => (by_product(found.choices), None),
        }
    }

    /// Adds choices to the file's current content, since other runs may have added to it.
    pub fn add(&self, choices: &Choices) -> Result<(), String> {
        let (mut all, _) = self.read();
        all.extend(choices.clone());
        let contents = Contents { machine: self.platform.clone(), choices: all.into_values().collect() };
        let text = serde_json::to_vec_pretty(&contents).expect("numbers and strings are JSON");
        let written = std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new("")))
            .and_then(|()| write_atomically(&self.path, &[&text, b"\n"]));
        written.map_err(|e| format!("{}: {e}; products will be timed again next time", self.path.display()))
    }
}

pub(super) fn by_product(choices: Vec<Choice>) -> Choices {
    choices.into_iter().map(|choice| (choice.product, choice)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Form;

    fn platform() -> Platform {
        let device = "NVIDIA H100 80GB HBM3/SXM".into();
        Platform { device, processors: 132, cublaslt: 120901, driver: "12.9".into() }
    }

    fn choice(m: usize, word: u64) -> Choice {
        let product = Product::new(Form::Nt, m, 5397, 4096);
        Choice { product, seconds: 0.1 + 1e-7 * word as f64, algorithm: std::array::from_fn(|i| word << i) }
    }

    fn choices(list: &[Choice]) -> Choices {
        by_product(list.to_vec())
    }

    #[test]
    fn choices_are_read_as_written() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::of(&tmp.path().join("not/there"), platform());
        assert_eq!(store.read(), (Choices::new(), None));
        let (one, two) = (choice(6, u64::MAX), choice(3, 0x123));
        store.add(&choices(std::slice::from_ref(&one))).unwrap();
        store.add(&choices(std::slice::from_ref(&two))).unwrap();
        assert_eq!(store.read(), (choices(&[one, two]), None));
        // The later choice replaces the earlier, and no other file is left.
        let newer = choice(3, 0x456);
        store.add(&choices(std::slice::from_ref(&newer))).unwrap();
        assert_eq!(store.read().0[&newer.product], newer);
        assert_eq!(std::fs::read_dir(tmp.path().join("not/there")).unwrap().count(), 1);
    }

    #[test]
    fn every_platform_has_a_file() {
        let name = |platform| Store::of(Path::new(""), platform).path;
        let others = [
            Platform { device: "NVIDIA H200".into(), ..platform() },
            Platform { processors: 66, ..platform() },
            Platform { cublaslt: 120902, ..platform() },
            Platform { driver: "12.8".into(), ..platform() },
        ];
        for other in others {
            assert_ne!(name(other), name(platform()));
        }
        let plain = name(platform()).into_os_string().into_string().unwrap();
        assert_eq!(plain, "products-NVIDIA-H100-80GB-HBM3-SXM-132-cublaslt-120901-cuda-12.9.json");
    }

    /// A file truncated anywhere, one of another platform under this name, and one with malformed values.
    #[test]
    fn a_damaged_or_foreign_file_is_noted_and_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::of(tmp.path(), platform());
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
    fn a_file_that_cannot_be_written_is_noted() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("file");
        std::fs::write(&file, "").unwrap();
        let store = Store::of(&file, platform());
        assert!(store.add(&choices(&[choice(3, 1)])).unwrap_err().contains("timed again"));
        assert!(store.read().1.is_some());
    }
}
