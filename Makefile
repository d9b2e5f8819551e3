# Each target sets up the virtual environment that it needs (.venv*). It needs Python only.
PYTHON ?= python3
VENV   ?= .venv
BENCH  ?= .venv-bench
OLDEST ?= .venv-oldest
FILES  := -n 3 --dist loadfile    # three test files at a time on two cores: many tests wait

.PHONY: quickstart help test test-oldest test-slow test-page lint bench clean

quickstart: $(VENV)/user          ## train a small network on real digits, about a minute
	$(VENV)/bin/python train.py -c configs/quickstart.yaml $(if $(wildcard output/quickstart),--resume)

help:                             ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

test: $(VENV)/dev                 ## tests without a network connection, PyTorch or data
	$(VENV)/bin/python -m pytest $(FILES) -m 'not slow and not torch and not browser'

# Tests that do not depend on the version of Paddle.
ELSEWHERE := batching benchmarks cifar config cores deploy_pictures download forms int8 packing peers photos pictures \
	policies report signals tensors torch_file

test-oldest: $(OLDEST)/ready      ## the same with the oldest supported Paddle and uvicorn
	$(OLDEST)/bin/python -m pytest $(FILES) -m 'not slow and not torch and not browser' $(ELSEWHERE:%=--ignore tests/test_%.py)

test-slow: $(BENCH)/ready         ## slow tests, and parity with PyTorch
	$(BENCH)/bin/python -m pytest -m '(slow or torch) and not browser'

test-page: $(VENV)/dev            ## the server's page in an installed Chromium
	$(VENV)/bin/python -m pytest -m browser

lint: $(VENV)/dev                 ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(BENCH)/ready             ## the figures of docs/performance.md; with PHOTOS=DIR those of photographs
	$(BENCH)/bin/python -m benchmarks $(if $(PHOTOS),--photos $(PHOTOS))

clean:                            ## remove the virtual environments
	rm -rf $(VENV) $(BENCH) $(OLDEST)

$(VENV)/user: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

$(VENV)/dev: requirements-dev.txt deploy/requirements.txt $(VENV)/user
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

$(OLDEST)/ready: requirements-dev.txt requirements.txt deploy/requirements.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -q paddlepaddle==2.6.2 'paddle2onnx<2' uvicorn==0.22.0 starlette==0.27.0 -r requirements-dev.txt
	touch $@

$(BENCH)/ready: requirements-bench.txt requirements-dev.txt requirements.txt deploy/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --disable-pip-version-check -q -r requirements-bench.txt -r requirements-dev.txt
	touch $@
