# All pods of a cluster with NVIDIA GPUs, with vLLM: docker build -f deploy/images/gpu.Dockerfile -t reelscribe:gpu .
# vLLM's own image has torch, CUDA and transformers that go together; they are kept as they are.
FROM vllm/vllm-openai:v0.32.0

RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/reelscribe
COPY pyproject.toml constraints-cpu.txt README.md LICENSE _reelscribe.py ./
COPY schemas schemas
COPY pipeline pipeline
COPY jobs jobs
# --non-unique: Ubuntu's newer images have a user 1000.
# Ray and Python must be the same on every node, so head and decoders run this image too.
RUN pip freeze --exclude-editable | grep --ignore-case --extended-regexp '^(torch|torchvision|torchaudio|transformers|vllm|numpy)==' > kept.txt \
    && grep '^ray==' constraints-cpu.txt >> kept.txt \
    && pip install --no-cache-dir --constraint kept.txt ".[cluster,shots]" \
    && useradd --create-home --non-unique --uid 1000 reelscribe

USER 1000
WORKDIR /home/reelscribe
# HOME: all that is written beside the output goes to /tmp, so that the root can be read-only.
ENV HOME=/tmp \
    OMP_WAIT_POLICY=PASSIVE \
    TOKENIZERS_PARALLELISM=false \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0
HEALTHCHECK --interval=30s --timeout=10s CMD ["reelscribe", "--version"]
ENTRYPOINT []
CMD ["reelscribe", "--help"]
