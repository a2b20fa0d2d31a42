# Image: the locked packages and this project in one virtual environment, run by a user without rights.
#
# About 7.6 GB, by what the same steps weighed outside: torch, its CUDA libraries and triton are 5.2 of them. No build
# argument leaves them out: PyPI's torch for x86-64 does not import without them, and the builds without CUDA lie on
# another index, under other hashes than those of constraints.txt.

FROM python:3.11.16-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/xinfluencer PATH=/opt/xinfluencer/bin:$PATH
WORKDIR /src
# As `make venv`: pip brings a pinned uv, uv brings the rest, every file checked against its hash.
COPY constraints.txt constraints-nodeps.txt ./
RUN python -m venv "$VIRTUAL_ENV" \
 && sed -n '/^uv==/,/[^\\]$/p' constraints.txt > uv.txt \
 && python -m pip install --require-hashes -r uv.txt \
 && uv pip install --require-hashes -r constraints.txt \
 && uv pip install --require-hashes --no-deps -r constraints-nodeps.txt
COPY pyproject.toml LICENSE ./
COPY schemas schemas
COPY native native
COPY models models
COPY agents agents
COPY streams streams
# Without its extension the project installs too, and answers slowly: here a compiler is at hand, so that is an error.
RUN uv pip install --no-deps --no-build-isolation . \
 && cd / && python -c 'import native; assert native.backend() != "reference", native.backend()' \
 && uv pip uninstall cmake ninja ruff mypy pytest pytest-timeout pytest-xdist hypothesis import-linter pip

FROM python:3.11.16-slim-trixie
LABEL org.opencontainers.image.title="xinfluencer" \
      org.opencontainers.image.description="Posts and reactions in, a language model that keeps learning out" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 xinfluencer \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin xinfluencer \
 && install -d -o 10001 -g 10001 -m 700 /data /cache
COPY --from=build /opt/xinfluencer /opt/xinfluencer
# Bytecode was compiled above: the root file system is read-only, and compiling torch at every start costs many seconds.
ENV PATH=/opt/xinfluencer/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false \
    XINFLUENCER_DATA=/data XINFLUENCER_CACHE=/cache
WORKDIR /data
USER 10001:10001
VOLUME ["/data", "/cache"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["xinfluencer"]
CMD ["--help"]
