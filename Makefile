# Everything a fresh checkout needs: `make demo` and `make test` set up, build and run.
# On Debian and Ubuntu scripts/setup.sh installs what is missing; elsewhere it says what to install.

# Open MPI starts nothing as root unless it is told twice, as in a container.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif
# Where rustup puts cargo, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help setup build demo test test-exhaustive mutants campaign fuzz test-all bench lint
.DEFAULT_GOAL := help

help:          ## This list
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/'

setup:
	@scripts/setup.sh

build: setup   ## The program, as target/release/swallow-engine
	cargo build --release

demo: build    ## Teach a small English model Japanese (CORPUS=dir: on your own dir/ja.txt and dir/en.txt)
	@scripts/demo.sh

# Tests whose path contains `exhaustive` take longer than one waits for, and those of a `campaign` longer than continuous
# integration waits for; docs/testing.md says which they are.
test: setup    ## The tests: every kind of thing once, the program under mpirun too
	cargo test --release --workspace -- --skip exhaustive --skip campaign

# The kernels' instructions are checked with compilers and a disassembler from PyPI, unless the variables are set.
test-exhaustive: setup   ## What `make test` leaves out: every layout, killed runs, 60 faults, the kernels' SASS, another MPI
	NVRTCS="$${NVRTCS-$$(scripts/nvrtc.sh all)}" NVDISASM="$${NVDISASM-$$(scripts/nvdisasm.sh)}" \
		cargo test --release --workspace -- exhaustive
	tests/campaign.sh --bounded
	tests/mpich.sh

mutants: setup   ## Every planted bug, delayed streams; writes a dated table into benches/results
	tests/mutants.sh

campaign: setup   ## 1,000 faults in runs and commands; writes a dated table into docs/operations.md (FAULTS=N)
	tests/campaign.sh --table $(or $(FAULTS),1000)

test-all: test test-exhaustive mutants   ## All tests, without the 1,000 faults

# It runs beside the program, which some targets start; both are built with checks of sums that overflow.
fuzz: setup    ## Damaged files for every parser, two hours (MINUTES=n: another time)
	cargo build --profile fuzz -p fuzz -p swallow-engine
	cargo run --profile fuzz -p fuzz -- --minutes $(or $(MINUTES),120)

bench: setup   ## Criterion benchmarks; benches/README.md has the figures
	cargo bench

lint:          ## What .ci/run asks of the code's form
	cargo fmt --check --all
	cargo clippy --release --workspace --all-targets -- -D warnings
