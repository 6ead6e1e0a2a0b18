# The gateway: HTTP, SSE and WebSocket. No torch, so it is small and starts at once.
#
#   docker build -f deploy/gateway.Dockerfile -t headrace-gateway .

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
# a number of their own.
RUN useradd --uid 10001 --gid 0 --create-home --home-dir /home/headrace headrace
# What changes rarely comes first: the dependencies are read out of pyproject.toml, so that a change
# of our own code leaves this layer as it is.
COPY pyproject.toml constraints.txt /tmp/build/
RUN python -c "import tomllib; print(*tomllib.load(open('/tmp/build/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/build/requirements.txt \
 && pip install -c /tmp/build/constraints.txt -r /tmp/build/requirements.txt
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-deps /tmp/dist/*.whl

ENV PYTHONUNBUFFERED=1 HEADRACE_HOST=0.0.0.0 HEADRACE_PORT=8700
USER 10001
EXPOSE 8700
STOPSIGNAL SIGTERM
# Not /readyz: without a ready worker a gateway is healthy all the same, and its jobs wait.
HEALTHCHECK --interval=5s --timeout=5s --start-period=15s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['HEADRACE_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["headrace"]
CMD ["gateway"]
