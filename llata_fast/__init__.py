"""LLaTA, fast: a pre-trained language model turned into a time-series forecaster."""

import sys
from pathlib import Path

# a process started in a checkout has its root on the path, where kernels/ shadows Hugging Face's package "kernels"
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file():
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _root]
