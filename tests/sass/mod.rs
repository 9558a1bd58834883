//! Checks the instructions (SASS) that NVRTC generates for the kernels, on which their speed depends, with each
//! compiler that NVRTCS names (`scripts/nvrtc.sh all`). NVDISASM names the disassembler (`scripts/nvdisasm.sh`).

mod code;
mod path;

use std::collections::BTreeSet;

use cuda::kernels::FILES;

use self::code::Function;

/// The compilers that the promises below were made for.
const COMPILERS: [&str; 3] = ["12.4", "12.9", "13.0"];
const ARCHS: [&str; 2] = ["sm_80", "sm_90a"];

/// The accesses to global memory that kernels promise, on both architectures and with each compiler: the widths,
/// and which loads are in flight before the first of them is waited for, or a store follows. `path::accesses` explains
/// the notation; it shows the way that whole vectors take. By design, four bf16 are 64 bits (AdamW's weights, the input
/// of `widen_bf16`), and single numbers of a row or a warp are 32 or 64.
const VECTORS: [(&str, &str); 48] = [
    ("rmsnorm", "2 x (2 LDG.128 > STG.128) > BAR > STG.32 > 2 x (LDG.128 > STG.128)"),
    ("rmsnorm_recompute", "2 x (2 LDG.128 > STG.128) > LDG.128 + LDG.32 > STG.128 > LDG.128 > STG.128"),
    ("rmsnorm_bwd", "6 LDG.128 + LDG.32 > BAR > 2 STG.128"),
    ("layernorm", "2 x (LDG.128) > 2 x (BAR) > 2 STG.32 > 2 x (2 LDG.128 > STG.128)"),
    ("layernorm_bwd", "6 LDG.128 + 2 LDG.32 > BAR > 2 STG.128"),
    ("embed", "LDG.32 > 4 LDG.128 > 4 STG.128"),
    ("embed_bwd", "4 LDG.128 > 4 x (2 ST.128 > 2 LDG.128)"),
    ("embed_bwd_runs", "2 x (4 LDG.128)"),
    ("add_bias", "2 LDG.128 > STG.128"),
    ("bias_bwd", "4 LDG.128"),
    ("rope", "LDG.128 + LDG.32 > 5 LDG.128 > 2 STG.128"),
    ("qk_norm_rope", "2 LDG.128 + LDG.32 > 4 LDG.128 > 2 LDG.128 > 2 STG.128"),
    ("qk_norm_rope_bwd", "4 LDG.128 + LDG.32 > 4 LDG.128 > 2 STG.128"),
    ("attention_stats_64", "2 x (2 LDG.128) > LDG.32 > 2 STG.32 > LDG.32 > STG.32"),
    ("attention_stats_128", "4 x (2 LDG.128) > LDG.32 > 2 STG.32 > LDG.32 > STG.32"),
    ("attention_stats_256", "8 x (2 LDG.128) > LDG.32 > 2 STG.32 > LDG.32 > STG.32"),
    ("add_sinks", "LDG.128 > STG.128"),
    ("sinks_bwd", "8 LDG.128 + 3 LDG.32"),
    ("swiglu", "2 LDG.128 > STG.128"),
    ("swiglu_bwd", "3 LDG.128 > 2 STG.128"),
    ("swiglu_weighted", "2 LDG.128 + LDG.32 > STG.128"),
    ("swiglu_weighted_bwd", "3 LDG.128 > 2 STG.128"),
    ("clamped_swiglu_weighted", "2 LDG.128 + LDG.32 > STG.128"),
    ("clamped_swiglu_weighted_bwd", "3 LDG.128 > 2 STG.128"),
    ("geglu", "2 LDG.128 > STG.128"),
    ("geglu_bwd", "3 LDG.128 > 2 STG.128"),
    ("gelu", "LDG.128 > STG.128"),
    ("gelu_bwd", "2 LDG.128 > STG.128"),
    ("take_rows_32", "4 LDG.32 > 4 LDG.128 > 4 STG.128"),
    ("take_rows_16", "4 LDG.32 > 4 LDG.128 > 4 STG.128"),
    ("sum_choices", "4 LDG.32 > 4 LDG.128"),
    ("grouped_bias_bwd", "4 LDG.128 + 3 LDG.32"),
    ("grouped_bias_dot", "4 LDG.128"),
    ("xent_stats", "4 LDG.128"),
    ("xent_stats_capped", "4 LDG.128"),
    ("xent_grad", "4 LDG.128 > 4 STG.128"),
    ("xent_grad_capped", "4 LDG.128 > 4 STG.128"),
    ("round_bf16", "2 LDG.128 > STG.128"),
    ("widen_bf16", "LDG.64 > STG.128"),
    ("add_bf16", "2 LDG.128 > STG.128"),
    ("scale_bf16", "LDG.128 > STG.128"),
    ("copy_f32", "LDG.128 > STG.128"),
    ("squares", "LDG.128"),
    ("squares_total", "4 LDG.64"),
    ("checksum_f32", "LDG.128"),
    ("checksum_bf16", "LDG.128"),
    ("adamw", "4 LDG.128 > 3 STG.128 + STG.64"),
    ("adamw_norms", "4 LDG.128 > 3 STG.128 + STG.64"),
];

/// All stores of attention's kernels and of grouped products to global memory, wherever they are: rows have no tails,
/// and those beyond the end of a sequence or of an expert's rows are left out. A logsumexp is 32 bits. Sums of
/// gradients are pairs, or single numbers where they are not aligned; the compilers split two of sm_90a's 64 pairs.
const STORES: [(&str, &str); 44] = [
    ("grouped_nt", "16 STG.128"),
    ("grouped_nn", "16 STG.128"),
    ("grouped_tn_acc", "64 STG.64 + 128 STG.32"),
    ("grouped_nt_sm90", "16 STG.128"),
    ("grouped_nn_sm90", "16 STG.128"),
    ("grouped_tn_acc_sm90", "62 STG.64 + 4 STG.32"),
    ("grouped_nt_unaligned", "128 STG.16"),
    ("grouped_nn_unaligned", "128 STG.16"),
    ("grouped_tn_acc_unaligned", "64 STG.64 + 128 STG.32"),
    ("attention_64", "8 STG.128 + 4 STG.32"),
    ("attention_128", "16 STG.128 + 4 STG.32"),
    ("attention_256", "16 STG.128 + 2 STG.32"),
    ("attention_64_capped", "8 STG.128 + 4 STG.32"),
    ("attention_128_capped", "16 STG.128 + 4 STG.32"),
    ("attention_256_capped", "16 STG.128 + 2 STG.32"),
    ("attention_dkv_64", "24 STG.128"),
    ("attention_dkv_128", "48 STG.128"),
    ("attention_dkv_256", "48 STG.128"),
    ("attention_dkv_64_capped", "24 STG.128"),
    ("attention_dkv_128_capped", "48 STG.128"),
    ("attention_dkv_256_capped", "48 STG.128"),
    ("attention_dkv_sum_64", "8 STG.128"),
    ("attention_dkv_sum_128", "16 STG.128"),
    ("attention_dkv_sum_256", "16 STG.128"),
    ("attention_dq_64", "8 STG.128"),
    ("attention_dq_128", "16 STG.128"),
    ("attention_dq_256", "16 STG.128"),
    ("attention_dq_64_capped", "8 STG.128"),
    ("attention_dq_128_capped", "16 STG.128"),
    ("attention_dq_256_capped", "16 STG.128"),
    ("attention_sm90_64", "4 STG.128 + 2 STG.32"),
    ("attention_sm90_128", "8 STG.128 + 2 STG.32"),
    ("attention_sm90_64_capped", "4 STG.128 + 2 STG.32"),
    ("attention_sm90_128_capped", "8 STG.128 + 2 STG.32"),
    ("attention_dkv_sm90_64", "24 STG.128"),
    ("attention_dkv_sm90_128", "48 STG.128"),
    ("attention_dkv_sm90_64_capped", "24 STG.128"),
    ("attention_dkv_sm90_128_capped", "48 STG.128"),
    ("attention_dkv_sum_sm90_64", "8 STG.128"),
    ("attention_dkv_sum_sm90_128", "16 STG.128"),
    ("attention_dq_sm90_64", "4 STG.128"),
    ("attention_dq_sm90_128", "8 STG.128"),
    ("attention_dq_sm90_64_capped", "4 STG.128"),
    ("attention_dq_sm90_128_capped", "8 STG.128"),
];

/// The kernels of sm_90a that compute exponentials while the tensor cores work, and how many: a thread's elements of P,
/// and in the forward pass two factors that rescale its sums. A cap takes another exponential for each element.
const OVERLAPPED: [(&str, usize); 12] = [
    ("attention_sm90_64", 66),
    ("attention_sm90_128", 66),
    ("attention_dq_sm90_64", 64),
    ("attention_dq_sm90_128", 64),
    ("attention_dkv_sm90_64", 32),
    ("attention_dkv_sm90_128", 32),
    ("attention_sm90_64_capped", 130),
    ("attention_sm90_128_capped", 130),
    ("attention_dq_sm90_64_capped", 128),
    ("attention_dq_sm90_128_capped", 128),
    ("attention_dkv_sm90_64_capped", 64),
    ("attention_dkv_sm90_128_capped", 64),
];

/// The kernels that access single elements.
const SINGLE: [&str; 16] = [
    "add_bias_f32",
    "route",
    "route_counts",
    "route_bwd",
    "route_totals",
    "choices_sort",
    "choices_merge",
    "choices_places",
    "rmsnorm_bwd_unaligned",
    "layernorm_bwd_unaligned",
    "sum_rows",
    "embed_sort",
    "embed_merge",
    "xent_combine",
    "xent_totals",
    "judge",
];

/// The promises that a function breaks.
fn broken(function: &Function) -> Vec<String> {
    let (name, mut broken) = (function.name, Vec::new());
    let row = |table: &[(&str, &'static str)]| table.iter().find(|(kernel, _)| *kernel == name).map(|(_, row)| *row);
    let accesses = row(&VECTORS).map(|promised| (promised, path::accesses(function)));
    let stores = row(&STORES).map(|promised| (promised, path::stores(function)));
    let differing = accesses.into_iter().chain(stores).filter(|(promised, found)| promised != found);
    broken.extend(differing.map(|(promised, found)| format!("{name}: {found:?}, promised {promised:?}")));
    if let Some((_, exponentials)) = OVERLAPPED.iter().find(|(kernel, _)| *kernel == name) {
        let counts = overlaps(function);
        if counts.iter().min().is_none_or(|fewest| fewest < exponentials) {
            broken.push(format!("{name}: {counts:?} exponentials beside products, promised {exponentials}"));
        }
    }
    for at in &function.code {
        let narrow_copy = at.kind() == "LDGSTS" && !at.name.split('.').any(|part| part == "128");
        if narrow_copy || ["LDL", "STL"].contains(&at.kind()) {
            let what = if narrow_copy { "not 128 bits" } else { "local memory" };
            broken.push(format!("{name}: {} {}: {what}", at.name, at.operands));
        }
    }
    broken
}

/// The numbers of exponentials between each wait for all but one product and the next wait, in the order of the code.
/// ptxas likes to move waits up, before arithmetic that does not need them.
fn overlaps(function: &Function) -> Vec<usize> {
    let (mut counts, mut open) = (Vec::new(), None);
    for at in &function.code {
        if at.name.starts_with("WARPGROUP.DEPBAR") {
            counts.extend(open.take());
            open = at.operands.starts_with("gsb0, 0x1").then_some(0);
        } else if at.name.starts_with("MUFU.EX2") {
            open = open.map(|count| count + 1);
        }
    }
    counts
}

#[test]
fn exponentials_between_waits_are_counted() {
    let sass = "\
.text.a:
 /*0000*/ WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
 /*0010*/ MUFU.EX2 R1, R2 ;
 /*0020*/ WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
 /*0030*/ MUFU.EX2 R1, R2 ;
 /*0040*/ WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
 /*0050*/ WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
.text.b:
 /*0000*/ MUFU.EX2 R1, R2 ;
";
    assert_eq!(code::functions(sass).iter().map(overlaps).collect::<Vec<_>>(), [vec![1, 0], vec![]]);
}

#[test]
fn a_broken_promise_is_named() {
    let broken = |name: &str, line: &str| {
        let sass = format!(".text.{name}:\n/*0000*/ LDG.E.128 R4, [R2.64] ;\n/*0010*/ {line} ;\n");
        broken(&code::functions(&sass)[0])
    };
    assert_eq!(broken("copy_f32", "STG.E.128 [R2.64], R4"), [""; 0]);
    let said = broken("copy_f32", "STG.E.64 [R2.64], R4");
    assert_eq!(said, [r#"copy_f32: "LDG.128 > STG.64", promised "LDG.128 > STG.128""#]);
    assert_eq!(broken("attention_dq_128", "STG.E [R2.64], R4").len(), 1);
    assert_eq!(
        broken("attention_dkv_sm90_64", "EXIT"),
        [
            r#"attention_dkv_sm90_64: "", promised "24 STG.128""#,
            "attention_dkv_sm90_64: [] exponentials beside products, promised 32",
        ]
    );
    assert_eq!(broken("sum_rows", "LDL R4, [R1]"), ["sum_rows: LDL R4, [R1]: local memory"]);
    assert_eq!(broken("sum_rows", "LDGSTS.E.64 [R4], [R2.64]"), ["sum_rows: LDGSTS.E.64 [R4], [R2.64]: not 128 bits"]);
    assert_eq!(broken("sum_rows", "LDGSTS.E.BYPASS.128 [R4], [R2.64]"), [""; 0]);
}

/// The author of a new kernel decides what it promises.
#[test]
fn the_tables_name_every_kernel() {
    let promising = VECTORS.iter().chain(&STORES).map(|(kernel, _)| *kernel);
    let named = promising.chain(SINGLE).collect::<Vec<_>>();
    let kernels = FILES.iter().flat_map(|file| file.kernels.iter().copied()).collect::<BTreeSet<_>>();
    assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), kernels);
    assert_eq!(named.len(), kernels.len(), "a kernel is named twice");
    assert!(OVERLAPPED.iter().all(|(kernel, _)| kernels.contains(kernel)));
}

mod exhaustive {
    use std::path::Path;
    use std::process::Command;

    use cuda::compile::Manifest;

    use super::*;
    use crate::common::{engine, finish};
    use crate::kernels::note;

    /// The compiler's version, and the promises that its kernels for an architecture break.
    fn check(nvdisasm: &Path, nvrtc: &Path, arch: &str) -> (String, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let mut build = engine();
        build.args(["kernels", "build", "--arch", arch, "--nvrtc"]).arg(nvrtc).arg("--out").arg(dir.path());
        finish(&mut build).succeeded();
        let pack: Manifest = serde_json::from_slice(&std::fs::read(dir.path().join("manifest.json")).unwrap()).unwrap();
        let mut all = Vec::new();
        for cubin in &pack.cubins {
            all.extend(cubin.warnings.iter().map(|warning| format!("{}: {warning}", cubin.file)));
            let sass = finish(Command::new(nvdisasm).arg("-c").arg(dir.path().join(&cubin.cubin))).succeeded().stdout;
            let functions = code::functions(&sass);
            all.extend(functions.iter().flat_map(broken));
            let names = functions.iter().map(|function| function.name).collect::<BTreeSet<_>>();
            let file = FILES.iter().find(|file| file.name == cubin.file).unwrap();
            let lacking = file.kernels.iter().filter(|kernel| !names.contains(*kernel));
            all.extend(lacking.map(|kernel| format!("{kernel} is not in the SASS of {}", cubin.file)));
        }
        let named = |broken| format!("NVRTC {}, {arch}: {broken}", pack.compiler);
        (pack.compiler.clone(), all.into_iter().map(named).collect())
    }

    #[test]
    fn the_kernels_keep_their_promises_with_each_compiler() {
        let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let (Some(nvdisasm), Some(nvrtcs)) = (named("NVDISASM"), named("NVRTCS")) else {
            return note("the SASS is NOT CHECKED: NVDISASM=$(scripts/nvdisasm.sh) NVRTCS=$(scripts/nvrtc.sh all)");
        };
        let (mut versions, mut broken) = (BTreeSet::new(), Vec::new());
        for nvrtc in std::env::split_paths(&nvrtcs).filter(|folder| !folder.as_os_str().is_empty()) {
            std::thread::scope(|scope| {
                let one = |arch| check(nvdisasm.as_ref(), &nvrtc, arch);
                let running = ARCHS.map(|arch| scope.spawn(move || one(arch)));
                for (version, of_arch) in running.map(|one| one.join().unwrap()) {
                    versions.insert(version);
                    broken.extend(of_arch);
                }
            });
        }
        assert!(!versions.is_empty(), "NVRTCS={} names no folder", nvrtcs.display());
        assert!(broken.is_empty(), "if that is meant, change the tables of this test:\n{}", broken.join("\n"));
        let unseen = COMPILERS.iter().filter(|version| !versions.contains(**version)).copied().collect::<Vec<_>>();
        if !unseen.is_empty() {
            note(&format!("the SASS of NVRTC {} is NOT CHECKED: NVRTCS=$(scripts/nvrtc.sh all)", unseen.join(", ")));
        }
    }
}
