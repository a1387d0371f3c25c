# All pods of a cluster without GPUs, and the copying of weights: docker build -f deploy/images/cpu.Dockerfile -t reelscribe:cpu .
# torch's ordinary wheel carries CUDA libraries: give an index of CPU wheels by
# --build-arg PIP_EXTRA_INDEX_URL=... for an image that is some gigabytes smaller.
FROM python:3.11.14-slim-bookworm

# ffmpeg: shared libraries for torchcodec. wget: KubeRay's health probes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg wget \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/reelscribe
COPY pyproject.toml constraints-cpu.txt README.md LICENSE _reelscribe.py ./
COPY schemas schemas
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --no-cache-dir --constraint constraints-cpu.txt ".[cluster,shots]" \
    && useradd --create-home --uid 1000 reelscribe

USER 1000
WORKDIR /home/reelscribe
# HOME: all that is written beside the output goes to /tmp, so that the root can be read-only.
ENV HOME=/tmp \
    OMP_WAIT_POLICY=PASSIVE \
    TOKENIZERS_PARALLELISM=false \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0
HEALTHCHECK --interval=30s --timeout=10s CMD ["reelscribe", "--version"]
CMD ["reelscribe", "--help"]
