# Two commands matter: `make demo` (the main job, on the embedded model) and `make test`. Each sets itself up.

# Tests start hundreds of processes: compiled once, and not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick quick-pythons test-slow test-harnesses fuzz check setup clean

demo: setup
	@scripts/install-bubblewrap
	.venv/bin/dfqs demo --out dfqs-demo

# How many processes share the tests; each starts processes of its own, with as many threads as there are cores.
JOBS ?= 2

test: setup
	@scripts/install-bubblewrap
	.venv/bin/python -m pytest -n $(JOBS) --dist worksteal

# The tests that need neither a model nor a process, nor seconds of computing: what to run while writing.
quick: setup
	.venv/bin/python -m pytest -q --quick -n $(JOBS) --dist worksteal

# The same on every other supported Python that is installed here.
quick-pythons: setup
	scripts/quick-pythons

# What takes more than a few minutes: full kill runs, large sparse files, builds repeated.
test-slow: setup
	@scripts/install-bubblewrap
	.venv/bin/python -m pytest -m slow --timeout 3600

# Tasks of lm-evaluation-harness and inspect_ai through our model, in an environment of their own: they take a gigabyte.
# (transformers: the tokenizer that the first one's client of OpenAI's API cuts contexts with.)
test-harnesses:
	test -d .venv-harnesses || python3 -m venv .venv-harnesses
	.venv-harnesses/bin/pip install -q -e '.[lm-eval,inspect]' transformers pytest pytest-timeout hypothesis gguf==0.19.0
	.venv-harnesses/bin/python -m pytest -m harnesses --timeout 3600 tests/evaluate

# Mutated documents for every reader, FUZZ_MINUTES in all (10); what is found stays in tests/fuzz/seeds.
fuzz: setup
	PYTHONPATH=tests .venv/bin/python -W ignore -m fuzz.run

check: setup
	scripts/check

setup:
	@scripts/setup

clean:
	rm -rf .venv .venv-3.* dfqs-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
