# shellcheck shell=bash disable=SC2154,SC2034
# Part of tests/gpu.sh: builds what is copied to a machine that has neither Rust nor MPI.

# Libraries that every machine has; the others that a program is linked with are copied.
EVERYWHERE='linux-vdso|ld-linux|lib(c|m|dl|pthread|rt|resolv|util)\.so|libgcc_s|libstdc\+\+'
# Components of Open MPI that need a cluster's network or its scheduler.
ELSEWHERE='ucx|ofi|psm|openib|verbs|usnic|oshmem|memheap|scoll|spml|sshmem|slurm|gridengine|flux|jsm|java'
# The most MiB to copy.
ROOM=56

part_build() {
    have cargo || { skip "this machine has no cargo"; return; }
    # A folder `kernels` beside the program would be taken for a pack.
    rm -rf "${gpu:?}"/{kernels,kernel-tests,bench,whole,swallow-engine,openmpi,lib,manifest} && mkdir -p "$gpu/lib"
    local tests bench whole
    # Building the tests also builds the program that they start.
    tests=$(program test --release --workspace --test kernels)
    whole=$(program test --release --workspace --test whole)
    bench=$(program bench --workspace --bench kernels)
    carry "$tests" kernel-tests && carry "$bench" bench && carry "$whole" whole &&
        carry target/release/swallow-engine swallow-engine || return
    part_of_mpi && libraries || return
    manifest >"$gpu/manifest" || { fail "no manifest of $gpu"; return; }
    local size
    size=$(du -cm "$gpu"/{kernel-tests,bench,whole,swallow-engine,openmpi,lib,manifest} | tail -n 1 | cut -f1)
    why="$size MiB in $gpu"
    [ "$size" -le "$ROOM" ] || fail "$why, more than the limit of $ROOM MiB"
}

# The path of the program that cargo builds.
program() { cargo "$@" --no-run 2>&1 | tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p'; }

carry() {
    [ -n "$1" ] || { fail "cargo did not name the program $2"; return; }
    strip -o "$gpu/$2" "$1" || { fail "$1 cannot be stripped"; return; }
}

# The installed Open MPI: mpirun, its components and help texts, and those of PMIx.
part_of_mpi() {
    local to=$gpu/openmpi pmix
    have ompi_info || { fail "this machine has no Open MPI (ompi_info)"; return; }
    mkdir -p "$to"/{bin,etc,lib/components,lib/pmix,lib/hwloc,share}
    cp -L "$(command -v mpirun)" "$to/bin/mpirun" && cp -L "$(command -v orted)" "$to/bin/orted"
    components "$(mpi_path pkglibdir)" "$to/lib/components"
    cp "$(mpi_path pkgdatadir)"/*.txt "$to/share/"
    pmix=$(ldd "$to"/lib/components/mca_pmix_ext*.so 2>/dev/null | awk '/libpmix/ { print $3 }')
    # All of PMIx's components: a missing one would be loaded from the place of installation, if that exists.
    [ -z "$pmix" ] || cp -L "$(dirname "$(readlink -f "$pmix")")"/pmix/*.so "$to/lib/pmix/"
    [ -x "$to/bin/mpirun" ] && [ -n "$(ls "$to/lib/components")" ] || fail "parts of Open MPI were not found"
}

mpi_path() { ompi_info --parsable --path "$1" | sed -n "s/^path:$1://p" | head -n 1; }

components() {
    local file
    for file in "$1"/*mca_*.so; do
        [[ $(basename "$file") =~ $ELSEWHERE ]] || cp -L "$file" "$2/"
    done
}

# The libraries that the programs and components are linked with.
libraries() {
    local file
    for file in $(ldd "$gpu"/{kernel-tests,bench,whole,swallow-engine} "$gpu"/openmpi/{bin/*,lib/*/*.so} 2>/dev/null |
        awk '$2 == "=>" && $3 ~ "^/" { print $3 }' | sort -u | grep -Ev "/($EVERYWHERE)"); do
        cp -L "$file" "$gpu/lib/" || { fail "$file cannot be copied"; return; }
    done
}

manifest() {
    local changed=
    git diff --quiet HEAD -- || changed=", with changes"
    echo "commit $(git rev-parse HEAD)$changed"
    (cd "$gpu" && find kernel-tests bench whole swallow-engine openmpi lib -type f -print0 | sort -z |
        xargs -0 sha256sum)
}
