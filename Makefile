PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONTAINER_TOOL ?= docker
CONTAINER_BUILD_FLAGS ?=
REGISTRY ?= ghcr.io/gpumon/
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/gpumon/__init__.py)
READY := $(VENV)/.ready
KIND ?= kind
KUBECTL ?= kubectl
HELM ?= helm
CLUSTER ?= gpumon
IN_KIND = $(KUBECTL) --context kind-$(CLUSTER)
KIND_HELM_ARGS = $(foreach component,agent server,--set $(component).image.repository=$(REGISTRY)gpumon-$(component) \
	--set-string $(component).image.tag=$(VERSION))
# Else docker saves an index of image and attestation, which kind can't load.
export BUILDX_NO_DEFAULT_ATTESTATIONS ?= 1
ifeq ($(notdir $(CONTAINER_TOOL)),podman)
export KIND_EXPERIMENTAL_PROVIDER ?= podman
endif
needs = @command -v $(1) >/dev/null || { echo '$(1) is missing; $(2)' >&2; exit 1; }

.PHONY: demo test lint bench bench-storage bench-attribution chart clean config images images-test kind-up kind-test kind-down e2e

$(READY): pyproject.toml constraints.txt src/gpumon/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)  ## a server and simulated GPU nodes on this machine; Ctrl+C stops all
	$(BIN)/gpumon demo

lint: $(READY)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## everything that must hold
	$(BIN)/python -m tests.chart.tools
	$(BIN)/pytest -n auto --dist worksteal

bench: $(READY)  ## what agent and server cost; takes ten minutes
	$(BIN)/python -m bench.nvml_calls
	$(BIN)/python -m bench.agent
	$(BIN)/python -m bench.agent_pods
	$(BIN)/python -m bench.ingest
	$(BIN)/python -m bench.openloop

bench-storage: $(READY)  ## 51.8 M samples sealed and asked, beside VictoriaMetrics and Prometheus, growth, an hour's soak; takes a day
	$(BIN)/python -m bench.queries
	$(BIN)/python -m bench.rivals
	$(BIN)/python -m bench.growth
	$(BIN)/python -m bench.soak

bench-attribution: $(READY)  ## whose use it was, against scenes of known truth; writes README's table; two minutes
	$(BIN)/python -m bench.attribution --write-readme

config: $(READY)  ## writes config/*.ini anew from the settings classes
	$(BIN)/gpumon config server > config/server_config.ini
	$(BIN)/gpumon config agent > config/client_config.ini

chart: $(READY)  ## writes the chart's schema, its README's table and the golden renders anew
	$(BIN)/python -m tests.chart.generated

images:  ## both container images, by docker, podman or buildah (CONTAINER_TOOL)
	for component in agent server; do \
		$(CONTAINER_TOOL) build $(CONTAINER_BUILD_FLAGS) -f images/$$component/Dockerfile \
			-t $(REGISTRY)gpumon-$$component:$(VERSION) --build-arg VERSION=$(VERSION) \
			--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null) . || exit 1; \
	done

images-test: $(READY)  ## builds both and runs them; needs root, make, buildah, debootstrap, a Debian mirror, an index
	GPUMON_TEST_IMAGES=1 $(BIN)/pytest tests/images

kind-up:  ## a kind cluster with simulated GPUs, gpumon and sample pods; once more: with the code as it is now
	$(call needs,$(KIND),get it from https://kind.sigs.k8s.io or set KIND)
	$(call needs,$(KUBECTL),get it from https://kubernetes.io/docs/tasks/tools or set KUBECTL)
	$(call needs,$(HELM),get it from https://helm.sh or set HELM)
	$(call needs,$(CONTAINER_TOOL),install docker or podman and set CONTAINER_TOOL)
	@$(CONTAINER_TOOL) ps >/dev/null || { echo '$(CONTAINER_TOOL) does not work here; kind needs docker or podman, running' >&2; exit 1; }
	$(KIND) get clusters | grep -qx '$(CLUSTER)' || \
		$(KIND) create cluster --name $(CLUSTER) --config kind-config.yaml --wait 3m
	$(KIND) export kubeconfig --name $(CLUSTER)
	$(MAKE) images
	@# By an archive, as `kind load docker-image` knows docker alone.
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && for component in agent server; do \
		$(CONTAINER_TOOL) save -o "$$folder/$$component.tar" $(REGISTRY)gpumon-$$component:$(VERSION) && \
		$(KIND) load image-archive --name $(CLUSTER) "$$folder/$$component.tar" || exit 1; \
	done
	for namespace in gpumon gpumon-samples; do \
		$(IN_KIND) create namespace $$namespace --dry-run=client -o yaml | $(IN_KIND) apply -f - || exit 1; \
	done
	$(IN_KIND) label --overwrite namespace gpumon pod-security.kubernetes.io/enforce=privileged
	$(IN_KIND) label --overwrite namespace gpumon-samples pod-security.kubernetes.io/enforce=restricted
	@# The images may be others under the same names, of which helm can't know.
	$(IN_KIND) -n gpumon rollout restart deployment,daemonset -l app.kubernetes.io/instance=gpumon 2>/dev/null || true
	$(HELM) --kube-context kind-$(CLUSTER) upgrade --install gpumon charts/gpumon -n gpumon \
		-f charts/gpumon/ci/kind-values.yaml $(KIND_HELM_ARGS) --wait --timeout 5m
	@# Anew: the image of a Job can't be changed.
	$(IN_KIND) -n gpumon-samples delete deployments,jobs,pods -l app.kubernetes.io/part-of=gpumon-samples \
		--ignore-not-found --cascade=foreground
	for sample in tests/kind/*.yaml; do \
		sed 's|image: IMAGE$$|image: $(REGISTRY)gpumon-server:$(VERSION)|' $$sample && echo --- || exit 1; \
	done | $(IN_KIND) -n gpumon-samples apply -f -
	$(IN_KIND) -n gpumon-samples rollout status deployment/notebook --timeout=3m
	$(IN_KIND) -n gpumon-samples wait --for=jsonpath='{.status.ready}'=1 job/train --timeout=3m
	$(IN_KIND) -n gpumon-samples wait --for=condition=Ready pod/forgotten --timeout=3m
	@echo
	@echo 'Now:   $(IN_KIND) -n gpumon port-forward svc/gpumon-server 5000'
	@echo 'open:  http://localhost:5000/docs'
	@echo '       http://localhost:5000/api/pods                 train at 80 %, notebook at 30 %, forgotten at 0 %'
	@echo '       http://localhost:5000/api/idle?at_least=1m     forgotten'
	@echo 'check: make kind-test     end: make kind-down'

kind-test: $(READY)  ## the tests of tests/cluster on the cluster of `make kind-up`
	$(call needs,$(KIND),get it from https://kind.sigs.k8s.io or set KIND)
	kubeconfig=$$(mktemp) && trap 'rm -f "$$kubeconfig"' EXIT && \
		{ $(KIND) get kubeconfig --name $(CLUSTER) > "$$kubeconfig" || { echo 'no cluster $(CLUSTER); make kind-up makes it' >&2; exit 1; }; } && \
		$(MAKE) e2e KUBECONFIG="$$kubeconfig" E2E_HELM_ARGS="$(KIND_HELM_ARGS) $(E2E_HELM_ARGS)"

kind-down:  ## deletes the cluster of `make kind-up`
	$(call needs,$(KIND),get it from https://kind.sigs.k8s.io or set KIND)
	$(KIND) delete cluster --name $(CLUSTER)

e2e: $(READY)  ## the tests of tests/cluster on the cluster that KUBECONFIG names; see tests/cluster/conftest.py
	GPUMON_E2E=1 $(BIN)/pytest -vv -rs tests/cluster

clean:
	rm -rf $(VENV) build dist src/*.egg-info
