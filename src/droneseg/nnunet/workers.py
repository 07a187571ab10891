"""nnU-Net's preprocessing on threads: each worker process it would spawn imports nnU-Net and torch for itself, first.

Decoding, normalising and compressing leave Python's lock, so threads use every core; the arrays written are the same
(`benchmarks/preprocess.py` compares both). Nothing here knows what is computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace


@contextmanager
def threads_for_workers() -> Iterator[None]:
    """Give nnU-Net's fingerprint extraction and preprocessing thread pools while the block runs."""
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.preprocessing.preprocessors import default_preprocessor

    modules = (fingerprint_extractor, default_preprocessor)
    originals = [module.multiprocessing for module in modules]
    # both modules ask for get_context("spawn").Pool(n) and nothing else
    threads = SimpleNamespace(get_context=lambda _method: SimpleNamespace(Pool=ThreadPool))
    try:
        for module in modules:
            module.multiprocessing = threads
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.multiprocessing = original
