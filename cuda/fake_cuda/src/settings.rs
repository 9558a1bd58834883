//! Settings of the tests, read once from the environment. A malformed value ends the process: a test that does not get
//! what it asks for would prove nothing.

use crate::code::Code;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

pub struct Settings {
    /// The devices that this process sees: FAKE_CUDA_DEVICES is the machine's number of devices (1),
    /// CUDA_VISIBLE_DEVICES a list of ordinals.
    pub visible: Vec<usize>,
    /// FAKE_CUDA_NAME: the name of each device ("Stand-in").
    pub name: String,
    /// FAKE_CUDA_CAPABILITY: the compute capability, 80, or 90 for the kernels of sm_90a (80).
    pub capability: i32,
    /// FAKE_CUDA_CUDA: the driver's CUDA version (12090).
    pub cuda: i32,
    /// FAKE_CUDA_PROCESSORS: multiprocessors of a device (108).
    pub processors: i32,
    /// FAKE_CUDA_MEMORY: bytes of a device (8 GiB).
    pub memory: usize,
    /// CUDA_DEVICE_MAX_CONNECTIONS: the hardware queues over which streams are dealt, 1 to 32 (8).
    pub queues: usize,
    /// FAKE_CUDA_DELAY, a seed: every operation is delayed by 0 to 300 us.
    pub delay: Option<u64>,
    /// FAKE_CUDA_SLOW, `streams@ms`: the operations of these streams, a list of numbers from 1 on, are delayed by
    /// this time.
    pub slow: Option<Slow>,
    /// FAKE_CUDA_FAULT, `code@n`: the n-th launch of the process fails with this error, which is sticky.
    pub fault: Option<(Code, usize)>,
    /// FAKE_CUDA_FASTEST: the algorithm of cuBLASLt (`wide`, `split` or `narrow`) that is faster than the others.
    pub fastest: Option<String>,
    /// FAKE_CUDA_NCCL: NCCL's version (22703).
    pub nccl: i32,
    /// FAKE_CUDA_NCCL_HANG, `kind@n`: the n-th operation of this kind (`AllReduce`, ..., `any`) that the process starts
    /// as rank 0 of a communicator never completes.
    pub hang: Option<(String, usize)>,
    /// FAKE_CUDA_NCCL_CTAS: the most thread blocks that a communicator may ask for (32).
    pub nccl_ctas: i32,
    /// FAKE_CUDA_NCCL_MEMORY: bytes of a device that NCCL takes (0).
    pub nccl_memory: usize,
    /// NCCL_RUNTIME_CONNECT: whether it takes them at the first large call (1), or with the first communicator (0).
    pub connects_late: bool,
    /// FAKE_CUDA_NCCL_ALONE: whether NCCL finds no network.
    pub alone: bool,
    /// NCCL_HOSTID: overrides the host that NCCL sees.
    pub host: Option<String>,
}

pub struct Slow {
    pub streams: Vec<usize>,
    pub pause: Duration,
}

impl Slow {
    fn of(list: &str, ms: usize) -> Slow {
        let streams = list.split(',').map(|number| parsed("FAKE_CUDA_SLOW", number)).collect();
        Slow { streams, pause: Duration::from_millis(ms as u64) }
    }
}

pub fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let devices = number("FAKE_CUDA_DEVICES").unwrap_or(1);
        Settings {
            visible: visible(text("CUDA_VISIBLE_DEVICES").as_deref(), devices),
            name: text("FAKE_CUDA_NAME").unwrap_or("Stand-in".into()),
            capability: number("FAKE_CUDA_CAPABILITY").unwrap_or(80),
            cuda: number("FAKE_CUDA_CUDA").unwrap_or(12090),
            processors: number("FAKE_CUDA_PROCESSORS").unwrap_or(108),
            memory: number("FAKE_CUDA_MEMORY").unwrap_or(8 << 30),
            queues: number("CUDA_DEVICE_MAX_CONNECTIONS").unwrap_or(8usize).clamp(1, 32),
            delay: number("FAKE_CUDA_DELAY"),
            slow: at("FAKE_CUDA_SLOW").map(|(streams, ms)| Slow::of(&streams, ms)),
            fault: at("FAKE_CUDA_FAULT").map(|(code, n)| (parsed("FAKE_CUDA_FAULT", &code), n)),
            fastest: text("FAKE_CUDA_FASTEST"),
            nccl: number("FAKE_CUDA_NCCL").unwrap_or(22703),
            hang: at("FAKE_CUDA_NCCL_HANG"),
            nccl_ctas: number("FAKE_CUDA_NCCL_CTAS").unwrap_or(32),
            nccl_memory: number("FAKE_CUDA_NCCL_MEMORY").unwrap_or(0),
            connects_late: text("NCCL_RUNTIME_CONNECT").as_deref() != Some("0"),
            alone: text("FAKE_CUDA_NCCL_ALONE").is_some(),
            host: text("NCCL_HOSTID"),
        }
    })
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn parsed<T: FromStr>(name: &str, text: &str) -> T {
    text.trim().parse().unwrap_or_else(|_| panic!("fake CUDA: {name}={text} is not a number"))
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    text(name).map(|text| parsed(name, &text))
}

/// A value of the form `what@n`.
fn at(name: &str) -> Option<(String, usize)> {
    let text = text(name)?;
    let (what, n) = text.split_once('@').unwrap_or_else(|| panic!("fake CUDA: {name}={text} is not WHAT@N"));
    Some((what.to_string(), parsed(name, n)))
}

/// The driver reads the list up to the first number that is not a device.
fn visible(list: Option<&str>, devices: usize) -> Vec<usize> {
    let Some(list) = list else { return (0..devices).collect() };
    let numbers = list.split(',').map_while(|number| number.trim().parse().ok());
    numbers.take_while(|number| *number < devices).collect()
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn a_list_of_devices_ends_at_the_first_invalid_one() {
        assert_eq!(visible(None, 3), [0, 1, 2]);
        assert_eq!(visible(Some("2, 0"), 3), [2, 0]);
        assert_eq!(visible(Some("1,3,0"), 3), [1]);
        assert_eq!(visible(Some(""), 3), [0; 0]);
    }
}
