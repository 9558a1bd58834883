//! Compiles the emulator's runtime, the kernels, and the tests' kernels with the host's C++ compiler.

fn main() {
    // The tests compile kernels too, for the same target.
    println!("cargo:rustc-env=EMULATOR_TARGET={}", std::env::var("TARGET").expect("cargo names the target"));
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).define("EMULATOR", None).include("runtime").include("../kernels");
    // A multiplication and an addition must not be fused implicitly: the kernels spell out fused operations.
    build.flag("-ffp-contract=off").flag_if_supported("-Wno-psabi").warnings(true);
    // The compiler would take the extension .cu for an object file.
    build.flag("-xc++");
    for folder in ["runtime", "../kernels", "planted", "probes"] {
        println!("cargo:rerun-if-changed={folder}");
        for file in std::fs::read_dir(folder).expect("a folder of sources").map(|f| f.expect("its files").path()) {
            if file.extension().is_some_and(|e| e == "cpp" || e == "cu") {
                build.file(file);
            }
        }
    }
    // Kernels register themselves at program start: no symbol refers to them.
    build.link_lib_modifier("+whole-archive").compile("emulator");
}
