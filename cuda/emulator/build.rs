//! Compiles the emulator, the kernels, the planted bugs and the probes of its tests with the host's C++ compiler.

/// Folders of sources: those of the library, and those that only its tests need.
const FOLDERS: [&str; 4] = ["runtime", "../kernels", "planted", "probes"];

fn main() {
    FOLDERS.iter().for_each(|folder| println!("cargo:rerun-if-changed={folder}"));
    let shared = compiler().pic(true).opt_level(1).get_compiler();
    let mut words = vec![shared.path().to_str().expect("a path in UTF-8").to_string()];
    words.extend(shared.args().iter().map(|word| word.to_str().expect("an argument in UTF-8").to_string()));
    // The tests compile kernels to shared libraries with the same compiler.
    println!("cargo:rustc-env=EMULATOR_COMPILER={}", words.join("\t"));
    // Clippy links nothing, but runs this again since its checks have a target of their own.
    if std::env::var("RUSTC_WORKSPACE_WRAPPER").is_ok_and(|wrapper| wrapper.ends_with("clippy-driver")) {
        return;
    }
    let mut build = compiler();
    build.opt_level(2).include("runtime").include("../kernels").warnings(true);
    for folder in FOLDERS {
        for file in std::fs::read_dir(folder).expect("a folder of sources").map(|f| f.expect("its files").path()) {
            if file.extension().is_some_and(|e| e == "cpp" || e == "cu") {
                build.file(file);
            }
        }
    }
    // Kernels register themselves when the program starts: nothing refers to them by name.
    build.link_lib_modifier("+whole-archive").compile("emulator");
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").define("EMULATOR", None).debug(false);
    // A product and a sum must not become one operation: what the device fuses is written out.
    build.flag("-ffp-contract=off").flag_if_supported("-Wno-psabi");
    // Kernels end in .cu, which the host's compiler takes for an object.
    build.flag("-xc++");
    build
}
