# SPDX-License-Identifier: Apache-2.0
"""A progress bar over the chunks of a lazy field while they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ternary_ops.climate.xarray_package import INSTALL
from ternary_ops.errors import needs_package
from ternary_ops.progress import progress_bars

_PARTS = ("_domain_part", "_local_part")


@contextmanager
def shown(field: Any, name: str, quiet: bool) -> Iterator[None]:
    """Within it, each chunk of `field` that dask's own schedulers compute moves a bar."""
    with needs_package("dask", "lazy results", INSTALL):
        from dask import callbacks
    watch: Any = callbacks.Callback  # untyped
    count = 1 if field.chunks is None else field.data.npartitions
    with progress_bars(quiet) as progress, progress.stage(name, count) as advance:

        def after(key: Any, *_: Any) -> None:
            if str(key).startswith(_PARTS):
                advance()

        with watch(posttask=after):
            yield
