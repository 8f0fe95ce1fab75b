# podsrl on CPUs, in an image: docker build -t podsrl . && docker run podsrl
#   docker run podsrl                                       make train: the small model learns sums
#   docker run podsrl make test                             lint, documentation and every test
#   docker run -v $PWD/runs:/podsrl/runs podsrl .venv/bin/podsrl train recipes/...
# On GPUs: leave PIP_EXTRA_INDEX_URL out, so that torch is the build for CUDA, and run --gpus all.
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /podsrl
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
COPY . .
RUN make .venv/.installed
CMD ["make", "train"]
