# Every target works as the first command in a fresh clone: it makes .venv when that is missing or out of date.
BIN := .venv/bin
SPREAD := -n 3 --dist worksteal # much of a test is waiting: three at a time keep two processors busy
RUN := $(BIN)/python -m

.PHONY: help demo check test coverage servers faults kills soak bench bench-setup docs docs-tables wheel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/.ready ## the machine it runs on, watched through Tidings; Ctrl-C ends it
	@$(BIN)/tidings demo

check: .venv/.ready ## what must hold before a commit: lint, types, import rules, fast tests
	@$(BIN)/ruff check -q --output-format=concise .
	@$(BIN)/ruff format -q --check .
	@$(RUN) mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo
	@$(RUN) pytest -q $(SPREAD) -m "not slow"

test: .venv/.ready ## everything, on real servers, which it installs: slow tests, documentation examples
	@$(RUN) tests.servers --install || [ "$$CI" != true ]
	@$(RUN) pytest $(SPREAD) $(COVERED)

coverage: ## the same, told which lines and branches nothing passed; takes twice as long
	@$(MAKE) test COVERED="--cov --cov-report=term"

servers: .venv/.ready ## the brokers and databases of the tests, until Ctrl-C; ARGS="nats redis"
	@$(RUN) tests.servers $(ARGS)

faults: .venv/.ready ## every fault in full: 200 rounds of kill -9, full disks, torn files, ...; docs/reliability.md
	@$(RUN) tests.faults --report docs/reliability.md

kills: .venv/.ready ## patterns and handlers with records, killed a hundred times each; ROUNDS=20
	@TIDINGS_ROUNDS=$(or $(ROUNDS),100) $(RUN) pytest -q -k kill tests/state tests/patterns

soak: .venv/.ready ## a mixed load with random faults, FOR=10m; a plot and a verdict
	@$(RUN) tests.faults.soak --for $(or $(FOR),10m)

bench: .venv/.ready ## speed, measured here, after `make bench-setup` beside others too; ARGS="peers --rounds 5 --save"
	@$(RUN) bench $(ARGS)

bench-setup: .venv/.ready ## the other libraries and servers that `make bench` compares with
	@scripts/bench_setup.sh

docs: .venv/.ready ## the documentation as a site, in site/
	@$(BIN)/mkdocs build -q

docs-tables: .venv/.ready ## pages that are made from the code: what transports can do, the command line, errors, patterns
	@$(RUN) scripts.transport_table > docs/transports.md.new && mv docs/transports.md.new docs/transports.md
	@$(RUN) scripts.cli_reference > docs/reference/cli.md.new && mv docs/reference/cli.md.new docs/reference/cli.md
	@$(RUN) scripts.error_pages > docs/reference/errors.md.new && mv docs/reference/errors.md.new docs/reference/errors.md
	@$(RUN) scripts.pattern_pages

wheel: .venv/.ready ## dist/*.whl
	@$(RUN) build --wheel --no-isolation >/dev/null && ls dist/*.whl

clean: ## everything that was made, .venv too
	@rm -rf .venv build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml scripts/venv.sh
	@scripts/venv.sh
