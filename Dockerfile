# Two images from one file:
#   gateway   HTTP and the queue's front, and as `courier` all that calls other hosts; no torch, no av
#   worker    the networks and the video; uses an NVIDIA GPU if the container is given one, else runs on the CPU
#
#   docker build --target gateway --tag twostep-vsr-gateway .
#   docker build --target worker --tag twostep-vsr-worker .

# Any Debian with Python 3.11 or newer and its venv module will do.
ARG BASE_IMAGE=python:3.11.15-slim-bookworm

# ---------------------------------------------------------------------------------------------------------------- base
FROM ${BASE_IMAGE} AS base

# In a virtual environment, because Debian's own Python refuses to have anything installed into it.
ENV PATH="/venv/bin:${PATH}" \
    PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    VSR_STORAGE_DIR=/data \
    VSR_WEIGHTS_DIR=/weights

# A new named volume takes the owner of the folder it covers, so the folders are made here, as the user who will write.
RUN python3 -m venv /venv \
 && groupadd --gid 10001 vsr \
 && useradd --uid 10001 --gid vsr --no-create-home --home-dir /tmp vsr \
 && install --directory --owner vsr --group vsr --mode 0700 /data /weights

WORKDIR /vsr

# ------------------------------------------------------------------------------- dependencies: rebuilt only when they change
FROM base AS gateway-dependencies

COPY pyproject.toml ./
# No package is here yet, so this installs an empty shell and everything that it depends on.
RUN --mount=type=cache,target=/var/cache/pip \
    touch README.md LICENSE \
 && pip install '.[tracing]'

FROM gateway-dependencies AS worker-dependencies

# A folder or page of wheels that pip looks at besides its index, for a torch other than the default (CUDA) one:
# point it at the wheel you want, e.g. a CPU-only build of the same version, and the worker image shrinks to a quarter.
ARG PIP_FIND_LINKS=

RUN --mount=type=cache,target=/var/cache/pip \
    pip install '.[worker,tracing]'

# ------------------------------------------------------------------------------------------------------------- gateway
FROM gateway-dependencies AS gateway

COPY . .
# Readable by the image's user also where the checkout was made by someone who keeps files private (umask 077).
RUN --mount=type=cache,target=/var/cache/pip \
    chmod -R a+rX . \
 && pip install --no-deps --editable .

# The metrics have a port of their own, for Prometheus on the inner network: with the API they would need a key.
ENV VSR_HOST=0.0.0.0 \
    VSR_PORT=8000 \
    VSR_GATEWAY_METRICS_HOST=0.0.0.0 \
    VSR_GATEWAY_METRICS_PORT=9102
EXPOSE 8000
EXPOSE 9102
# Of `vsr courier`, its metrics.
EXPOSE 9101
USER 10001:10001

# Alive, not ready: a gateway whose Redis is away must be left running, and says so at /readyz.
HEALTHCHECK --interval=5s --timeout=4s --start-period=20s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]

ENTRYPOINT ["vsr"]
CMD ["gateway"]

# -------------------------------------------------------------------------------------------------------------- worker
FROM worker-dependencies AS worker

COPY . .
RUN --mount=type=cache,target=/var/cache/pip \
    chmod -R a+rX . \
 && pip install --no-deps --editable .

# Read by NVIDIA's container runtime, ignored without it: `video` brings NVDEC and NVENC, which are not in `compute`.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    VSR_METRICS_HOST=0.0.0.0 \
    VSR_METRICS_PORT=9100
EXPOSE 9100
USER 10001:10001

# No HEALTHCHECK here: outside compose a worker may run with its metrics port off. docker-compose.yml has one.
ENTRYPOINT ["vsr"]
CMD ["worker"]
