# One image for the operator, its workers and their drains: `requeue-operator`, `requeue-worker` and `requeue` are on
# its PATH. Every dependency is locked by its hash (`make lock`), and nothing is compiled.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY worker/image/build.lock /src/worker/image/
RUN python3 -m venv /tools \
 && /tools/bin/pip install --quiet --require-hashes --only-binary :all: -r /src/worker/image/build.lock
COPY worker/image/requirements.lock /src/worker/image/
# nkeys alone comes as a source: pure Python, built by the locked setuptools.
RUN /tools/bin/pip wheel --quiet --no-deps --require-hashes --only-binary :all: --no-binary nkeys --no-build-isolation \
      -r /src/worker/image/requirements.lock -w /wheels
COPY pyproject.toml README.md LICENSE /src/
COPY protocol /src/protocol
COPY worker /src/worker
COPY operator /src/operator
# Byte code goes by the source's hash, not its time: the same sources give the same files.
RUN PATH=/tools/bin:$PATH /tools/bin/pip wheel --quiet --no-deps --no-build-isolation /src -w /wheels \
 && python3 -m venv --without-pip /opt/requeue \
 && /tools/bin/pip --python /opt/requeue/bin/python install --quiet --no-compile --no-deps --no-index /wheels/*.whl \
 && /opt/requeue/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/requeue/lib \
 && /tools/bin/cyclonedx-py environment --output-reproducible --of JSON -o /opt/requeue/sbom.cdx.json \
      --pyproject /src/pyproject.toml /opt/requeue/bin/python

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="nats-requeue" \
      org.opencontainers.image.description="Durable delay, retry and dead letters for any NATS client" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/requeue /opt/requeue
ENV PATH=/opt/requeue/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
# docker run IMAGE requeue-worker run ..., requeue-worker drain ..., requeue-operator run ..., or requeue ...
CMD ["requeue-worker", "--help"]
