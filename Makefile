# What a developer types. Each target sets up what it needs; all that has to be there is Python 3.9 or later.

PYTHON ?= python3
PORTS = 8001 8002
# Else each of the many processes that tests start compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# What is imported is compiled then: most of what is installed never is.
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --no-compile

# More for pytest: make test TESTS="tests/unit -k lock".
TESTS =
# In as many processes as the machine is for: "make test PROCESSES=0" runs all in one.
PROCESSES = auto

.PHONY: help test test-fast test-all pythons coverage dist wheels docs demo bench figures clean

help:
	@echo "make test      lint, type check and all tests, in an environment of its own (.venv), in about"
	@echo "               ten minutes on two processors;"
	@echo "               make test TESTS='tests/unit -k lock': some of them, or other options of pytest"
	@echo "make test-fast lint, type check, and the tests of single modules and of the two contracts,"
	@echo "               in a minute"
	@echo "make test-all  the same tests at full length, then make pythons and make coverage: hours"
	@echo "make pythons   most tests, on every Python from 3.9 that is installed; on Debian, it unpacks"
	@echo "               the newest ones into your cache first"
	@echo "make coverage  how much of the package the tests run through, line and branch"
	@echo "make docs      the documentation, into docs/_build/html"
	@echo "make dist      what is published for every platform, into dist"
	@echo "make wheels    the wheels with the compiled path, in containers (needs cibuildwheel)"
	@echo "make demo      a small site on two server processes and a worker; Ctrl-C stops it"
	@echo "               (make demo PORTS='8003 8004': on other ports than 8001 and 8002)"
	@echo "make bench     measures everything, next to its peers, and writes docs/benchmarks (half an hour or more;"
	@echo "               make bench BENCH=--quick: some five minutes)"
	@echo "make clean     removes the environments and everything that was built"

# The tests run whatever the first two say, so that one run tells everything; any failure counts.
# In a new checkout, one process compiles the tests while mypy runs. Else each of several would.
test: .venv/installed
	@status=0; \
	.venv/bin/ruff check . || status=1; \
	[ -e tests/__pycache__ ] || .venv/bin/python -m pytest --collect-only -q >/dev/null 2>&1 & \
	.venv/bin/mypy || status=1; \
	wait; \
	.venv/bin/python -m pytest -n $(PROCESSES) $(TESTS) || status=1; \
	exit $$status

# But for the layers of others: what the contracts say is shown by ours.
test-fast: TESTS = tests/unit tests/conformance --ignore=tests/conformance/test_peers.py \
	-k 'not beside_asgiref_1'
test-fast: test

test-all: export ASGI_IPC_TEST_LENGTH = full
# Some proofs take many minutes. They do not hang.
test-all: override TESTS += -o faulthandler_timeout=3600
test-all: test pythons coverage

pythons: export ASGI_IPC_TEST_LENGTH =
pythons: .venv/installed
	.venv/bin/python -m tests.pythons
	.venv/bin/nox

# What traces the code itself cannot be measured by a tracer, and what races with forks or with
# kills takes too long under one: most proofs of reliability.
UNMEASURED = $(addprefix tests/reliability/test_,corruption.py death.py exceptions.py fork.py \
	history.py model.py threads_and_loops.py torn_writes.py)

coverage: export ASGI_IPC_TEST_LENGTH =
coverage: .venv/installed
	.venv/bin/coverage erase
	.venv/bin/coverage run -m pytest -k 'not bytecode' $(addprefix --ignore=,$(UNMEASURED))
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

# What is published. The wheel is for every Python: without the compiled path.
dist: .venv/installed
	ASGI_IPC_PURE=1 .venv/bin/python -m build

# Wheels with it, in containers, by cibuildwheel.
wheels:
	$(PYTHON) -m cibuildwheel --output-dir dist

docs: .venv/installed
	.venv/bin/python -m sphinx -W --keep-going docs docs/_build/html

# The environment of the tests serves too, where it is there.
DEMO = $(firstword $(wildcard .venv/installed) .venv-demo/installed)
demo: $(DEMO)
	@exec $(dir $(DEMO))bin/python demo/run.py --ports $(PORTS)

# A run also fills in the pages: nobody types a figure.
FIGURES = docs/benchmarks/figures.json
bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks $(BENCH) --json $(FIGURES)
	$(MAKE) figures

# Writes the pages and the plot again, with the figures of the last run.
figures: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.report $(FIGURES) \
	--fill README.rst docs/performance.rst docs/wsgi.rst docs/howto/several-machines.rst

.venv/installed: setup.py pyproject.toml $(wildcard native/*.[ch])
	$(make-environment)
# uv takes seconds where pip takes a minute. It may not know of an index that only pip is told.
	.venv/bin/python $(PIP_INSTALL) uv \
	&& .venv/bin/uv pip install --quiet --python .venv/bin/python --editable '.[test]' \
	|| .venv/bin/python $(PIP_INSTALL) --editable '.[test]'
# Which venv brings before Python 3.12, and nothing here imports.
	.venv/bin/python -m pip uninstall -qq --yes setuptools
	@touch $@

.venv-demo/installed: setup.py pyproject.toml
	$(make-environment)
	.venv-demo/bin/python $(PIP_INSTALL) --editable '.[channels,cli]' 'daphne>=4'
	@touch $@

.venv-bench/installed: setup.py pyproject.toml
	$(make-environment)
	.venv-bench/bin/python $(PIP_INSTALL) --editable '.[bench]'
	@touch $@

# A virtual environment in the folder of the target. Debian and its kin ship Python without ensurepip.
define make-environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' \
	|| { echo "$(PYTHON) is not Python 3.9 or later; name one that is: make PYTHON=/path/to/it ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| { echo "$(PYTHON) cannot make virtual environments; install its venv module (on Debian and" \
	"Ubuntu: apt-get install python3-venv) and try again." >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
endef

clean:
	rm -f asgi_ipc/_native.*.so
	rm -rf .venv .venv-demo .venv-bench .environments .nox build dist docs/_build *.egg-info
	rm -rf .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
