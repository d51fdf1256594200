# make demo: train, evaluate and show on synthetic persons; make test: prove; make ablation: do masks
# help (hours on a CPU, resumable)? All do their own set-up in .venv; nothing else on the machine is
# touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard csrc/*.* csrc/*/*.*) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test ablation lint docs dist bench gpu-check gpu-ablation clean

# torch comes first: the isolated build of the kernels then finds its headers and downloads nothing
# a second time.
$(VENV)/torch.done:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check torch torchvision
	touch $@

$(VENV)/mmga.done: $(VENV)/torch.done $(KERNELS)
	$(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/mmga.done
	$(BIN)/python -m mmga.demo --out runs/demo

test: $(VENV)/mmga.done
	$(BIN)/python -m pytest -n auto

ablation: $(VENV)/mmga.done
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ablation

lint: $(VENV)/mmga.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cuda_emulation/*')

# The documentation site in site/; a broken link or an unknown name is an error.
docs: $(VENV)/mmga.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir site

# The sdist and the manylinux wheel in dist/, installed and run in fresh environments.
dist: $(VENV)/mmga.done
	$(BIN)/python .ci/dist.py

bench: $(VENV)/mmga.done
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

# Need no network: they run with the Python that has torch, .venv's where there is one. The first
# builds in place and takes eight minutes at most, the second five.
TORCH_PYTHON = $(firstword $(wildcard $(BIN)/python) $(PYTHON))
gpu-check:
	timeout --kill-after=5 485 $(TORCH_PYTHON) -m benchmarks.gpu_check

gpu-ablation:
	timeout --kill-after=5 305 $(TORCH_PYTHON) -m benchmarks.gpu_ablation

clean:
	rm -rf $(VENV) build dist site mmga/_C*.so mmga/_build_info.json
