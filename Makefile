# SPDX-License-Identifier: Apache-2.0
# Each target sets up what it needs. More words for the command: make serve ARGS="--port 9000", make test ARGS="-k router".
BIN := .venv/bin
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.hpp')
.DEFAULT_GOAL := help
.PHONY: help setup serve test lint format clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: ## Install everything into .venv; the first time takes some minutes, later ones a moment
	@tools/setup.sh

serve: models/demo/config.demo.json ## Serve the five demo experts on 127.0.0.1:8082
	@$(BIN)/vllm-axion serve models/demo/config.demo.json $(ARGS)

models/demo/config.demo.json: $(wildcard vllm_axion/demo_*.py) vllm_axion/configs/config.demo.json | setup
	@$(BIN)/vllm-axion demo-models models/demo && touch $@

test: lint ## Check style and types, then run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## Check style and types
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy --strict
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: setup ## Apply the formatters
	$(BIN)/ruff check --fix-only --quiet && $(BIN)/ruff format && $(BIN)/clang-format -i $(CXX_FILES)

clean: ## Remove builds, caches and demo models; .venv stays
	rm -rf build dist models/demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .cmake CMakeFiles
	rm -f CMakeCache.txt CMakeInit.txt cmake_install.cmake build.ninja compile_commands.json .ninja_* .skbuild-info.json
