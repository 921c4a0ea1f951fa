"""Package metadata. Nothing here depends on the machine, so one wheel serves CPUs and every GPU."""

import re
from pathlib import Path

from setuptools import find_packages, setup

_PACKAGE = Path(__file__).parent / "llata_fast" / "__init__.py"

setup(
    name="llata_fast",
    version=re.search(r'__version__ = "(.+)"', _PACKAGE.read_text())[1],
    description="Fast, scalable LLaTA: pre-trained language models as time-series forecasters",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)],
    packages=find_packages(include=["llata_fast", "llata_fast.*"]) + ["llata_fast.kernels"],
    # a top-level "kernels" would collide with Hugging Face's package of that name
    package_dir={"llata_fast.kernels": "kernels"},
    package_data={
        "llata_fast": ["py.typed"],
        "llata_fast.report": ["templates/*.html"],
        "llata_fast.kernels": ["*.csv"],
    },
    entry_points={"console_scripts": ["llata-fast = llata_fast.__main__:main"]},
    install_requires=[
        "torch>=2.7",
        "triton>=3.3; platform_system == 'Linux'",
        # Older ones scale the embeddings passed to Gemma 2, and do not check configs. We use private names of these
        # three packages: make test-oldest and test-newest test both ends of the range.
        "transformers>=5.4,<6",
        "accelerate>=1.10,<2",
        "deepspeed>=0.18,<0.20",
        "filelock",
        "gguf",
        "huggingface-hub",
        "jinja2",
        "numpy",
        "pandas",
        "pyarrow",
        "pydantic",
        "pyyaml",
        "safetensors",
        "tqdm",
    ],
    extras_require={
        # metrics, and exponential smoothing as a baseline
        "backtest": ["statsmodels>=0.15", "utilsforecast>=0.2.10"],
        "calendar": ["holidays"],
        "docs": ["furo", "myst-parser", "sphinx"],
        "export": ["onnx", "onnxruntime", "onnxscript", "peft"],
        # sktime and fev need an older pandas and datasets
        "fev": ["fev>=0.10"],
        "flash-attn": ["flash-attn"],
        "gift-eval": ["datasets>=4.1"],
        "parquet": ["pyarrow"],
        "plot": ["matplotlib"],
        "quantization": ["bitsandbytes>=0.46.1"],
        "sktime": ["sktime>=1.2"],
        "tensorboard": ["tensorboard"],
        "test": [
            # it must read the corpora we write, and we those it writes
            "datasets>=4.1",
            # make lint: spelling and prose
            "codespell",
            "hypothesis",
            "mypy",
            "proselint",
            "pytest",
            "pytest-benchmark",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "scikit-learn",
        ],
    },
)
