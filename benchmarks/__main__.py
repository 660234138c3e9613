"""python -m benchmarks NAME [--tiny] [--field value]: run one study, or say which there are."""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything reads it: no study needs the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.harness.study import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
