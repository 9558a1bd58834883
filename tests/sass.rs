//! Checks the order of instructions in the SASS that NVRTC generates for the kernels, on which their speed depends. The
//! variable NVDISASM names the disassembler (`scripts/nvdisasm.sh`).

use std::process::Command;

use cuda::arch::Arch;
use cuda::compile::Nvrtc;
use cuda::kernels::files_for;
use cuda::search::Search;

use crate::common::finish;

/// The kernels of sm_90a that compute exponentials while the tensor cores work, and how many: a thread's elements of P,
/// and in the forward pass two factors that rescale its sums.
const OVERLAPPED: [(&str, usize); 6] = [
    ("attention_sm90_64", 66),
    ("attention_sm90_128", 66),
    ("attention_dq_sm90_64", 64),
    ("attention_dq_sm90_128", 64),
    ("attention_dkv_sm90_64", 32),
    ("attention_dkv_sm90_128", 32),
];

/// The numbers of exponentials between each wait for all but one product and the next wait, in the order of the code.
fn overlaps(sass: &str, kernel: &str) -> Vec<usize> {
    let start = format!(".text.{kernel}:");
    let code = sass.lines().skip_while(|line| line.trim() != start).skip(1);
    let code = code.take_while(|line| !line.starts_with(".text."));
    let (mut counts, mut open) = (Vec::new(), None);
    for line in code {
        if line.contains("WARPGROUP.DEPBAR") {
            counts.extend(open.take());
            open = line.contains("gsb0, 0x1").then_some(0);
        } else if line.contains("MUFU.EX2") {
            open = open.map(|count| count + 1);
        }
    }
    counts
}

#[test]
fn exponentials_between_waits_are_counted() {
    let sass = "\
.text.a:
 WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
 MUFU.EX2 R1, R2 ;
 WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
 MUFU.EX2 R1, R2 ;
 WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
 WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
.text.b:
 MUFU.EX2 R1, R2 ;
";
    assert_eq!((overlaps(sass, "a"), overlaps(sass, "b")), (vec![1, 0], vec![]));
}

mod exhaustive {
    use super::*;

    /// ptxas likes to move waits up, before arithmetic that does not need them.
    #[test]
    fn the_softmax_overlaps_the_products() {
        let Some(nvdisasm) = std::env::var_os("NVDISASM").filter(|path| !path.is_empty()) else {
            return eprintln!("the SASS is NOT CHECKED: NVDISASM=$(scripts/nvdisasm.sh)");
        };
        let Ok(nvrtc) = Nvrtc::find(&Search::of(|name| std::env::var_os(name)), None) else {
            return eprintln!("the SASS is NOT CHECKED: SWALLOW_CUDA_LIBS=$(scripts/nvrtc.sh)");
        };
        let (arch, tmp) = (Arch::named("sm_90a").unwrap(), tempfile::tempdir().unwrap());
        let mut seen = 0;
        for file in files_for(arch.target()) {
            let of_file: Vec<_> = OVERLAPPED.iter().filter(|(kernel, _)| file.kernels.contains(kernel)).collect();
            if of_file.is_empty() {
                continue;
            }
            let cubin = tmp.path().join(file.name);
            std::fs::write(&cubin, nvrtc.compile(file, arch).unwrap_or_else(|e| panic!("{e}")).cubin).unwrap();
            let sass = finish(Command::new(&nvdisasm).arg("-c").arg(&cubin)).succeeded().stdout;
            for (kernel, exponentials) in of_file {
                let counts = overlaps(&sass, kernel);
                assert!(!counts.is_empty(), "{kernel}: no wait for a product in the SASS of NVRTC {}", nvrtc.version());
                let fewest = *counts.iter().min().unwrap();
                assert!(
                    fewest >= *exponentials,
                    "{kernel} by NVRTC {}: {counts:?} exponentials before the wait for the second product, of \
                     {exponentials}",
                    nvrtc.version()
                );
                seen += 1;
            }
        }
        assert_eq!(seen, OVERLAPPED.len());
    }
}
