# syntax=docker/dockerfile:1
# Batch prediction: writes masks and overlays for a folder of images.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG UV_VERSION=0.13.9
RUN python -m pip install --no-cache-dir "uv==${UV_VERSION}"
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/venv UV_PYTHON_DOWNLOADS=never
WORKDIR /build
# dependencies change rarely, so they get a layer of their own
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-default-groups --no-install-project --extra store
# remove unused files: OpenVINO plug-ins and readers other than ONNX on a CPU, and tests of large packages
RUN find /opt/venv -path "*/openvino/libs/*" \( -name "*gpu*" -o -name "*npu*" -o -name "*tensorflow*" -o -name "*paddle*" \
        -o -name "*pytorch*" -o -name "*jax*" -o -name "*gguf*" \) -delete \
    && find /opt/venv -type d \( -regex ".*/site-packages/\(matplotlib\|numpy\|pandas\|pyarrow\|scipy\|sklearn\|statsmodels\)/.*tests" \
        -o -name jupyterlab_plotly -o -path "*/pyarrow/include" \) -prune -exec rm -r {} +
COPY README.md LICENSE ./
COPY configs configs
COPY src src
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-default-groups --no-editable --extra store

FROM build AS model
# baked: the image contains the champion; pulled: DVC fetches it from DRONESEG_DVC_REMOTE when the service starts
ARG MODEL=baked
COPY .dvc/config .dvc/config
COPY dvc-remote dvc-remote
COPY nnUNet_results.dvc ./
RUN mkdir /model \
    && case "$MODEL" in \
        baked) /opt/venv/bin/droneseg models pull --remote models && mv nnUNet_results /model ;; \
        pulled) ;; \
        *) echo "MODEL must be baked or pulled, got $MODEL" >&2; exit 1 ;; \
    esac \
    && rm -rf .dvc/cache .dvc/tmp && mv nnUNet_results.dvc .dvc /model

FROM ${BASE_IMAGE}
RUN useradd --create-home --uid 1000 droneseg && mkdir /work && chown droneseg /work
COPY --from=build /opt/venv /opt/venv
COPY --from=model --chown=droneseg /model /work
COPY LICENSE MODEL_LICENSE.md /licenses/
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 DRONESEG_LOG_FORMAT=text
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="droneseg inference" \
      org.opencontainers.image.description="Batch prediction: masks and overlays for a folder of drone photographs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-droneseg-model-non-commercial"
USER 1000
WORKDIR /work
HEALTHCHECK NONE
CMD ["droneseg", "predict", "/input", "--out", "/output", "--overlay"]
