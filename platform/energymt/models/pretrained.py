"""Quiet reading and writing of Hugging Face networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bar of transformers inside the block; version 5 draws one for every model it reads or writes.

    Behind it they are as they were: who uses transformers beside energymt keeps them.
    """
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def without_advice() -> Iterator[None]:
    """No warnings of transformers inside the block: of how a table should grow, say. Errors are told."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
