# Everything runs in .venv. A target does only what has changed since it last ran.
#
#   make book     the website: install, execute the chapters, build the pages       (PROFILE=paper JOBS=4)
#   make site     the pages again, from the chapters as they were last executed
#   make pdf      the same pages as one PDF, where LaTeX is installed
#   make test     the whole test suite                                              (ARGS="-k imprint")
#   make lint     style, types and spelling
#   make bench    speed and success against other libraries, in one table            (ARGS=--save)
#   make gpu      what needs a graphics card, in so many minutes     (PYTHON=python3 SIZE=smoke MINUTES=8 OUT=folder)
#   make wheels   the packages that a machine with one, and without a network, may lack   (ARGS="--python 3.12")
#   make serve    show the website at http://localhost:8000                         (PORT=8080)
#   make lab      the chapters as notebooks, in JupyterLab                           (ARGS="--no-browser")
#   make clean    remove what was built; .venv and downloaded data stay

PROFILE ?= cpu
JOBS ?= 2
PORT ?= 8000
SIZE ?= paper
MINUTES ?= 8
OUT ?= _build/gpu
ARGS ?=
VENV ?= .venv

# Paths are relative, and tools are called as modules: the folder's name may hold spaces.
BIN := $(VENV)/bin
PY := "$(BIN)/python"
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --progress-bar off --no-compile
INSTALLED := .venv/.installed
TOOLS := .venv/.installed-tools
LAB := .venv/.installed-lab
SITE := _build/html/.built
PDF := _build/pdf/gradleak.pdf

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1
export PIP_USER := 0

.PHONY: book site pdf test lint bench gpu wheels serve lab clean install tools chapters vendor report latex
.DEFAULT_GOAL := book

book: chapters
	@$(MAKE) site

site: vendor
	@$(MAKE) $(SITE)
	@$(MAKE) report

chapters: install
	@$(PY) -m gradleak_lib run --profile $(PROFILE) --jobs $(JOBS)

vendor: install
	@$(PY) book/vendor.py

# The list of pages is read when make starts, hence the second make above.
SOURCES := _config.yml _toc.yml benchmarks/comparisons.py benchmarks/history.jsonl \
	$(shell find book gradleak_lib notebooks results studies -type f \
	! -name '.*' ! -path '*/__pycache__/*' ! -name '* *' 2>/dev/null)

$(SITE): $(SOURCES)
	@rm -rf _build/html _build/.doctrees _build/jupyter_execute  # pages that are gone, and pages of code, would stay as they were
	"$(BIN)/jupyter-book" build . -n -W --keep-going --quiet
	@touch $(SITE)

report:
	@$(PY) book/report.py

pdf: $(PDF)
	@echo "$(CURDIR)/$(PDF)"

$(PDF): $(SOURCES) | latex install
	@rm -rf _build/pdf
	"$(BIN)/jupyter-book" build . --builder latex --path-output _build/pdf -n -W --keep-going --quiet
	@echo "LaTeX sets it; this takes some minutes"
	@cd _build/pdf/_build/latex && if ! latexmk -xelatex -interaction=nonstopmode -halt-on-error gradleak.tex \
	  >latexmk.txt 2>&1 </dev/null; then grep -A 5 '^!' gradleak.log; \
	  echo "LaTeX failed; what it said is in _build/pdf/_build/latex/latexmk.txt ($(WANTED))" >&2; exit 1; fi
	@mv _build/pdf/_build/latex/gradleak.pdf $@

WANTED := make pdf needs xelatex and latexmk; on Debian and Ubuntu, install texlive-xetex texlive-latex-extra \
	texlive-fonts-recommended latexmk fonts-freefont-otf

latex:
	@command -v xelatex >/dev/null && command -v latexmk >/dev/null || { echo "$(WANTED)" >&2; exit 1; }

test: tools vendor
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: tools
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m codespell_lib
	@for notebook in notebooks/*.md; do \
	  $(PY) -m jupytext --quiet --to py:percent --output - "$$notebook" \
	    | $(PY) -m ruff check --quiet --stdin-filename "$$notebook.py" - || exit 1; \
	done

bench: install
	@$(PY) benchmarks/bench.py $(ARGS)

# The interpreter is the machine's own, with whatever its user has set for it.
gpu: export PYTHONPATH := $(PYTHONPATH)
gpu: export PYTHONNOUSERSITE :=
gpu:
	@$(or $(PYTHON),python3) benchmarks/gpu.py --size $(SIZE) --minutes $(MINUTES) --out "$(OUT)" $(ARGS)

wheels: install
	@$(PY) benchmarks/wheels.py $(ARGS)

serve: site
	@echo "http://localhost:$(PORT) (Ctrl-C ends it)"
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lab: install $(if $(filter .venv,$(VENV)),$(LAB))
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(PY) -m jupyterlab --notebook-dir=. $(ARGS)

clean:
	rm -rf _build book/chapters book/_static/vendor build .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './benchmarks/.venv*' -prune -exec rm -rf {} +

# With VENV=$$CONDA_PREFIX the environment is yours; nothing is installed into it.
install: $(if $(filter .venv,$(VENV)),$(INSTALLED))
tools: install $(if $(filter .venv,$(VENV)),$(TOOLS))

# torch comes first and alone: given a choice, pip would take another build together with the rest. Python compiles
# what it imports; pip would compile everything first, which takes as long as installing it.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    found=$$python; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "gradleak needs Python 3.11, 3.12 or 3.13, and found none; name yours with make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	if $(PY) -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	echo "Making .venv with $$("$$found" --version), then installing; this takes some minutes"; \
	"$$found" -m venv --clear .venv || { \
	  echo "$$found cannot make an environment; on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	$(PIP) $(shell sed -n '/^torch==/p' constraints.txt)
	$(PIP) -c constraints.txt -e '.[book]'
	@touch $@

$(TOOLS): $(INSTALLED)
	$(PIP) -c constraints.txt -e '.[test,lint]'
	@touch $@

$(LAB): $(INSTALLED)
	$(PIP) -c constraints.txt -e '.[lab]' || { \
	  echo "make lab installs JupyterLab the first time, and could not: is there a network?" >&2; exit 1; }
	@touch $@
