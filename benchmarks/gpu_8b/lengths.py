"""Token counts of UltraFeedback pairs, for benchmarks that need lengths and not texts: lengths.json.

    python benchmarks/gpu_8b/lengths.py --data FOLDER     # ultrafeedback/train.jsonl.gz and tokenizers/dream below it

[prompt, chosen, rejected] of each pair whose answers differ. Dream's byte-level BPE has about as many tokens as
LLaDA's, whose file was not at hand. The chat template adds 10 tokens to a prompt and 1 to an answer.
"""

import argparse
import gzip
import json
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

PROMPT_EXTRA, ANSWER_EXTRA = 10, 1

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    files = [str(data / "tokenizers" / "dream" / name) for name in ("vocab.json", "merges.txt")]
    tokenizer = ByteLevelBPETokenizer(*files)
    with gzip.open(data / "ultrafeedback" / "train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file.read().split("\n") if line]
    extra = {"prompt": PROMPT_EXTRA, "chosen": ANSWER_EXTRA, "rejected": ANSWER_EXTRA}
    lengths = [
        [len(tokenizer.encode(row[name]).ids) + more for name, more in extra.items()]
        for row in rows
        if row["chosen"] != row["rejected"]
    ]
    (Path(__file__).parent / "lengths.json").write_text(json.dumps(lengths, separators=(",", ":")) + "\n")
