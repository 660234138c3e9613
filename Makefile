# The two commands: `make demo` and `make test`. Both set up .venv first; constraints.txt pins what was tested.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint suite wheel pages mutants slow clean

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/vrpo demo --output_dir demo  # small matrices: a second thread mostly waits

test: lint suite wheel

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

suite: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The wheel as a stranger gets it: built, installed without its source near, imported and asked for help.
wheel: $(STAMP)
	rm -rf build/wheel && mkdir -p build/wheel/empty
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . > build/wheel/build.log
	$(PYTHON) -m venv --without-pip build/wheel/venv
	$(BIN)/pip --python build/wheel/venv/bin/python install -q --no-deps build/wheel/*.whl
	cd build/wheel/empty && PYTHONPATH=$$(../../../$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		../venv/bin/python -P -c "import vrpo, sys; assert 'build/wheel/venv' in vrpo.__file__, vrpo.__file__; \
		from vrpo import DPO, FixedCount, VRPOTrainer, elbo, generate, load; print('wheel imports:', vrpo.__version__); \
		from vrpo.cli import main; assert main(['train', '--help']) == 0" > help.txt
	grep -q -e --num_times build/wheel/empty/help.txt
	head -1 build/wheel/empty/help.txt

# The help of each command, made of its parser; tests/e2e/test_door.py compares.
pages: $(STAMP)
	$(BIN)/python -c "from vrpo.cli.page import write_pages; write_pages()"

# What the suite would miss: every mutant must be killed. Minutes; also run by `make slow`.
mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.run

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=24"
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e ".[plots,test]" -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache
