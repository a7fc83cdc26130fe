# Thin over Meson. `make` builds into build/ and installs nothing; build/bin/ is then usable as is.
#   make demo      a real file system's image: created, filled, damaged, repaired, verified
#   make check     all tests            QCOWKIT_MATRIX=full make check   the long matrix,
#                                       TESTS='--times --only jobs' make check   options of tests/run
#   make bench     ratios beside the installed qemu tools and the raw file
#   make install   PREFIX, BINDIR, LIBDIR, INCLUDEDIR, MANDIR, DESTDIR
#   make asan / make tsan   sanitizer builds, with the tests that fit them
PREFIX ?= /usr/local
DESTDIR ?=
CC ?= cc
BUILD ?= build
JOBS ?= $(shell nproc)

dirs = --prefix=$(PREFIX) \
  $(if $(BINDIR),--bindir=$(BINDIR)) $(if $(LIBDIR),--libdir=$(LIBDIR)) \
  $(if $(INCLUDEDIR),--includedir=$(INCLUDEDIR)) $(if $(MANDIR),--mandir=$(MANDIR))
sanitize = --buildtype=debugoptimized -Db_ndebug=false -Db_lundef=false

.PHONY: all deps demo check bench install asan tsan clean
all: $(BUILD)/build.ninja
	ninja -C $(BUILD) -j $(JOBS)
	@mkdir -p $(BUILD)/bin
	@ln -sf ../tools/qcowkit $(BUILD)/bin/qcowkit
	@ln -sf qcowkit $(BUILD)/bin/qemu-img
	@ln -sf qcowkit $(BUILD)/bin/qemu-io

$(BUILD)/build.ninja:
	scripts/deps build
	CC="$(CC)" meson setup $(BUILD) $(dirs) $(SETUP)

deps:
	scripts/deps build check ci

demo: all
	scripts/deps check
	scripts/demo $(BUILD)/bin

check: all
	scripts/deps check
	tests/run --build $(BUILD) --jobs $(JOBS) $(TESTS)

bench: all
	scripts/deps check
	bench/run --build $(BUILD)

install: all
	meson configure $(BUILD) $(dirs)
	ninja -C $(BUILD) -j $(JOBS)
	DESTDIR="$(DESTDIR)" meson install -C $(BUILD) --no-rebuild

asan:
	$(MAKE) all BUILD=build-asan SETUP='$(sanitize) -Db_sanitize=address,undefined'
	scripts/deps check
	tests/run --build build-asan --jobs $(JOBS) --suites unit,conformance,fuzz

tsan:
	$(MAKE) all BUILD=build-tsan SETUP='$(sanitize) -Db_sanitize=thread'
	scripts/deps check
	tests/run --build build-tsan --jobs $(JOBS) --only model_threads,concurrency,jobs,conformance/chain

clean:
	rm -rf build build-asan build-tsan
