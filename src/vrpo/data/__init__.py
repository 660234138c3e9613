"""Data: rows -> examples -> Tokens and their structure.

sources.py (files, folders, the hub), json_rows.py (files that may be broken), formats.py (TRL's formats), messages.py
(chat messages), unread.py (what rows carry beside), encode.py and words.py (text to ids, limits), tokenize.py (tables
of token ids), faults.py and account.py (dropped and cut rows), cache.py (tables that are kept), collate.py (batches).
"""

from vrpo.data.account import DataReport, Dropped
from vrpo.data.collate import (
    LabelCollator,
    PreferenceCollator,
    RankingCollator,
    SFTCollator,
    labels_of,
    pairs_of,
    rankings_of,
    rows_of,
    tokens_of,
)
from vrpo.data.sources import load_rows, split_rows
from vrpo.data.tokenize import tokenize_preferences, tokenize_ranked, tokenize_sft, tokenize_unpaired

__all__ = [
    "DataReport",
    "Dropped",
    "LabelCollator",
    "PreferenceCollator",
    "RankingCollator",
    "SFTCollator",
    "labels_of",
    "load_rows",
    "pairs_of",
    "rankings_of",
    "rows_of",
    "split_rows",
    "tokenize_preferences",
    "tokenize_ranked",
    "tokenize_sft",
    "tokenize_unpaired",
    "tokens_of",
]
