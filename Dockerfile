# drama on a machine with an NVIDIA GPU:
#   docker build -t drama .
#   docker run --rm -it --gpus all --shm-size 8g -v "$PWD/runs:/work/runs" drama train Pong --preset paper
# Versions are those of requirements.lock. CUDA comes with PyTorch's packages, so no image of NVIDIA's is needed; the
# kernels of mamba_ssm and of Triton are compiled at their first use, by the C compiler that stays in the image.
FROM python:3.12-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.95.0
ENV PATH=/root/.cargo/bin:$PATH
RUN pip install --no-cache-dir 'maturin==1.16.0'
WORKDIR /src
COPY Cargo.toml Cargo.lock pyproject.toml README.md LICENSE ./
COPY rust rust
COPY python python
RUN maturin build --release --locked --out /wheels

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /work
COPY requirements.lock ./
COPY --from=build /wheels /wheels
# setuptools, wheel and packaging are what mamba_ssm is built with; its CUDA code is left out, as Triton's is used.
RUN pip install --no-cache-dir --find-links /wheels --constraint requirements.lock \
        'drama-rl[train]' setuptools wheel packaging \
    && MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-cache-dir --no-build-isolation --no-deps \
        mamba-ssm==2.3.2.post1 einops==0.8.2
ENTRYPOINT ["drama"]
CMD ["--help"]
