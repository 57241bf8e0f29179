# Everything a newcomer needs: `make demo` shows the main job on a made slide, `make test` runs the tests.
# Both first bring the virtual environment in .venv up to date, which costs nothing when nothing has changed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-peers
DEMO   ?= demo-output

.DEFAULT_GOAL := help
STITCHING := stitching-accuracy stitching-speed stitching-memory
BENCHMARKS := accuracy bit-flips block chaos compare conversion durability empty export-share file-count guide memory mosaics object-table objects open-results open-slide outlines overhead pixel-oracle power-cut rechunk same-results soak structure tile-cost tissue tls view-tiles
.PHONY: help install lock demo test test-fast many-slides full-networks model-card readers screenshots seams slurm-overhead stardist $(BENCHMARKS) $(STITCHING) peers lint format typed imports typecheck clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(STAMP)  ## create or update .venv from requirements.lock

$(STAMP): pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

lock:  ## resolve pyproject.toml anew into requirements.lock (names and versions only)
	@test -x $(BIN)/uv || ($(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet "uv>=0.9")
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group test --group lint \
	    --no-annotate --no-header --upgrade --output-file requirements.lock pyproject.toml

TYPED := $(VENV)/typed

# Where this is set, each of the tests' hundreds of processes compiles anew all that it imports: 3 s of its 5.
unexport PYTHONDONTWRITEBYTECODE

# micro-sam on the CPU is much faster if the process keeps its memory instead of fetching it anew for each array:
# benchmarks/block.py.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_ARENA_MAX=1

demo: install  ## make a slide and segment it with micro-sam, about a minute on two cores; look at the picture that it names
	@$(BIN)/slidesam demo --output $(DEMO)

# Processes that tests run in: most of the time they wait for others. tests/conftest.py says which tests stay together.
AT_ONCE ?= 5

test: lint  ## lint, types and all tests (about 24 minutes on two cores; fast ones alone: make test-fast)
	@$(KEEP_MEMORY) $(BIN)/python -m pytest -n $(AT_ONCE) --dist loadscope --no-loadscope-reorder

test-fast: install  ## the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow"

many-slides: install  ## thirty slides at once on a server with PostgreSQL, 4 minutes
	@SLIDESAM_TEST_SLIDES=30 $(BIN)/python -m pytest -s tests/flows/many/test_operations.py -k many_slides

full-networks: install  ## labels beside micro-sam's with a ViT-B of full size instead of a small one
	@SLIDESAM_TEST_FULL_NETWORKS=1 $(KEEP_MEMORY) $(BIN)/python -m pytest tests/tasks/segmenters/microsam/test_segmenter.py \
	    tests/tasks/segmenters/microsam/test_encoder.py -k "labels or any_batch"

model-card: install  ## the scores in docs/nuclei-small.md, made again from the shipped weights (needs ../shared/data), half an hour
	@$(KEEP_MEMORY) $(BIN)/python -W ignore -m benchmarks.model_card

screenshots: install  ## the browser test, keeping its pictures in screenshots/
	@SLIDESAM_SCREENSHOTS=screenshots $(BIN)/python -m pytest -m browser

$(BENCHMARKS): install
	@$(BIN)/python -m benchmarks.$(subst -,_,$@)

seams: install  ## what block borders change with the model in the package, beside the guide's way (needs ../shared/data)
	@$(KEEP_MEMORY) $(BIN)/python -m benchmarks.seams

$(STITCHING): install
	@$(BIN)/python -m benchmarks.stitching $(@:stitching-%=%) --json benchmarks/results/$@.json

# What the profile has to know of infra/dev-slurm; another Slurm: make slurm-overhead SLURM="--set cpu.partition=NAME".
SLURM ?= --set scheduler.host=10.177.0.1 --set cpu.cores=1 --set cpu.memory=2

slurm-overhead: install  ## what Prefect, Dask and Slurm take (needs a Slurm: infra/dev-slurm/slurm install, then start)
	@$(BIN)/python -m benchmarks.slurm_overhead $(SLURM)

stardist: install  ## the StarDist segmenter against StarDist itself, in an environment of its own, .venv-stardist (2 GB), 3 minutes
	@$(BIN)/python -m benchmarks.stardist_adapter

readers: install  ## what scanpy, spatialdata, geopandas and duckdb read of a result, in an environment of their own, .venv-readers, 2 minutes
	@$(BIN)/python -m benchmarks.readers

peers: $(PEERS)/.installed  ## an environment with the tools that stitching is compared with, in .venv-peers

$(PEERS)/.installed: benchmarks/stitching/peers.txt | install
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python -r benchmarks/stitching/peers.txt
	@touch $@

accuracy:    ## how well `watershed` finds nuclei, in blocks and as a whole (needs ../shared/data)
bit-flips:   ## one flipped bit in each kind of file, before and after a run ended: healed, named, refused, or silent
block:       ## seconds and peak memory of one block, per segmenter
compare:     ## comparing two label images of 20 480 px: seconds and memory beside reading both once, 10 minutes
conversion:  ## converting a slide of 20 000 px beside what this machine can do at best
durability:  ## what fsync and checksums take of a whole run of 20 000 px
empty:       ## what leaving out background saves on a nearly empty slide
export-share: ## what table, outlines and report add to a run on a real slide and on one of 20 000 px: seconds and share
file-count:  ## files that a slide of 100 000 px leaves, while it runs and when it is finished
guide:       ## the guide's figures 1 to 4 again, and false objects at chunk edges; hours on two cores (python -m benchmarks.guide --small: one)
chaos:       ## 100 runs with kills, stops, full disks, clock jumps, a lost network: equal files, nothing done twice, nothing left
stitching-accuracy:  ## stitching: found, exact, merged, split, beside peers (make peers first), 20 minutes
stitching-memory:  ## stitching: peak memory of slides of 8192, 16 384 and 32 768 px
stitching-speed:  ## stitching: seconds beside the raw limit and peers
memory:      ## peak memory of every process for slides of 10 000 and 20 000 px
object-table: ## what measuring an object takes, by part, beside scikit-image: microseconds and memory
open-results: ## which programs open the OME-Zarr 0.5 and 0.4 of a result, in an environment of their own, .venv-open (1 GB), 3 minutes
open-slide:  ## what opening a slide takes in each task: milliseconds and system calls (needs strace, and ../shared/data)
objects:     ## files of 250 000 and 1 000 000 objects: seconds and memory beside the raw limit and other tools (make peers first), 15 minutes
tile-cost:   ## AIS on the CPU: seconds per tile by network and scale, beside micro-sam alone, 6 minutes
outlines:    ## outlines of 2048² labels, their text, and with fewer points: seconds and memory beside rasterio and json.dumps, a minute
overhead:    ## what Prefect and Dask take when segmenting takes 2 s, or 0.1 s, a block
pixel-oracle:  ## pixels of 930 combinations of format, compression and colours by eight writers: right, refused, or wrong, 15 seconds
power-cut:   ## the power fails at every stage, on an ext4 image: the same command finishes with equal bytes (needs root)
rechunk:     ## slides that are costly to read block by block, as they are and rechunked
same-results:  ## digests of three slides' labels, halo strips and tables; --compare shows what a change of code changed
soak:        ## 200 tiny slides in one command: memory, overhead per slide, what is left over
structure:   ## sizes of files, functions and folders, vague names, duplicates
tissue:      ## blocks left out and objects lost on real images (needs ../shared/data)
view-tiles:  ## the viewer on a slide of 20 000 px: milliseconds per tile of image, outlines and density, and per row, 10 minutes
tls:         ## what TLS between Dask's members costs: the same work without and with it, in turns

clean:  ## remove .venv and what was made
	@rm -rf $(VENV) $(PEERS) .venv-stardist .venv-open $(DEMO) build screenshots .venv-readers .mypy_cache .pytest_cache .ruff_cache .hypothesis

lint: install  ## ruff, the rule that keeps the layers apart, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory imports
	@$(MAKE) --no-print-directory typecheck

format: install  ## put the code into ruff's format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# Neither mypy nor import-linter sees an editable install whose folders have other names: both are shown links in the right places.
typed:
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/slidesam
	@cp -rs $(CURDIR)/api/. $(CURDIR)/flows $(CURDIR)/tasks $(TYPED)/slidesam/

imports: typed  ## the rule that keeps the layers apart
	@cd $(TYPED) && ../bin/lint-imports --config $(CURDIR)/pyproject.toml --no-cache

typecheck: typed  ## mypy --strict on the package
	@cd $(TYPED) && MYPYPATH=. ../bin/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p slidesam
