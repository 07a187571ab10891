# syntax=docker/dockerfile:1
# Training: trains nnU-Net on a dataset, on a GPU or a CPU.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG UV_VERSION=0.13.9
RUN python -m pip install --no-cache-dir "uv==${UV_VERSION}"
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/venv UV_PYTHON_DOWNLOADS=never
WORKDIR /build
# dependencies change rarely, so they get a layer of their own
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-default-groups --no-install-project --extra train --extra store
COPY README.md LICENSE ./
COPY configs configs
COPY src src
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-default-groups --no-editable --extra train --extra store

FROM ${BASE_IMAGE}
RUN useradd --create-home --uid 1000 droneseg && mkdir /work && chown droneseg /work
COPY --from=build /opt/venv /opt/venv
COPY LICENSE /licenses/
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 USER=droneseg HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="droneseg train" \
      org.opencontainers.image.description="Training of nnU-Net for drone photographs, on a GPU or a CPU" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000
WORKDIR /work
HEALTHCHECK NONE
CMD ["droneseg", "train", "preset=gpu"]
