//! Compiles the emulator, the kernels, the planted bugs and the probes of its tests with the host's C++ compiler.

fn main() {
    // The tests compile kernels too, for the same target.
    println!("cargo:rustc-env=EMULATOR_TARGET={}", std::env::var("TARGET").expect("cargo names the target"));
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).define("EMULATOR", None).include("runtime").include("../kernels");
    // A product and a sum must not become one operation: what the device fuses is written out.
    build.flag("-ffp-contract=off").flag_if_supported("-Wno-psabi").warnings(true);
    // Kernels end in .cu, which the host's compiler takes for an object.
    build.flag("-xc++");
    for folder in ["runtime", "../kernels", "planted", "probes"] {
        println!("cargo:rerun-if-changed={folder}");
        for file in std::fs::read_dir(folder).expect("a folder of sources").map(|f| f.expect("its files").path()) {
            if file.extension().is_some_and(|e| e == "cpp" || e == "cu") {
                build.file(file);
            }
        }
    }
    // Kernels make themselves known when the program starts: nothing refers to them by name.
    build.link_lib_modifier("+whole-archive").compile("emulator");
}
