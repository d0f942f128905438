# make demo             set up, then run the main job on the embedded tiny world
# make test             set up, then run the tests, every notebook and every run notebook
# make test-oldest      the tests of model files, with the oldest libraries that are allowed, in an environment of their own
# make lab              set up, then serve this folder in JupyterLab and open the front door, nbs/00_drpose.ipynb
# make browser-test     open door, index, viewers and a job in JupyterLab in a real Chromium without a screen (needs chromium and playwright)
# make setup            only set up: an environment in .venv with the package and its tools
# make weights          train the tiny models of the package again (many hours), then put them in place
# make export           notebooks -> drpose/*.py
# make clean-notebooks  strip execution counts and stray metadata from the notebooks
# make readme           run nbs/index.ipynb and write README.md from it
# make store            run the notebooks named in NOTEBOOKS and store them with their outputs
#
# Variables, e.g. make demo PYTHON=python3.12:
#   PYTHON          the interpreter that the environment is made from, 3.11 or newer
#   VENV            where the environment goes
#   TORCH_ARGS      more pip arguments for torch alone, e.g. --index-url with another build of it
#   DEMO_ARGS       more arguments of `drpose run` for the demo, e.g. -p seed 1
#   NOTEBOOKS       what `make store` runs, e.g. nbs/00_drpose.ipynb
#   PYTEST_ARGS     more pytest arguments, e.g. -k bodies
#   TEST_PROCESSES  how many tests run side by side, best one more than there are cores, since some wait; each takes up to 3 GB

PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
TEST_PROCESSES ?= 3
NOTEBOOKS ?= nbs/00_drpose.ipynb

ENV_PYTHON = $(VENV)/bin/python
INSTALLED = $(VENV)/.drpose_installed
PIP = $(ENV_PYTHON) -m pip install -qq --disable-pip-version-check --constraint constraints.txt
DEMO = outputs/demo

.PHONY: help setup demo test test-oldest lab browser-test weights export clean-notebooks readme store clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(INSTALLED)

# torch goes first and without its dependencies: --index-url in TORCH_ARGS then has to serve torch alone, and what was chosen here is kept by the second install.
$(INSTALLED): constraints.txt setup.py settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "drpose needs Python 3.11 or newer, but PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1); name another one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) pip setuptools
	@$(PIP) --no-deps $(TORCH_ARGS) torch
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# Two threads help the demo when the machine is otherwise idle. Beside other jobs one thread each is several times faster.
demo: export OMP_NUM_THREADS ?= 2
test weights: export OMP_NUM_THREADS ?= 1
demo test weights: export TOKENIZERS_PARALLELISM ?= false

demo: setup
	$(VENV)/bin/drpose run posttrain -f tiny -o $(DEMO) $(DEMO_ARGS)
	@echo; cat $(DEMO)/table.txt
	@echo; echo "Pictures:"; ls $(DEMO)/figures/*.png

test: setup
	@$(ENV_PYTHON) -m pytest -q --durations=10 --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS) tests

test-oldest:
	@echo "Setting up $(VENV)-oldest"
	@$(PYTHON) -m venv $(VENV)-oldest
	@$(VENV)-oldest/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-deps $(TORCH_ARGS) torch
	@$(VENV)-oldest/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints-oldest.txt --editable . pytest
	@OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -q tests/test_model_files.py

# Each job resumes where it was stopped. The order matters: all learn on the autoencoder's latents, the evaluation predictor measures the base, and the skeleton predictor that rewards learns from the base's guesses too.
weights: setup
	@set -e; for job in "train_autoencoder train_autoencoder" "train_autoencoder finish_autoencoder" "train_picture_predictor train_judge" "train_base train_base" "train_pose_estimator train_pose_estimator" "train_base train_conditioned" "train_skeleton_predictor train_predictor"; do \
		set -- $$job; $(VENV)/bin/drpose run $$1 -f $$2; done
	@$(ENV_PYTHON) scripts/ship_weights.py outputs/tiny
	@$(VENV)/bin/drpose run posttrain -f long
	@$(ENV_PYTHON) scripts/ship_weights.py outputs/tiny

lab: setup
	@$(ENV_PYTHON) -m jupyterlab --config=scripts/lab_config.py --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/00_drpose.ipynb

# Not part of `make test`: it needs a browser, which pip does not bring.
browser-test: setup
	@$(ENV_PYTHON) tests/browser_checks.py

store: setup
	@$(ENV_PYTHON) scripts/store_notebook.py $(NOTEBOOKS)

export: setup
	@$(VENV)/bin/nbdev_export

clean-notebooks: setup
	@$(VENV)/bin/nbdev_clean

readme: setup
	@$(ENV_PYTHON) scripts/build_readme.py

clean:
	rm -rf build dist drpose.egg-info
