# `make` lists the targets. Each sets the environment up first, which takes seconds once it is there.
VENV ?= .venv
export VENV
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help env build demo test test-slow sanitize lint format benchmark constraints clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: ## make .venv: PyTorch, the OpenMMLab toolboxes, this project
	@tools/setup_env.sh

build: env ## compile the CPU kernels (half a minute, once; without a compiler all works, slower)
	-@$(BIN)/python -m drconv_mm.build

demo: build ## train and evaluate Conv2d and DRConv on four generated tasks, with a report
	@$(BIN)/python tools/suite.py configs/suite/sample.py --resume

# Workers of one thread each: two trainings of two threads on two cores would wait for each other.
JOBS ?= 2
test: build lint ## lint and every test that takes seconds, JOBS=2 at a time (45 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: build ## the tests that train for minutes
	$(BIN)/python -m pytest -m slow -s

SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -g1
sanitize: env ## the tests of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer (minutes)
	DRCONV_MM_CXXFLAGS="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
	$(BIN)/python -m pytest tests/test_ops -k "geometry or wide or threads or topk or empty"

lint: env ## ruff and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: env ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: build ## time the operator against conv2d
	$(BIN)/python tools/benchmark_op.py

constraints: env ## write the versions that are installed to constraints.txt
	@( echo "# Versions that were tested together, beside the pins of setup.cfg. Made with \`make constraints\`."; \
	   $(BIN)/pip freeze --exclude-editable | grep -vE '^(nvidia|cuda|triton|torch|onedl|psutil|ninja|.*@ )' ) > constraints.txt

clean: ## remove what runs leave behind, not .venv
	rm -rf work_dirs data/sample_* build dist .pytest_cache .ruff_cache .hypothesis
