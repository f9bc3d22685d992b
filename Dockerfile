# RS Aligner on a GPU machine, in NVIDIA's container of PyTorch, whose torch stays as it is:
#   docker build -t rs-aligner . && docker run --gpus all --ipc host rs-aligner rs-aligner --help
# Left out on purpose: models and data, which are mounted; and tests, which need a checkout.
ARG BASE=nvcr.io/nvidia/pytorch:25.06-py3
FROM ${BASE}

WORKDIR /opt/rs-aligner
COPY . .
# The container pins packages of its own, some newer than ours may be; its torch alone must not be replaced.
RUN python -c "import torch; print('torch==' + torch.__version__)" > /tmp/torch.txt \
    && PIP_CONSTRAINT=/tmp/torch.txt pip install --no-cache-dir . \
    && rm /tmp/torch.txt
WORKDIR /workspace
CMD ["rs-aligner", "--help"]
