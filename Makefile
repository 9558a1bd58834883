# Everything a fresh checkout needs: `make demo` and `make test` set up, build and run.
# On Debian and Ubuntu scripts/setup.sh installs what is missing; elsewhere it says what to install.

# Open MPI starts nothing as root unless it is told twice, as in a container.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif
# Where rustup puts cargo, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help setup build demo test bench lint
.DEFAULT_GOAL := help

help:          ## This list
	@grep -hE '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/'

setup:
	@scripts/setup.sh

build: setup   ## The program, as target/release/swallow-engine
	cargo build --release

demo: build    ## Train a small Llama on real Japanese and English text (CORPUS=dir: on your own .txt files)
	@scripts/demo.sh

test: setup    ## All tests, those that run the program under mpirun too
	cargo test --release --workspace

bench: setup   ## Criterion benchmarks; benches/README.md has the figures
	cargo bench

lint:          ## What .ci/run asks of the code's form
	cargo fmt --check --all
	cargo clippy --release --workspace --all-targets -- -D warnings
