# The load generator: `baton bench`, for a pod beside what it measures.
#   docker build -f deploy/images/bench.Dockerfile -t REGISTRY/baton/bench:VERSION .
# Pin the base by digest for what you deploy: --build-arg PYTHON=3.11.14-slim-bookworm@sha256:...
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY requirements/bench.lock requirements/build.lock requirements/
# Without a pip of its own, which serves nothing in the image.
RUN python -m venv --without-pip /opt/baton \
 && pip --python /opt/baton/bin/python install --no-cache-dir --no-deps -r requirements/bench.lock
RUN python -m venv --without-pip /opt/build \
 && pip --python /opt/build/bin/python install --no-cache-dir --no-deps -r requirements/build.lock
COPY . .
RUN /opt/build/bin/python -m build --wheel --no-isolation --outdir /opt/wheel . \
 && pip --python /opt/baton/bin/python install --no-cache-dir --no-deps /opt/wheel/*.whl

FROM python:${PYTHON}
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
ENTRYPOINT ["baton", "bench"]
