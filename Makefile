# Everything from a bare Python: each target sets up the environment it needs in .venv*.
PYTHON ?= python3
VENV   ?= .venv
BENCH  ?= .venv-bench
OLDEST ?= .venv-oldest
FILES  := -n 3 --dist loadfile    # three files of tests at a time, for two cores: many wait

.PHONY: quickstart test test-oldest test-slow test-page lint bench clean

quickstart: $(VENV)/user          ## train a small network on real digits, about a minute
	$(VENV)/bin/python train.py -c configs/quickstart.yaml $(if $(wildcard output/quickstart),--resume)

test: $(VENV)/dev                 ## the tests that need no network, no PyTorch and no data
	$(VENV)/bin/python -m pytest $(FILES) -m 'not slow and not torch and not browser'

# No matter with which Paddle.
ELSEWHERE := batching benchmarks cifar config cores deploy_pictures download forms int8 packing peers photos pictures \
	policies report signals tensors torch_file

test-oldest: $(OLDEST)/ready      ## the same with the oldest Paddle and uvicorn that are supported
	$(OLDEST)/bin/python -m pytest $(FILES) -m 'not slow and not torch and not browser' $(ELSEWHERE:%=--ignore tests/test_%.py)

test-slow: $(BENCH)/ready         ## the slow ones, and parity with PyTorch
	$(BENCH)/bin/python -m pytest -m '(slow or torch) and not browser'

test-page: $(VENV)/dev            ## the server's page, in Chromium, which must be installed
	$(VENV)/bin/python -m pytest -m browser

lint: $(VENV)/dev                 ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(BENCH)/ready             ## the figures of docs/performance.md; PHOTOS=DIR for those of photographs
	$(BENCH)/bin/python -m benchmarks $(if $(PHOTOS),--photos $(PHOTOS))

clean:
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
