# SPDX-License-Identifier: Apache-2.0
# The verbs of this project.  Each begins by bringing the build up to date, and says in one line what is missing when it
# cannot go on.

VENV := .venv
STAMP := $(VENV)/.madfs-installed
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q

# --- build: leaves $(VENV)/bin/madfs and $(VENV)/bin/python usable ---------------------------------------------------

.PHONY: build clean

build: $(STAMP)
	@$(VENV)/bin/python setup.py -q build_ext --inplace

# What the environment holds, made when the lists of it change; the sources are looked at by setup.py each time.
$(STAMP): packages.txt requirements.txt pyproject.toml bin/madfs
	@case "$$PWD" in *[[:space:]:]*) echo "madfs build: $$PWD: LD_PRELOAD cannot name a path with blanks or colons; move" \
	  "this directory to one without" >&2; exit 1;; esac
	@$(install_packages)
	@echo "making the virtual environment $(VENV)"
	@test -x $(VENV)/bin/python || { python=/usr/bin/python3.11; test -x $$python || python=python3.11; \
	  $$python -m venv $(VENV); }
	@echo "installing what requirements.txt lists"
	@$(call logged,pip,$(PIP) install -r requirements.txt)
	@$(VENV)/bin/python setup.py -q build_ext --inplace
	@$(call logged,pip,$(PIP) install --no-build-isolation --no-deps -e .)
	@touch $@

# $(call logged,NAME,COMMAND): what COMMAND says goes to build/NAME.log; if it fails, the last error in it is shown.
define logged
mkdir -p build; { $(2); } >build/$(1).log 2>&1 || { \
  echo "madfs build: $(1) failed: $$(grep -iE 'error|^E:' build/$(1).log | tail -n 1); is there a network? see build/$(1).log" >&2; \
  exit 1; }
endef

# Elsewhere than on Debian, setup.py says what it lacks.
define install_packages
command -v dpkg-query >/dev/null || exit 0; missing=; \
for package in $$(sed 's/#.*//' packages.txt); do \
  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; done; \
test -n "$$missing" || exit 0; \
test $$(id -u) = 0 || { echo "madfs build: packages are missing: sudo apt-get install$$missing" >&2; exit 1; }; \
echo "installing$$missing"; export DEBIAN_FRONTEND=noninteractive; \
$(call logged,apt-get,apt-get -q update && apt-get -q -y install --no-install-recommends $$missing)
endef

clean:
	rm -rf build $(VENV) pymadfs.egg-info pymadfs/_lib pymadfs/_ucx_cffi.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what is done with it --------------------------------------------------------------------------------------------

.PHONY: run test test-long check generate bench

run: build
	@examples/run.sh

test: build
	@$(VENV)/bin/python -m pytest -q -m "not long"

test-long: build
	@$(VENV)/bin/python -m pytest -q -m long

check: build
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/python -m pymadfs.generate --check

generate: build
	@$(VENV)/bin/python -m pymadfs.generate

bench: build
	@$(VENV)/bin/python -m bench | while read -r name _; do $(VENV)/bin/python -m bench "$$name" --json || exit 1; done
