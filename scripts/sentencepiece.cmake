# Read by CMake before SentencePiece's own files (.cargo/config.toml).
set(SPM_ENABLE_SHARED OFF CACHE BOOL "Builds shared libraries in addition to static libraries.")
