//! Bugs that are planted into the PTX of `prim.cuh` and `prim_hopper.cuh`, and into the descriptors of `tile_sm90.cuh`:
//! the test of the probes that is named beside each must see it. `forms.rs` has those that change no result here.

use super::forms::{Used, all_complaints};
use super::nvrtc::Change;
use super::text::Module;
use super::{Interpreter, MACHINE, compiler};
use crate::probes_hopper::{
    a_piece_of_memory_comes_whole as bulk, mbarriers_and_barriers_of_warps_order_what_threads_write as barriers,
    products_of_warpgroups as groups, the_copy_engine_swizzles_and_fills_with_zeros as tiles,
};
use crate::{probes, ptx};
use cuda::arch::Arch;
use cuda::kernels::{File, HEADERS};
use emulator::probes::{FILE, HOPPER};
use probes::{
    copies_bring_their_bytes_and_zeros as copies, halves_of_words_as_f16 as f16,
    lanes_hand_each_other_their_values as lanes, matrices_come_in_fragments as fragments,
    memory_keeps_what_it_is_given as memory, packing_rounds_to_nearest_even as packing, products_of_warps as products,
    sums_in_f64 as f64s, sums_products_and_quotients_are_rounded_once as sums, the_larger_of_each_half as halves,
    the_larger_of_two as largest, what_is_approximate_is_near as approximate,
};
use std::panic::catch_unwind;

/// A bug: a passage and its replacement, and the test that must see it.
type Bug = (&'static str, &'static str, &'static str, fn());

/// The operands and halves of `prim.cuh` that are most easily confused.
const OFTEN: [Bug; 7] = [
    ("mma: words of b exchanged", "{%8, %9}, ", "{%9, %8}, ", products),
    ("mma: words of a exchanged", "{%4, %5, %6, %7}, {%8", "{%4, %6, %5, %7}, {%8", products),
    ("ldmatrix: .trans lost", ".x4.trans.shared", ".x4.shared", fragments),
    ("cvt: halves exchanged", "bf16x2.f32 %0, %1, %2", "bf16x2.f32 %0, %2, %1", packing),
    ("shfl: operands exchanged", "bfly.b32 %0, %1, %2", "bfly.b32 %0, %2, %1", lanes),
    ("cp.async: a group too many in flight", r#"%0;" ::"n"(N)"#, r#"%0;" ::"n"(N + 1)"#, copies),
    ("bar.sync lost", "bar.sync 0;", "", memory),
];

const PRIMITIVES: [Bug; 36] = [
    ("mma: sums exchanged", "bf16.f32 {%0, %1, %2, %3}, {%4", "bf16.f32 {%0, %2, %1, %3}, {%4", products),
    ("mma: sums not added to", "{%0, %1, %2, %3};", "{%0, %1, %1, %3};", products),
    ("mma: registers of a exchanged", r#""r"(a[1]), "r"(a[2])"#, r#""r"(a[2]), "r"(a[1])"#, products),
    ("ldmatrix: transposed", ".x4.shared", ".x4.trans.shared", fragments),
    ("ldmatrix: words exchanged", ".x4.shared.b16 {%0, %1", ".x4.shared.b16 {%1, %0", fragments),
    ("ldmatrix.trans: words exchanged", "trans.shared.b16 {%0, %1", "trans.shared.b16 {%1, %0", fragments),
    ("cvt: halves of f16 exchanged", "cvt.rn.f16x2.f32 %0, %1, %2", "cvt.rn.f16x2.f32 %0, %2, %1", f16),
    ("cvt: the other half of an f16 pair", "%0, h;", "%0, l;", f16),
    (
        "mov: halves of an f16 pair exchanged",
        "mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;",
        "mov.b32 {h, l}, %1; cvt.f32.f16 %0, l;",
        f16,
    ),
    ("shfl.idx: operands exchanged", "idx.b32 %0, %1, %2", "idx.b32 %0, %2, %1", lanes),
    ("shfl.idx: another mode", "shfl.sync.idx", "shfl.sync.bfly", lanes),
    ("shfl: lanes clamped", "bfly.b32 %0, %1, %2, 31", "bfly.b32 %0, %1, %2, 15", lanes),
    ("vote: all instead of any", "vote.sync.any", "vote.sync.all", lanes),
    ("vote: the predicate reversed", "setp.ne.u32 p, %1, 0", "setp.eq.u32 p, %1, 0", lanes),
    ("cp.async: all bytes are read", "[%1], 16, %2;", "[%1], 16;", copies),
    ("cp.async: no group is closed", "cp.async.commit_group;", "", copies),
    ("bar.warp.sync lost", "bar.warp.sync 0xffffffff;", "", memory),
    ("ld.shared: words exchanged", "v4.u32 {%0, %1, %2, %3}, [%4]", "v4.u32 {%0, %2, %1, %3}, [%4]", memory),
    ("st.shared: words exchanged", "[%0], {%1, %2, %3, %4}", "[%0], {%2, %1, %3, %4}", memory),
    ("shared memory at a generic address", "cvta.to.shared.u64 t, %1;", "mov.u64 t, %1;", memory),
    ("fma: operands exchanged", "fma.rn.f32 %0, %1, %2, %3", "fma.rn.f32 %0, %1, %3, %2", sums),
    ("div: operands exchanged", "div.rn.f32 %0, %1, %2", "div.rn.f32 %0, %2, %1", sums),
    ("fma of f64: operands exchanged", "fma.rn.f64 %0, %1, %2, %3", "fma.rn.f64 %0, %3, %2, %1", f64s),
    ("max: the smaller of two", "max.f32", "min.f32", largest),
    ("max: the smaller of each half", "max.bf16x2", "min.bf16x2", halves),
    ("max: of one operand", "max.bf16x2 %0, %1, %2", "max.bf16x2 %0, %1, %1", halves),
    ("st.global: words exchanged", "[to], {%1, %2, %3, %4}", "[to], {%2, %1, %3, %4}", memory),
    ("rcp: another function", "rcp.approx", "rsqrt.approx", approximate),
    ("sqrt lost", "sqrt.rn.f32", "mov.f32", sums),
    ("rsqrt: another function", "rsqrt.approx", "rcp.approx", approximate),
    ("lg2: another function", "lg2.approx", "ex2.approx", approximate),
    ("ld.shared: the next word", "ld.shared.u32 %0, [%1]", "ld.shared.u32 %0, [%1 + 4]", memory),
    ("st.shared: the next word", "st.shared.u32 [%0]", "st.shared.u32 [%0 + 4]", memory),
    ("ld.shared: the next f64", "ld.shared.f64 %0, [%1]", "ld.shared.f64 %0, [%1 + 8]", memory),
    ("st.shared: the next f64", "st.shared.f64 [%0]", "st.shared.f64 [%0 + 8]", memory),
    ("ex2: another function", "ex2.approx", "lg2.approx", approximate),
];

const HOPPERS: [Bug; 19] = [
    ("wgmma: a and b exchanged", r#""0") NAMES_32 "}, %32, %33"#, r#""0") NAMES_32 "}, %33, %32"#, groups),
    (
        "wgmma: transposes exchanged",
        r#""0") NAMES_64 "}, %64, %65, p, 1, 1, %66, %67"#,
        r#""0") NAMES_64 "}, %64, %65, p, 1, 1, %67, %66"#,
        groups,
    ),
    ("wgmma: the old sums are added", r#"WGMMA("m64n64k16", "0")"#, r#"WGMMA("m64n64k16", "1")"#, groups),
    (
        "wgmma: nothing is added",
        r#"WGMMA("m64n128k16", "1") NAMES_64 "}, {"#,
        r#"WGMMA("m64n128k16", "0") NAMES_64 "}, {"#,
        groups,
    ),
    ("wgmma: words of a exchanged", "{%32, %33, %34, %35}", "{%32, %34, %33, %35}", groups),
    ("wgmma: sums exchanged", r#""{%0, %1, %2, %3,"#, r#""{%0, %2, %1, %3,"#, groups),
    ("wgmma: b is not transposed", "p, 1, 1, %69", "p, 1, 1, 0", groups),
    ("wgmma: no group is closed", "wgmma.commit_group.sync.aligned;", "", groups),
    ("wgmma: a group too many in flight", r#"%0;" ::"n"(N) : "memory""#, r#"%0;" ::"n"(N + 1) : "memory""#, groups),
    ("TMA: coordinates exchanged", "{%3, %4, %5, %6}", "{%3, %5, %4, %6}", tiles),
    (
        "TMA: the mbarrier for the tile",
        r#""[%0], [%1, {%3, %4, %5, %6}], [%2];""#,
        r#""[%2], [%1, {%3, %4, %5, %6}], [%0];""#,
        tiles,
    ),
    ("bulk copy: bytes and mbarrier exchanged", "[%0], [%1], %2, [%3];", "[%0], [%1], %3, [%2];", bulk),
    (
        "mbarrier: no bytes are announced",
        "arrive.expect_tx.shared::cta.b64 _, [%0], %1",
        "arrive.shared::cta.b64 _, [%0]",
        tiles,
    ),
    (
        "mbarrier: count and address exchanged",
        "init.shared::cta.b64 [%0], %1",
        "init.shared::cta.b64 [%1], %0",
        barriers,
    ),
    ("mbarrier: the wait never ends", "selp.u32 %0, 1, 0, p", "selp.u32 %0, 0, 1, p", barriers),
    (
        "wgmma: a for b",
        r#"WGMMA("m64n64k16", "1") NAMES_32 "}, %32, %33"#,
        r#"WGMMA("m64n64k16", "1") NAMES_32 "}, %32, %32"#,
        groups,
    ),
    (
        "wgmma: b for a",
        r#"WGMMA("m64n128k16", "1") NAMES_64 "}, %64, %65"#,
        r#"WGMMA("m64n128k16", "1") NAMES_64 "}, %65, %65"#,
        groups,
    ),
    ("bar.arrive: id and count exchanged", "bar.arrive %0, %1", "bar.arrive %1, %0", barriers),
    ("bar.sync: id and count exchanged", "bar.sync %0, %1", "bar.sync %1, %0", barriers),
];

const DESCRIPTORS: [Bug; 4] = [
    ("the stride of eight rows doubled", "(EIGHT_ROWS / 16) << 32", "(EIGHT_ROWS / 16) << 33", groups),
    ("the swizzle of 64 bytes", "1ull << 62", "2ull << 62", groups),
    ("the stride of a page halved", "(PAGE / 16) << 16", "(PAGE / 32) << 16", groups),
    ("the start in units of eight bytes", "1ull << 16 | at / 16", "1ull << 16 | at / 8", groups),
];

/// Bugs that change the text alone: a header, a passage and its replacement.
type Malformed = (&'static str, &'static str, &'static str);

const MALFORMED: [Malformed; 12] = [
    ("prim_hopper.cuh", r#"inc.sync.aligned.u32 %0;" ::"n"(N)"#, r#"inc.sync.aligned.u32 %0;" ::"n"(N + 4)"#),
    ("prim_hopper.cuh", r#"dec.sync.aligned.u32 %0;" ::"n"(N)"#, r#"dec.sync.aligned.u32 %0;" ::"n"(N - 8)"#),
    ("prim_hopper.cuh", "p, 1, 1, %37", "p, 1, -1, %37"),
    ("prim_hopper.cuh", "mbarrier.arrive.shared::cta.b64", "mbarrier.arrive.b64"),
    ("prim_hopper.cuh", "fence.mbarrier_init.release.cluster", "fence.acq_rel.cluster"),
    ("prim_hopper.cuh", "fence.proxy.async.shared::cta", "fence.proxy.async.global"),
    ("prim_hopper.cuh", "cp.async.bulk.tensor.4d", "cp.async.bulk.tensor.5d"),
    (
        "prim_hopper.cuh",
        r#"wgmma.wait_group.sync.aligned %0;" ::"n"(N)"#,
        r#"wgmma.wait_group.sync.aligned %0;" ::"n"(N + 8)"#,
    ),
    ("prim_hopper.cuh", "wgmma.fence.sync.aligned", "wgmma.fence.aligned"),
    ("prim.cuh", "bar.sync 0;", "bar.sync 16;"),
    ("tile_sm90.cuh", "1ull << 16 | at / 16", "2ull << 16 | at / 16"),
    ("tile_sm90.cuh", "1ull << 62", "1ull << 49 | 1ull << 62"),
];

fn must_be_malformed(bugs: &[Malformed]) {
    for &(header, find, replace) in bugs {
        let Ok(compiler) = compiler() else { return };
        let ptx = compiler.ptx(&HOPPER, Arch::named("sm_90a").unwrap(), &[Change { header, find, replace }]);
        let module = Module::read(&ptx.unwrap_or_else(|e| panic!("{find}: {e}"))).unwrap();
        assert!(!all_complaints(&module, &mut Used::default()).is_empty(), "{header}: {find} may be {replace}");
    }
}

/// Compiles the probes with the bug, and requires that the test fails for the interpreter's results.
fn must_be_seen(header: &'static str, file: &'static File, bugs: &[Bug]) {
    if compiler().is_err() {
        return;
    }
    for &(what, find, replace, test) in bugs {
        let interpreter = &*Box::leak(Box::new(Interpreter::of(&[Change { header, find, replace }])));
        interpreter.ptx(file).unwrap_or_else(|e| panic!("{what}: {e}"));
        MACHINE.set(Some((interpreter, true)));
        let outcome = catch_unwind(test);
        MACHINE.set(None);
        let Err(complaint) = outcome else { panic!("{header}: {what} is not seen") };
        let complaint = complaint.downcast_ref::<String>().map_or("", String::as_str);
        println!("{header}: {what}: {}", complaint.lines().next().unwrap_or(""));
        let by_result = complaint.contains(ptx::NAME) && !complaint.contains("is not known");
        assert!(by_result, "{header}: {what} fails otherwise: {complaint}");
    }
}

/// A primitive without a bug here might be wrong in any way.
#[test]
fn every_primitive_with_ptx_has_a_bug() {
    let bugs = OFTEN.iter().chain(&PRIMITIVES).chain(&HOPPERS).map(|bug| bug.1);
    let finds = bugs.chain(MALFORMED.iter().map(|bug| bug.1)).collect::<Vec<_>>();
    for header in ["prim.cuh", "prim_hopper.cuh"] {
        let text = HEADERS.iter().find(|h| h.0 == header).unwrap().1;
        let primitives =
            text.split("DEVICE ").skip(1).filter(|code| code.replace("asm volatile(\"\" :", "").contains("asm"));
        let without = primitives.filter(|code| !finds.iter().any(|find| code.contains(find)));
        let names = without.map(|code| code.split('(').next().unwrap()).collect::<Vec<_>>();
        assert_eq!(names, [""; 0], "{header}");
    }
}

#[test]
fn what_is_most_easily_confused_is_seen() {
    must_be_seen("prim.cuh", &FILE, &OFTEN);
}

#[test]
fn malformed_instructions_and_descriptors_are_seen() {
    must_be_malformed(&[MALFORMED[0], MALFORMED[10]]);
}

mod exhaustive {
    use super::*;

    #[test]
    fn each_malformed_instruction_and_descriptor_is_seen() {
        must_be_malformed(&MALFORMED);
        let descriptors = DESCRIPTORS.map(|(_, find, replace, _)| ("tile_sm90.cuh", find, replace));
        must_be_malformed(&descriptors);
    }

    #[test]
    fn each_bug_in_a_primitive_is_seen() {
        must_be_seen("prim.cuh", &FILE, &PRIMITIVES);
    }

    #[test]
    fn each_bug_in_a_primitive_of_sm_90a_is_seen() {
        must_be_seen("prim_hopper.cuh", &HOPPER, &HOPPERS);
    }

    #[test]
    fn each_bug_in_a_descriptor_is_seen() {
        must_be_seen("tile_sm90.cuh", &HOPPER, &DESCRIPTORS);
    }
}
