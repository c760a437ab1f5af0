# The front door. `make demo` shows what l2cdb does, `make test` proves it; both install what is
# missing on Debian 12 first. Behind it stands CMake: see CMakePresets.json.

# What Debian packages are needed, once. `make packages` prints them.
BUILD_PACKAGES := cmake ninja-build gcc g++ pkg-config libgomp1 libfaiss-dev libopenblas-dev \
  liblapack-dev libsqlite3-dev libjansson-dev libjpeg62-turbo-dev libpng-dev libwebp-dev \
  libexif-dev libpcre2-dev libutf8proc-dev libxxhash-dev libcsv-dev zlib1g-dev libedit-dev \
  libchafa-dev libglib2.0-dev libuv1-dev node-llhttp
# oneDNN is packaged for 64-bit machines only; without it OpenBLAS does the work.
BUILD_PACKAGES += $(if $(filter amd64 arm64,$(shell dpkg --print-architecture)),libdnnl-dev)
TEST_PACKAGES := libcmocka-dev python3 python3-faiss sqlite3 curl netcat-openbsd tmux less util-linux
DEMO_PACKAGES := lomiri-wallpapers-16.04 mate-backgrounds
FUZZ_PACKAGES := clang libclang-rt-14-dev libomp-dev

BUILD := build/release
PREFIX ?= /usr/local
L2CDB_WERROR ?= OFF
# Which fuzz targets run, and for how many seconds each.
FUZZ_TARGETS ?= $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/*_fuzz.c))
FUZZ_SECONDS ?= 60
JOBS ?= $(shell nproc)

.PHONY: all demo test asan bench fuzz install clean packages build-packages test-packages \
  demo-packages fuzz-packages

all: build-packages
	cmake --preset release -DL2CDB_WERROR=$(L2CDB_WERROR) -DL2CDB_TESTS=OFF
	cmake --build --preset release -j $(JOBS)

# The photos of two Debian packages, or those of the user: make demo PHOTOS=~/Pictures
demo: $(if $(PHOTOS),,demo-packages) all
	@examples/demo.sh $(BUILD)/l2cdb $(PHOTOS)

test: test-packages
	cmake --preset release -DL2CDB_WERROR=$(L2CDB_WERROR) -DL2CDB_TESTS=ON
	cmake --build --preset release -j $(JOBS)
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS) -LE bench

# Unit and command line tests with AddressSanitizer and UndefinedBehaviorSanitizer.
asan: test-packages
	cmake --preset asan -DL2CDB_WERROR=$(L2CDB_WERROR) -DL2CDB_TESTS=ON
	cmake --build --preset asan -j $(JOBS)
	ctest --test-dir build/asan --output-on-failure -j $(JOBS) -LE 'bench|slow'

bench: test-packages
	cmake --preset release -DL2CDB_WERROR=$(L2CDB_WERROR) -DL2CDB_TESTS=ON
	cmake --build --preset release -j $(JOBS)
	ctest --test-dir $(BUILD) --verbose -j 1 -L bench

fuzz: test-packages fuzz-packages
	cmake --preset fuzz -DL2CDB_FUZZ_SECONDS=$(FUZZ_SECONDS)
	cmake --build --preset fuzz -j $(JOBS) --target $(FUZZ_TARGETS)
	@for target in $(FUZZ_TARGETS); do \
	  ctest --test-dir build/fuzz --verbose -R "^$$target$$" || exit 1; \
	done

install: all
	DESTDIR=$(DESTDIR) cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf build

packages:
	@echo $(BUILD_PACKAGES) $(TEST_PACKAGES) $(DEMO_PACKAGES)

# $(call have,PACKAGES): installs those that are missing. Only then is root needed.
define have
	@missing=; for p in $(1); do \
	  dpkg-query -W -f='$${db:Status-Status}' "$$p" 2>/dev/null | grep -qx installed \
	    || missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  echo "installing$$missing"; \
	  log=$$(mktemp); \
	  { $$sudo apt-get -qq update && $$sudo env DEBIAN_FRONTEND=noninteractive \
	    apt-get -qq -y install --no-install-recommends $$missing; } > "$$log" 2>&1 \
	    || { cat "$$log"; rm -f "$$log"; exit 1; }; \
	  rm -f "$$log"; \
	fi
endef

build-packages:
	$(call have,$(BUILD_PACKAGES))

test-packages: build-packages
	$(call have,$(TEST_PACKAGES))

demo-packages:
	$(call have,$(DEMO_PACKAGES))

fuzz-packages:
	$(call have,$(FUZZ_PACKAGES))
