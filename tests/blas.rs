//! Matrix products through the cuBLASLt wrapper, on a fake cuBLASLt: compared with plain loops; how algorithms are
//! chosen and cached.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use cuda::Device;
use cuda::blas::{Blas, Choice, Error, Form, Product, scratch_len};
use cuda::compile::Places;
use cuda::device::Memory;
use cuda::search::Search;
use cuda::tensor::View;
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::common::on_fake_cuda;

/// Bytes of cuBLASLt's workspace.
const WORKSPACE: usize = 1 << 20;

/// The fake device, leaked: the process ends with its test.
fn device() -> &'static Rc<Device> {
    let (device, notes) = Device::open(0, &places()).unwrap_or_else(|e| panic!("{e}"));
    assert!(notes.is_empty(), "{notes:?}");
    Box::leak(Box::new(Rc::new(device)))
}

fn places() -> Places {
    Places::of(|name| std::env::var_os(name), None)
}

fn block(device: &'static Device, bytes: usize) -> Memory<&'static Device> {
    device.alloc(bytes).unwrap_or_else(|e| panic!("{e}"))
}

/// A view of `n` elements of a block, from byte `offset` on.
fn view(of: &Memory<&Device>, offset: usize, n: usize) -> View {
    assert!(offset <= of.len());
    // SAFETY: the blocks of these tests live until their device has done all, and a test uses them one by one.
    unsafe { View::new(of.at() + offset as u64, n) }
}

fn opened(device: &'static Rc<Device>, cache: Option<&Path>) -> Blas {
    let space = Box::leak(Box::new(block(device, WORKSPACE)));
    let blas = Blas::open(device.clone(), places().search(), cache, view(space, 0, WORKSPACE));
    blas.unwrap_or_else(|e| panic!("{e}"))
}

/// About normal numbers that bf16 represents exactly, from a seed.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| bf16::from_f32(next() + next() + next()).to_f32()).collect()
}

fn in_bf16(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
}

fn in_f32(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The output before and after a product, and its bias, if it has one.
struct Ran {
    old: Vec<f32>,
    new: Vec<f32>,
    bias: Vec<f32>,
}

/// Runs a product of these numbers. Its views begin `beyond` elements after multiples of 256 bytes, the bias's as that
/// of b.
fn run(device: &'static Device, blas: &Blas, product: Product, a: &[f32], b: &[f32], beyond: [usize; 3]) -> Ran {
    let lens = product.lens();
    let bias = if product.form == Form::NtBias { numbers(product.n, 5) } else { Vec::new() };
    let mut bias_block = block(device, 2 * beyond[1] + 2 * bias.len() + 2);
    bias_block.write(2 * beyond[1], &in_bf16(&bias)).unwrap();
    let bias_view = view(&bias_block, 2 * beyond[1], bias.len());
    let old = numbers(lens[2], 77);
    let exact = matches!(product.form, Form::NtF32 | Form::TnAcc);
    let out = if exact { in_f32(&old) } else { in_bf16(&old) };
    let size = out.len() / old.len();
    let bytes = [in_bf16(a), in_bf16(b), out];
    let offsets = [2 * beyond[0], 2 * beyond[1], size * beyond[2]];
    let mut blocks: Vec<Memory<_>> = (0..3).map(|i| block(device, offsets[i] + bytes[i].len())).collect();
    for i in 0..3 {
        blocks[i].write(offsets[i], &bytes[i]).unwrap();
    }
    let [a, b, out] = std::array::from_fn(|i| view(&blocks[i], offsets[i], lens[i]));
    let done = match product.form {
        Form::NtBias => blas.run_with_bias(product, a, b, bias_view, out),
        _ => blas.run(product, a, b, out),
    };
    done.unwrap_or_else(|fault| panic!("{fault}"));
    let mut read = bytes[2].clone();
    blocks[2].read(offsets[2], &mut read).unwrap();
    let number = |bytes: &[u8]| match exact {
        true => f32::from_le_bytes(bytes.try_into().unwrap()),
        false => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
    };
    Ran { old, new: read.chunks(size).map(number).collect(), bias }
}

/// Compares a product with plain loops in f64.
fn hold(product: Product, a: &[f32], b: &[f32], ran: &Ran) -> Result<(), TestCaseError> {
    let Product { form, m, n, k } = product;
    for i in 0..m {
        for j in 0..n {
            let term = |l: usize| match form {
                Form::Nt | Form::NtBias | Form::NtF32 => (a[i * k + l], b[j * k + l]),
                Form::Nn => (a[i * k + l], b[l * n + j]),
                Form::TnAcc => (a[l * m + i], b[l * n + j]),
            };
            let terms = || (0..k).map(|l| term(l).0 as f64 * term(l).1 as f64);
            let at = i * n + j;
            let before = match form {
                Form::TnAcc => ran.old[at] as f64,
                Form::NtBias => ran.bias[j] as f64,
                Form::Nt | Form::NtF32 | Form::Nn => 0.0,
            };
            let size: f64 = terms().map(f64::abs).sum::<f64>() + before.abs();
            // Sums are f32, and a bf16 output is rounded once.
            let exact = before + terms().sum::<f64>();
            let once = if matches!(form, Form::NtF32 | Form::TnAcc) { 0.0 } else { exact.abs() / 256.0 };
            let allowed = once + size * (k + 2) as f64 * 2f64.powi(-24);
            let new = ran.new[at] as f64;
            prop_assert!((new - exact).abs() <= allowed, "{product}: element {at} is {new}, not {exact}");
        }
    }
    Ok(())
}

/// Products of any size, odd ones too, aligned to no more than an element.
fn any_product() -> impl Strategy<Value = (Product, [usize; 3])> {
    let forms = [Form::Nt, Form::NtBias, Form::NtF32, Form::Nn, Form::TnAcc];
    let form = proptest::sample::select(forms.to_vec());
    let size = || prop_oneof![1usize..20, (1usize..9).prop_map(|n| 8 * n)];
    let beyond = prop_oneof![Just([0; 3]), (0usize..9, 0usize..9, 0usize..9).prop_map(|(a, b, out)| [a, b, out])];
    (form, size(), size(), size(), beyond).prop_map(|(form, m, n, k, beyond)| (Product::new(form, m, n, k), beyond))
}

#[test]
fn products_match_plain_loops() {
    on_fake_cuda("blas::products_match_plain_loops", &[("FAKE_CUDA_DELAY", "5")], || {
        let device = device();
        let blas = opened(device, None);
        let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
        let held = TestRunner::new(config).run(&any_product(), |(product, beyond)| {
            let [a, b, _] = product.lens();
            let (a, b) = (numbers(a, 3), numbers(b, 4));
            hold(product, &a, &b, &run(device, &blas, product, &a, &b, beyond))
        });
        held.unwrap_or_else(|e| panic!("{e}"));
        // A rank's rows of an odd vocabulary.
        for (form, m, n, k) in [(Form::Nt, 3, 5397, 64), (Form::Nn, 3, 64, 5397), (Form::TnAcc, 5397, 64, 3)] {
            let product = Product::new(form, m, n, k);
            let [a, b, _] = product.lens();
            let (a, b) = (numbers(a, 5), numbers(b, 6));
            hold(product, &a, &b, &run(device, &blas, product, &a, &b, [0; 3])).unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!((blas.timed(), blas.choices().len(), blas.notes().len()), (0, 0, 0), "nothing was tuned");
    });
}

/// Products for which the fake cuBLASLt offers all of its algorithms.
fn some() -> [Product; 3] {
    [Product::new(Form::Nt, 64, 24, 128), Product::new(Form::Nn, 32, 16, 64), Product::new(Form::TnAcc, 8, 16, 96)]
}

fn tuned(device: &'static Device, blas: &Blas, products: &[Product]) -> Vec<Choice> {
    let scratch = block(device, scratch_len(products));
    blas.tune(products, view(&scratch, 0, scratch.len())).unwrap_or_else(|e| panic!("{e}"))
}

/// The bits of a product's result, which identify the algorithm.
fn bits(device: &'static Device, blas: &Blas, product: Product) -> Vec<u32> {
    let [a, b, _] = product.lens();
    let ran = run(device, blas, product, &numbers(a, 8), &numbers(b, 9), [0; 3]);
    ran.new.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_fastest_algorithm_is_chosen_once_and_cached() {
    on_fake_cuda("blas::the_fastest_algorithm_is_chosen_once_and_cached", &[("FAKE_CUDA_FASTEST", "split")], || {
        let (device, folder, products) = (device(), tempfile::tempdir().unwrap(), some());
        let exact = products[2];
        let blas = opened(device, Some(folder.path()));
        let first = bits(device, &blas, exact);
        let choices = tuned(device, &blas, &products);
        for choice in &choices {
            // The fake cuBLASLt's numbers for its algorithms.
            let json = serde_json::to_value(choice).unwrap();
            assert!(
                json["algorithm"].as_str().unwrap().starts_with("0000005ca1ab1e02") && choice.seconds > 0.0,
                "{json}"
            );
        }
        assert_eq!(choices.iter().map(|c| c.product).collect::<Vec<_>>(), products);
        let best = bits(device, &blas, exact);
        assert_ne!(first, best, "what was tuned is what is run, also where it ran before");
        assert_eq!(tuned(device, &blas, &products), choices);
        assert_eq!(blas.timed(), 3);

        // The next process reads the same from the file, to the last digit of the times.
        let again = opened(device, Some(folder.path()));
        assert_eq!((tuned(device, &again, &products), again.timed(), again.notes().len()), (choices.clone(), 0, 0));
        assert_eq!(bits(device, &again, exact), best);
        let further = Product::new(Form::Nt, 8, 8, 8);
        tuned(device, &again, &[products[0], further]);
        assert_eq!(again.timed(), 1);

        // Another rank has no file, and adopts the choices of the first.
        let other = opened(device, None);
        assert_eq!(bits(device, &other, exact), first);
        let sent: Vec<Choice> = serde_json::from_slice(&serde_json::to_vec(&blas.choices()).unwrap()).unwrap();
        other.adopt(&sent).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((bits(device, &other, exact), other.timed()), (best.clone(), 0));
        assert_eq!(other.choices(), blas.choices());

        damaged(device, folder.path(), &products, &best);
    });
}

/// The least time of a few runs. The fake cuBLASLt waits for 5 ms in all algorithms but the one that is to be the
/// fastest.
fn least_time(device: &'static Device, blas: &Blas, product: Product) -> Duration {
    let time = |_| {
        let start = Instant::now();
        bits(device, blas, product);
        start.elapsed()
    };
    (0..20).map(time).min().unwrap()
}

/// A step's dry run does not tell products with a bias from those without, so that only the latter are tuned. Bits do
/// not show the algorithm, since a result with a bias is rounded to bf16.
#[test]
fn a_product_with_a_bias_uses_the_algorithm_of_the_one_without() {
    let vars = [("FAKE_CUDA_FASTEST", "split")];
    on_fake_cuda("blas::a_product_with_a_bias_uses_the_algorithm_of_the_one_without", &vars, || {
        let (device, slow) = (device(), Duration::from_millis(5));
        let [plain, biased] = [some()[0], Product { form: Form::NtBias, ..some()[0] }];
        let blas = opened(device, None);
        assert!(least_time(device, &blas, biased) >= slow, "the library proposes another algorithm first");
        tuned(device, &blas, &[plain]);
        assert!(least_time(device, &blas, biased) < slow, "the choice is not used where the product ran before");
        // Tuned itself, it has the same fastest algorithm.
        let other = opened(device, None);
        assert_eq!(tuned(device, &other, &[biased])[0].product, biased);
        assert!(least_time(device, &other, biased) < slow && other.timed() == 1);
    });
}

/// A file that is cut short, and one with an algorithm that the library does not know, are reported and written anew.
fn damaged(device: &'static Rc<Device>, folder: &Path, products: &[Product], best: &[u32]) {
    let path = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    assert!(path.to_str().unwrap().contains("Stand-in-108-cublaslt-"), "{path:?}");
    let whole = std::fs::read_to_string(&path).unwrap();
    let foreign = whole.replace("\"algorithm\": \"0", "\"algorithm\": \"7");
    assert_ne!(foreign, whole);
    for (wrong, noted) in [(&whole[..whole.len() / 2], 1), (&foreign, products.len())] {
        std::fs::write(&path, wrong).unwrap();
        let blas = opened(device, Some(folder));
        tuned(device, &blas, products);
        let notes = blas.notes();
        assert!(notes.len() == noted && notes.iter().all(|note| note.contains("timed again")), "{notes:?}");
        assert_eq!((blas.timed(), bits(device, &blas, products[2])), (products.len(), best.to_vec()));
        let after = opened(device, Some(folder));
        tuned(device, &after, products);
        assert_eq!((after.timed(), after.notes().len()), (0, 0));
    }
    let list = foreign.split_once("\"choices\": ").unwrap().1.trim_end().trim_end_matches('}');
    let list: Vec<Choice> = serde_json::from_str(list).unwrap();
    let Err(refused @ Error::Mixed { .. }) = opened(device, None).adopt(&list) else { panic!("{list:?} was taken") };
    for said in ["another rank", "unsupported value", "one kind", "Stand-in"] {
        assert!(refused.to_string().contains(said), "no {said} in {refused}");
    }
}

/// A device fault shows at a later launch: the message names that product and those before it.
#[test]
fn a_fault_names_the_product() {
    on_fake_cuda("blas::a_fault_names_the_product", &[], || {
        let device = device();
        let blas = opened(device, None);
        let product = Product::new(Form::Nt, 3, 4, 5);
        let kept = block(device, 64);
        let gone = {
            let gone = block(device, 64);
            view(&gone, 0, 15)
        };
        let start = || device.scope("layer 3", || blas.run(product, gone, view(&kept, 0, 20), view(&kept, 0, 12)));
        start().unwrap();
        device.sync().unwrap_err();
        let said = start().unwrap_err().to_string();
        for needle in ["a b^T", "3 x 4 x 5", "failed to launch", "EXECUTION_FAILED", "in layer 3", "launched before"] {
            assert!(said.contains(needle), "no {needle} in {said}");
        }
    });
}

#[test]
fn a_missing_library_is_refused_with_what_to_install() {
    on_fake_cuda("blas::a_missing_library_is_refused_with_what_to_install", &[], || {
        let (device, folder) = (device(), tempfile::tempdir().unwrap());
        let refused = |search: &Search| match Blas::open(device.clone(), search, None, View::NONE) {
            Err(e @ Error::NoLibrary { .. }) => e.to_string(),
            Err(e) => panic!("{e}"),
            Ok(blas) => panic!("{} was taken", blas.path().display()),
        };
        let none = refused(&Search::only(folder.path()));
        assert!(none.contains("pip install nvidia-cublas-cu12`") && none.contains("SWALLOW_CUDA_LIBS"), "{none}");
        let text = folder.path().join("libcublasLt.so.12");
        std::fs::write(&text, "no library").unwrap();
        let damaged = refused(&Search::only(folder.path()));
        assert!(damaged.contains(text.to_str().unwrap()), "{damaged}");
    });
}
