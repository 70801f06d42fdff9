.PHONY: lint type test test-all bench docs
lint:     ; uv run ruff check && uv run ruff format --check
type:     ; uv run pyright
test:     ; uv run pytest
test-all: ; uv run pytest -m "slow or not slow"
bench:    ; uv run --group bench python -m tests.benchmarks
docs:     ; uv run python -m zoo leaderboard --readme RESULTS.md && uv run python -m zoo docs docs --readme README.md
