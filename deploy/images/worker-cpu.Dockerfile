# A worker without a GPU: vLLM's CPU build. It runs eagerly, since there is no C++ compiler in it.
#   docker build -f deploy/images/worker-cpu.Dockerfile --build-arg PIP_EXTRA_INDEX_URL=... -t REGISTRY/baton/worker-cpu:VERSION .
# Pin the base by digest for what you deploy: --build-arg PYTHON=3.11.14-slim-bookworm@sha256:...
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
# Where pip finds PyTorch's CPU build, if not in its usual place: see PyTorch's install page.
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /src
COPY requirements/worker-cpu.lock requirements/build.lock requirements/
# Without a pip of its own, which serves nothing in the image.
RUN python -m venv --without-pip /opt/baton \
 && pip --python /opt/baton/bin/python install --no-cache-dir --no-deps -r requirements/worker-cpu.lock
RUN python -m venv --without-pip /opt/build \
 && pip --python /opt/build/bin/python install --no-cache-dir --no-deps -r requirements/build.lock
COPY . .
RUN /opt/build/bin/python -m build --wheel --no-isolation --outdir /opt/wheel . \
 && pip --python /opt/baton/bin/python install --no-cache-dir --no-deps /opt/wheel/*.whl

FROM python:${PYTHON}
# vLLM's CPU kernels are linked to libnuma, and load without a word when it is not there.
# Debian keeps only the newest build of a version: the base image pins the release, not this line.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 baton \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/baton --shell /usr/sbin/nologin baton \
 && install --directory --owner 10001 --group 10001 /var/lib/baton
COPY --from=build /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BATON_HOME=/var/lib/baton
USER 10001:10001
WORKDIR /var/lib/baton
EXPOSE 8100 5600 5700 5701 8180
ENTRYPOINT ["python", "-m"]
CMD ["decode", "--host", "0.0.0.0"]
